"""DWPose: known persons and points come out, each step equals its definition, and nobody is made up."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest

from openuni.annotators import _onnx
from openuni.annotators._onnx import OnnxNetwork, OutOfMemoryError
from openuni.annotators._simcc import as_input, crop, key_points, peaks, window_of
from openuni.annotators._yolox import boxes_of, letterbox, non_max_suppression, persons
from openuni.annotators.dwpose import DETECTOR_FILE, POSE_FILE, REPOSITORY, Dwpose
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.modalities._stick_figure import draw
from tests.annotators.people_networks import PERSON_BGR, POINT_BGR, write_detector, write_networks, write_pose
from tests.moving_pictures import texture
from tests.onnx_files import Node, tensor_elsewhere, write_onnx

HEIGHT, WIDTH = 256, 320  # twice the detector's input, so that its ratio is 0.5
DOTS = ((-20, -30), (14, 8), (6, 41))  # of the three colours, from the middle of the marker, px


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: hand-made networks in ONNX, and persons added to the frames."""
    if not (folder / DETECTOR_FILE).exists():
        write_networks(folder)
    shown = frames.copy()
    for number, frame in enumerate(shown):
        frame[8:24, 8 + 2 * number : 28 + 2 * number] = PERSON_BGR[::-1]
    return Dwpose(checkpoint=str(folder)), DecodedClip.from_frames(shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("dwpose")
    write_networks(place)
    return place


def frame_with(*cells, shift=(0, 0)):
    """uint8 [256, 320, 3] RGB: black, and at each cell (column, row; 16 px each) a person: a marker and three dots.

    `shift`: of the dots to the right and down, px.
    """
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for column, row in cells:
        frame[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = PERSON_BGR[::-1]
        for (right, down), colour in zip(DOTS, POINT_BGR, strict=True):
            x, y = 16 * column + 8 + right + shift[0], 16 * row + 8 + down + shift[1]
            frame[y - 1 : y + 2, x - 1 : x + 2] = np.array(colour[::-1]) * 0.95  # brightest in the middle
            frame[y, x] = colour[::-1]
    return frame


def truth(cell, shift=(0, 0)):
    """Centres of a person's dots: pixel x has its centre at x + 0.5."""
    return np.array(DOTS) + 16 * np.array(cell) + 8.5 + shift


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(np.stack(frames)))


# ---------------------------------------------------------------------- persons and points


def test_points_come_out_where_they_are_and_persons_keep_their_place(folder):
    ways = [[(4, 5), (5, 5), (6, 5), (7, 5)], [(15, 9), (15, 9), (14, 9), (14, 9)]]
    found = annotate(Dwpose(checkpoint=str(folder)), [frame_with(*cells) for cells in zip(*ways, strict=True)])
    array = found.skeleton.array
    assert array.shape == (4, 2, 133, 3)
    assert found.skeleton.size_px == (HEIGHT, WIDTH)
    for frame, person in itertools.product(range(4), range(2)):
        points = array[frame, person]
        assert points[:3, 2] == pytest.approx([1 / 3] * 3, abs=0.025)  # what these networks say of such dots
        np.testing.assert_allclose(points[:3, :2], truth(ways[person][frame]), atol=1.0)  # a crop's pixel is 1.39 px
        np.testing.assert_array_equal(points[3:6], points[:3])
    assert found.persons_max == found.identity_count == 2
    assert (found.persons_mean, found.person_share, found.relink_count) == (2.0, 1.0, 0)
    assert found.confidence_mean == pytest.approx(float(array[..., 2].mean()), abs=1e-6)
    # boxes are 40 x 64 px of the detector's input, which is half as large as the frame
    assert found.box_share == pytest.approx(80 * 128 / (WIDTH * HEIGHT), rel=1e-5)


def test_the_mean_error_over_many_places_has_no_bias(folder):
    shifts = list(itertools.product(range(-5, 6), range(-3, 3)))
    frames = [frame_with((8, 7), shift=shift) for shift in shifts]
    array = annotate(Dwpose(checkpoint=str(folder)), frames).skeleton.array
    errors = array[:, 0, :3, :2] - np.stack([truth((8, 7), shift) for shift in shifts])
    assert np.abs(errors).max() < 1.0
    assert np.abs(errors.mean(axis=(0, 1))).max() < 0.1  # a forgotten half pixel would be 0.5


def test_the_drawing_shows_a_point_on_its_pixel(folder):
    skeleton = annotate(Dwpose(checkpoint=str(folder)), [frame_with((8, 7))]).skeleton
    alone = np.zeros((1, 133, 3), np.float32)
    alone[0, 2] = skeleton.array[0, 0, 2]  # an eye
    light = draw(alone, HEIGHT, WIDTH).sum(axis=-1)
    rows, columns = np.nonzero(light == light.max())
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(truth((8, 7))[2], abs=1.0)


def test_nobody_is_nobody(folder):
    found = annotate(Dwpose(checkpoint=str(folder)), [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3)
    assert found.skeleton.array.shape == (3, 0, 133, 3)
    assert found[1:] == (0, 0.0, 0, 0.0, None, None, None, 0, None)
    assert not found.skeleton.to_rgb().any()


def test_in_frames_without_the_person_there_is_nothing(folder):
    cells = [[(6, 6)], [(6, 6)], [], [(6, 6)], []]
    found = annotate(Dwpose(checkpoint=str(folder)), [frame_with(*there) for there in cells])
    array = found.skeleton.array
    assert array.shape[1] == 1
    assert array[..., 2].any(axis=(1, 2)).tolist() == [True, True, False, True, False]
    assert not array[[2, 4]].any()
    assert (found.person_share, found.relink_count, found.identity_count) == (0.6, 1, 1)
    apart = annotate(Dwpose(checkpoint=str(folder), max_gap_s=0.0), [frame_with(*there) for there in cells])
    assert (apart.skeleton.array.shape[1], apart.relink_count, apart.identity_count) == (2, 0, 2)


def test_persons_beyond_the_cap_are_those_seen_least(folder):
    cells = [[(4, 5), (15, 9), (10, 8)], [(4, 5), (15, 9)], [(4, 5)]]
    found = annotate(Dwpose(checkpoint=str(folder), max_persons=2), [frame_with(*there) for there in cells])
    assert (found.persons_max, found.identity_count) == (3, 3)
    assert found.skeleton.array.shape[1] == 2
    assert found.skeleton.array[..., 2].any(axis=2).tolist() == [[True, True], [True, True], [True, False]]
    np.testing.assert_allclose(found.skeleton.array[0, 0, 0, :2], truth((4, 5))[0], atol=1.0)


def test_jitter_is_zero_for_an_even_motion_and_grows_with_noise(folder):
    even = [(4 + step, 6) for step in range(4)]
    uneven = [(4 + step, 6) for step in (0, 2, 0, 2)]
    found = [annotate(Dwpose(checkpoint=str(folder)), [frame_with(cell) for cell in way]) for way in (even, uneven)]
    size_px = np.sqrt(80 * 128)
    assert found[0].jitter_ratio == pytest.approx(0, abs=1.5 / size_px)
    assert found[1].identity_count == 1
    assert found[1].jitter_ratio == pytest.approx(64 / size_px, abs=3 / size_px)  # 32 px there, 32 back
    assert annotate(Dwpose(checkpoint=str(folder)), [frame_with(cell) for cell in even[:2]]).jitter_ratio is None


def test_the_pose_network_sees_blue_green_red_unless_told_otherwise(folder):
    points = [
        annotate(Dwpose(checkpoint=str(folder), channels=order), [frame_with((8, 7))]).skeleton.array[0, 0, :3, :2]
        for order in ("bgr", "rgb")
    ]
    np.testing.assert_allclose(points[1][[0, 2]], points[0][[2, 0]], atol=1.0)  # red and blue have changed places
    assert np.abs(points[1][0] - points[0][0]).max() > 20


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_do_not_change_the_result(folder, tmp_path, batch):
    write_networks(tmp_path, batch=batch)  # the graph's own number; the last pass is filled up
    frames = [frame_with((4, 5), (15, 9)), frame_with((5, 5)), frame_with((6, 5)), frame_with()]
    fixed = annotate(Dwpose(checkpoint=str(tmp_path)), frames)
    for size in (1, 2, 8):
        free = annotate(Dwpose(checkpoint=str(folder), frames_per_batch=size), frames)
        np.testing.assert_allclose(free.skeleton.array, fixed.skeleton.array, atol=1e-4)
        assert free[1:5] == fixed[1:5]


# ---------------------------------------------------------------------- each step by its definition


@pytest.mark.parametrize(
    ("frame", "shown"),
    [((480, 832), (369, 640)), ((1280, 720), (640, 360)), ((90, 160), (360, 640)), ((7, 5), (640, 457))],
)
def test_letterbox_is_top_left_bilinear_and_grey(frame, shown):
    picture = texture(*frame, grain_px=6.0)
    picture[..., 0] //= 2
    square, ratio = letterbox(picture, 640, 640)
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
    np.testing.assert_array_equal(as_input(picture), expected.transpose(2, 0, 1).astype(np.float32))


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


# ---------------------------------------------------------------------- files and devices


def test_cuda_is_asserted_and_never_replaced_in_silence(folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    with pytest.raises(MissingRequirement, match=r"CUDAExecutionProvider is not active.*onnxruntime-gpu.*provider = "):
        Dwpose(checkpoint=str(folder)).load("cuda")
    assert Dwpose(checkpoint=str(folder), provider="cpu").load("cuda").pose.session.get_providers() == [
        "CPUExecutionProvider"
    ]


def test_a_session_that_went_to_the_cpu_by_itself_is_refused():
    """What onnxruntime-gpu does when CUDA's libraries do not load: the session is there, on the CPU."""
    with pytest.raises(MissingRequirement, match=r"only CPUExecutionProvider \(its CUDA libraries"):
        _onnx.require_provider("CUDAExecutionProvider", ["CPUExecutionProvider"], "its CUDA libraries are missing")
    _onnx.require_provider("CUDAExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"], "")
    assert [name for name, _ in _onnx.providers_of("cuda:1")] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert _onnx.providers_of("cuda:1")[0][1]["device_id"] == "1"
    with pytest.raises(OpenUniError, match='"cpu" and "cuda", not on "mps"'):
        _onnx.providers_of("mps")


def test_threads_are_the_workers_share(folder, monkeypatch):
    monkeypatch.setenv("OPENUNI_THREADS", "3")
    session = OnnxNetwork(folder / POSE_FILE, "cpu").session
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.use_deterministic_compute
    assert not session._enable_fallback  # a pass that fails on a GPU is not done again on the CPU


@pytest.mark.parametrize("where", ["beside", "above", "absolute", "link", "memory"])
def test_weights_in_other_files_are_never_read(tmp_path, where, monkeypatch):
    secret = np.arange(1, 5, dtype=np.float32)
    (tmp_path / "models").mkdir()
    for place in (tmp_path / "secret.bin", tmp_path / "models" / "beside.bin"):
        secret.tofile(place)
    (tmp_path / "models" / "link.bin").symlink_to(tmp_path / "secret.bin")
    monkeypatch.chdir(tmp_path / "models")
    locations = {
        "beside": "beside.bin",
        "above": "../secret.bin",
        "absolute": str(tmp_path / "secret.bin"),
        "link": "link.bin",
        "memory": "*/_ORT_MEM_ADDR_/*",
    }
    offset = secret.ctypes.data if where == "memory" else 0
    far = tensor_elsewhere("far", (1, 1, 1, 4), locations[where], offset)
    path = tmp_path / "models" / "evil.onnx"
    sides = {"pictures": (1, 1, 1, 4)}
    write_onnx(path, [Node("Add", ["pictures", "far"], ["sum"])], {}, sides, {"sum": (1, 1, 1, 4)}, far)
    with pytest.raises(OpenUniError, match="cannot be run: it is damaged, not ONNX, or not whole in one file"):
        OnnxNetwork(path, "cpu")
    if where == "beside":  # the file is sound otherwise: onnxruntime by itself reads the weights
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        assert session.run(None, {"pictures": np.zeros((1, 1, 1, 4), np.float32)})[0].ravel().tolist() == [1, 2, 3, 4]


def test_a_batch_that_does_not_fit_has_the_name_that_halves_it(tmp_path):
    weights = {"huge": np.array([1, 1 << 22, 1 << 22, 4], np.int64)}  # 256 TB
    shape = (1, "a", "b", 4)
    nodes = [Node("Expand", ["pictures", "huge"], ["much"])]
    path = tmp_path / "huge.onnx"
    write_onnx(path, nodes, weights, {"pictures": (1, 1, 1, 4)}, {"much": shape})
    with pytest.raises(OutOfMemoryError) as caught:
        list(OnnxNetwork(path, "cpu").each([np.zeros((1, 1, 4), np.float32)], 1))
    assert isinstance(caught.value, RuntimeError) and type(caught.value).__name__ == "OutOfMemoryError"


def test_other_networks_are_refused_with_what_is_needed(tmp_path):
    write_networks(tmp_path)
    write_pose(tmp_path / "body.onnx", points=17)
    with pytest.raises(OpenUniError, match=r"x and y of 133 points as two outputs.*Give such a file as pose_file"):
        Dwpose(checkpoint=str(tmp_path), pose_file="body.onnx").load("cpu")
    with pytest.raises(OpenUniError, match=r"YOLOX export without its own NMS gives one output of \[batch, 138, 85\]"):
        Dwpose(checkpoint=str(tmp_path), detector_file=POSE_FILE, pose_file=DETECTOR_FILE).load("cpu")
    (tmp_path / "damaged.onnx").write_bytes((tmp_path / POSE_FILE).read_bytes()[:900])
    with pytest.raises(OpenUniError, match=r"damaged\.onnx cannot be run: it is damaged"):
        Dwpose(checkpoint=str(tmp_path), pose_file="damaged.onnx").load("cpu")
    with pytest.raises(MissingRequirement, match=r"there is no other\.onnx in"):
        Dwpose(checkpoint=str(tmp_path), pose_file="other.onnx").load("cpu")
    two = {"pictures": (1, 3, 8, 8), "more": (1, 3, 8, 8)}
    write_onnx(tmp_path / "two.onnx", [Node("Add", list(two), ["sum"])], {}, two, {"sum": (1, 3, 8, 8)})
    with pytest.raises(OpenUniError, match="must have one input"):
        OnnxNetwork(tmp_path / "two.onnx", "cpu")


def test_an_output_of_another_kind_is_refused_when_the_graph_did_not_say():
    for shape in ((100, 7), (420, 5), (420,)):
        with pytest.raises(OpenUniError, match=r"the detector gave .*without its own NMS it is \(420, 85\)"):
            persons(np.zeros(shape, np.float32), (128, 160), 1.0, 0.3, 0.45)
    with pytest.raises(OpenUniError, match=r"SimCC outputs are \[points, bins\]"):
        peaks(np.zeros((133, 10)), np.zeros((17, 10)))


def test_the_files_by_name_have_their_licence_and_wrong_places_are_explained(folder, monkeypatch, tmp_path):
    (known,) = Dwpose().checkpoints()
    assert (known.ref, known.store, known.only) == (REPOSITORY, "hub", (DETECTOR_FILE, POSE_FILE))
    assert known.terms == "unclear" and not known.requires_acceptance
    monkeypatch.setenv("OPENUNI_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingRequirement, match=f"openuni checkpoints get {REPOSITORY}"):
        Dwpose().load("cpu")
    (tmp_path / REPOSITORY).mkdir(parents=True)
    write_networks(tmp_path / REPOSITORY)
    assert Dwpose().load("cpu").pose.height_px == 96
    assert Dwpose(checkpoint="./nowhere").checkpoints()[0].store == "path"
    assert Dwpose(checkpoint="other/repository").checkpoints()[0].store == "hub"
    with pytest.raises(OpenUniError, match="name of a file in `checkpoint`, without a path"):
        Dwpose(pose_file="../pose.onnx")


def test_the_version_follows_the_two_files_and_no_other(tmp_path):
    operator = Dwpose(checkpoint=write_networks(tmp_path))
    before = operator.version()
    (tmp_path / "notes.txt").write_text("unrelated")
    assert operator.version() == before
    write_detector(tmp_path / DETECTOR_FILE, (44, 64))
    assert operator.version() != before


@pytest.mark.parametrize(
    "wrong",
    [
        *({"channels": "gbr"}, {"provider": "gpu"}, {"max_persons": 0}, {"frames_per_batch": 0}),
        *({"min_score": 1.5}, {"nms_iou": -0.1}, {"max_gap_s": -1.0}, {"max_gap_s": float("nan")}),
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        replace(Dwpose(), **wrong)
