"""Each step of DWPose by its definition: letterbox, decoding, suppression, crop, normalization, SimCC."""

import cv2
import numpy as np
import pytest

from openuni.annotators._onnx import as_input
from openuni.annotators._simcc import NORMALIZED, crop, key_points, peaks, window_of
from openuni.annotators._yolox import boxes_of, letterbox, non_max_suppression, persons
from tests.moving_pictures import texture


@pytest.mark.parametrize(
    ("frame", "shown"),
    [((480, 832), (369, 640)), ((1280, 720), (640, 360)), ((90, 160), (360, 640)), ((7, 5), (640, 457))],
)
def test_letterbox_is_top_left_bilinear_and_grey(frame, shown):
    picture = texture(*frame, grain_px=6.0)
    picture[..., 0] //= 2
    shown_rows, ratio = letterbox(picture, 640, 640)
    square = as_input(shown_rows[None], None)[0]
    assert ratio == min(640 / frame[0], 640 / frame[1])
    assert square.dtype == np.float32 and square.shape == (3, 640, 640)
    tall, wide = shown
    assert (square[:, tall:] == 114).all() and (square[:, :, wide:] == 114).all()
    # bilinear by definition: the new pixel's centre in the old picture, its four neighbours, repeated at the border
    rows = np.clip((np.arange(tall) + 0.5) * frame[0] / tall - 0.5, 0, frame[0] - 1)
    columns = np.clip((np.arange(wide) + 0.5) * frame[1] / wide - 0.5, 0, frame[1] - 1)
    expected = bilinear(picture, rows[:, None], columns[None])
    assert np.abs(square[:, :tall, :wide].transpose(1, 2, 0) - expected).max() <= 1  # rounding to whole levels
    by_cv2 = cv2.resize(picture, (wide, tall), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(square[:, :tall, :wide].transpose(1, 2, 0), by_cv2)


def bilinear(picture, rows, columns):
    """float64: between the four pixels around rows, columns (centres at whole numbers)."""
    rows, columns = np.broadcast_arrays(rows, columns)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, picture.shape[0] - 1), np.minimum(left + 1, picture.shape[1] - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    above = picture[top, left] * (1 - across) + picture[top, right] * across
    below = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
    return above * (1 - down) + below * down


def raw_output(seed, height, width):
    """A detector's output with many boxes, some of them around the same places."""
    rng = np.random.default_rng(seed)
    count = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    raw = rng.normal(0, 1, (count, 85)).astype(np.float32)
    raw[:, 2:4] = rng.normal(1.2, 0.5, (count, 2))
    raw[:, 4:] = rng.uniform(0, 1, (count, 81)) ** 2
    return raw


def test_boxes_are_decoded_cell_by_cell():
    raw = raw_output(0, 64, 96)
    expected, place = [], 0
    for stride in (8, 16, 32):
        for row in range(64 // stride):
            for column in range(96 // stride):
                x, y, w, h = (float(value) for value in raw[place, :4])
                x, y, w, h = (x + column) * stride, (y + row) * stride, np.exp(w) * stride, np.exp(h) * stride
                expected.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
                place += 1
    np.testing.assert_allclose(boxes_of(raw, 64, 96), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_persons_are_those_of_a_suppression_in_every_class(seed):
    """Every class on its own, above 0.1, at an overlap of 0.45, pixels counted at both ends; of class 0 above 0.3."""
    raw, ratio = raw_output(seed, 64, 96), 0.4
    boxes, scores = boxes_of(raw, 64, 96).astype(np.float64) / ratio, raw[:, 4:5] * raw[:, 5:]
    kept = []
    for one in range(80):
        queue = [place for place in np.argsort(-scores[:, one], kind="stable") if scores[place, one] > 0.1]
        while queue:
            best = queue.pop(0)
            kept.append((one, best))
            queue = [other for other in queue if overlap(boxes[best], boxes[other]) <= 0.45]
    expected = [place for one, place in kept if one == 0 and scores[place, 0] > 0.3]
    assert len(expected) > 5
    found, sure = persons(raw, (64, 96), ratio, 0.3, 0.45)
    np.testing.assert_allclose(found, boxes[expected], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(sure, scores[expected, 0], rtol=1e-6)
    assert (np.diff(sure) <= 0).all()


def overlap(one, other):
    wide = min(one[2], other[2]) - max(one[0], other[0]) + 1
    high = min(one[3], other[3]) - max(one[1], other[1]) + 1
    common = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return common / (sum(areas) - common)


def test_sides_of_boxes_count_the_pixels_at_both_ends():
    boxes = np.array([(0, 0, 1, 1), (1, 0, 2, 1)], np.float32)  # 2 x 2 px each, 2 of them common: a third
    assert non_max_suppression(boxes, np.array([0.5, 0.9]), 0.34) == [1, 0]
    assert non_max_suppression(boxes, np.array([0.5, 0.9]), 0.33) == [1]


def test_boxes_that_are_no_boxes_are_left_out():
    raw = raw_output(0, 64, 96)
    raw[:, 4:6] = 0
    raw[:6, 4:6] = 1
    raw[0, 2] = 1e9  # wider than any number
    raw[1, 3] = np.nan
    raw[2, 0] = np.inf
    raw[3, 2] = -1e9  # no width
    assert len(persons(raw, (64, 96), 1.0, 0.3, 1.0)[0]) == 2


@pytest.mark.parametrize("box", [(100, 40, 180, 200), (-30, -20, 60, 50), (10, 60, 300, 90), (3.7, 9.2, 31.4, 88.8)])
def test_crops_are_the_affine_window_of_the_definition(box):
    """In this OpenCV's own pixels exactly, and bilinear by definition within what its 1/32 px steps allow."""
    picture = texture(240, 320, grain_px=6.0)
    box = np.array(box, np.float32)
    window, box = window_of(box, 384, 288), box.tolist()
    wide, high = box[2] - box[0], box[3] - box[1]
    extent = (max(wide, high * 0.75) * 1.25, max(high, wide / 0.75) * 1.25)
    assert window.extent == pytest.approx(extent)
    assert window.middle == pytest.approx([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    shown = crop(picture, window, 384, 288)
    centre = np.float32([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    above = centre - np.float32([0, extent[0] / 2])
    there = np.float32([centre, above, above - (centre - above)[::-1]])
    here = np.float32([(144, 192), (144, 192 - 144), (0, 192 - 144)])
    by_cv2 = cv2.warpAffine(picture, cv2.getAffineTransform(there, here), (288, 384), flags=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(shown, by_cv2)
    x = (np.arange(288) - 144) * extent[0] / 288 + window.middle[0]
    y = (np.arange(384) - 192) * extent[0] / 288 + window.middle[1]
    inside = (y[:, None] >= 0) & (y[:, None] <= 239) & (x >= 0) & (x <= 319)
    expected = bilinear(picture, np.clip(y, 0, 239)[:, None], np.clip(x, 0, 319)[None])
    assert inside.any()
    assert np.abs(shown - expected)[inside].max() <= 2
    far = (y[:, None] < -1) | (y[:, None] > 240) | (x < -1) | (x > 320)
    assert not shown[far].any()


def test_levels_are_normalised_with_the_authors_numbers_in_the_order_they_have():
    picture = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    expected = (picture - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    np.testing.assert_array_equal(
        as_input(picture[None], NORMALIZED)[0], expected.transpose(2, 0, 1).astype(np.float32)
    )


def simcc_by_definition(across, down, box):
    """The authors' way, point by point, in their own coordinates (first pixel's centre at 0)."""
    wide, high = (box[2] - box[0]) * 1.25, (box[3] - box[1]) * 1.25
    scale = (wide, wide * 384 / 288) if wide > high * 288 / 384 else (high * 288 / 384, high)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    points = []
    for x, y in zip(across.tolist(), down.tolist(), strict=True):
        score = min(max(x), max(y))
        bins = (x.index(max(x)), y.index(max(y))) if score > 0 else (-1, -1)
        place = [bins[i] / 2.0 / (288, 384)[i] * scale[i] + centre[i] - scale[i] / 2 for i in (0, 1)]
        points.append((*place, score))
    return np.array(points)


def test_simcc_is_decoded_as_the_authors_do():
    rng = np.random.default_rng(0)
    across, down = rng.normal(0, 0.2, (133, 576)).astype(np.float32), rng.normal(0, 0.2, (133, 768)).astype(np.float32)
    across[::7] = -np.abs(across[::7])  # no such points
    down[3] = 0
    box = np.array([100.5, 20.25, 190.0, 240.0], np.float32)
    expected = simcc_by_definition(across, down, box.tolist())
    found = key_points(across, down, window_of(box, 384, 288), 384, 288)
    there = expected[:, 2] > 0
    assert (~there).sum() == 20 and not there[3] and not there[::7].any()
    np.testing.assert_allclose(found[there, :2] - 0.5, expected[there, :2], rtol=1e-6)
    np.testing.assert_allclose(found[there, 2], np.minimum(expected[there, 2], 1), rtol=1e-6)
    assert not found[~there].any()  # a `Skeleton` has zeros where there is nothing
    places, likely = peaks(across, down)
    assert (places[~there] == -1).all() and (places[there] >= 0).all()
    np.testing.assert_array_equal(likely, expected[:, 2].astype(np.float32))


def test_of_equal_maxima_the_first_counts_and_confidence_stays_within_0_and_1():
    flat = np.full((133, 10), 3.0, np.float32)
    places, _ = peaks(flat, flat)
    assert not places.any()
    broken = flat.copy()
    broken[0] = np.nan
    found = key_points(broken, flat, window_of(np.array([0, 0, 30, 40]), 40, 30), 40, 30)
    assert not found[0].any() and (found[1:, 2] == 1).all()
