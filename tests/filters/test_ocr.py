import cv2
import numpy as np
import pytest

from openuni.filters.ocr import Ocr
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.moving_pictures import panned, texture

HEIGHT_PX, WIDTH_PX = 240, 400
FONT = cv2.FONT_HERSHEY_SIMPLEX


@pytest.fixture(scope="module")
def model():
    return Ocr().load("cpu")


def lettered(image, text="BREAKING NEWS", at=(40, 180), scale=1.2):
    """The picture with text on it, and the area of the rectangle around the letters, square pixels."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.putText(mask, text, at, FONT, scale, 255, 3, cv2.LINE_AA)
    rows, columns = np.nonzero(mask > 60)
    alpha = mask[..., None] / 255.0
    picture = (image * (1 - alpha) + 255 * alpha).round().astype(np.uint8)
    return picture, int(np.ptp(rows) + 1) * int(np.ptp(columns) + 1)


def scores(model, frames, fps=1.0, **options):
    return Ocr(**options).run(model, DecodedClip.from_frames(np.stack(frames), fps))


def pan(offsets):
    return panned(offsets, HEIGHT_PX, WIDTH_PX) // 2  # dark enough for white letters


# ---------------------------------------------------------------------- area


@pytest.mark.parametrize(
    ("text", "at", "scale"),
    [("BREAKING NEWS", (40, 180), 1.2), ("Hello there", (150, 60), 0.9), ("the quick brown fox", (20, 130), 1.0)],
)
def test_area_of_rendered_text_is_right_within_a_fifth(model, text, at, scale):
    picture, area_px = lettered(texture(360, 640) // 2, text, at, scale)
    found = scores(model, [picture])
    assert found.text_area_share == pytest.approx(area_px / (360 * 640), rel=0.2)
    assert found.text_frame_share == 1.0


def test_two_lines_have_the_sum_of_their_areas(model):
    picture, first_px = lettered(pan([(0, 0)])[0])
    picture, second_px = lettered(picture, "Hello there", (60, 60))
    expected = (first_px + second_px) / (HEIGHT_PX * WIDTH_PX)
    assert scores(model, [picture]).text_area_share == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("grain_px", [1.0, 3.0, 6.0, 15.0])
def test_textures_have_no_text(model, grain_px):
    frames = [texture(HEIGHT_PX, WIDTH_PX, seed, grain_px) for seed in range(3)]
    assert scores(model, frames) == (0.0,) * 6


def test_patterns_that_the_finder_takes_for_text_are_not_text(model):
    bars = np.zeros((360, 640, 3), np.uint8)  # as in a test card: half the frame is a "line" to the finder alone
    for index, colour in enumerate(
        [(0, 255, 255), (255, 0, 255), (0, 0, 255), (255, 255, 0), (0, 255, 0), (255, 0, 0)]
    ):
        bars[:, 80 * (index + 1) : 80 * (index + 2)] = colour
    bars[:, 560:] = 255
    cv2.circle(bars, (320, 180), 250, (255, 255, 255), 4)
    assert scores(model, [bars]).text_area_share == 0.0


def test_the_frame_with_the_most_text_and_the_share_of_frames_with_any(model):
    plain = pan([(0, 0)])[0]
    picture, area_px = lettered(plain)
    found = scores(model, [plain, picture, plain, plain])
    assert found.text_frame_share == 0.25
    assert found.max_text_area_share == pytest.approx(area_px / plain[..., 0].size, rel=0.2)
    assert found.text_area_share == pytest.approx(found.max_text_area_share / 4)


def boxes(*quads):
    return lambda frame: [np.array(quad, np.float32) for quad in quads]


def test_overlaps_count_once_unless_the_sum_is_asked_for():
    frame = np.zeros((100, 100, 3), np.uint8)
    square, half = [(0, 0), (40, 0), (40, 40), (0, 40)], [(0, 0), (20, 0), (20, 40), (0, 40)]
    union = scores(boxes(square, half), [frame])
    assert union.text_area_share == pytest.approx(0.16, rel=0.06)  # a drawn mask includes its edge
    assert scores(boxes(square, half), [frame], area="sum").text_area_share == pytest.approx(0.16 + 0.08)
    assert scores(boxes(square), [frame]).text_area_share == union.text_area_share


def test_slanted_boxes_have_their_own_area_not_that_of_the_rectangle_around():
    diamond = [(50, 10), (90, 50), (50, 90), (10, 50)]
    assert scores(boxes(diamond), [np.zeros((100, 100, 3), np.uint8)]).text_area_share == pytest.approx(0.32, rel=0.05)


def as_videox_fun_counts(level, slanted):
    """Square pixels, as its compute_text_score is described: the second triangle of a quad has too few points."""
    area = sum((right - left) * (bottom - top) for left, right, top, bottom in level)
    for points in slanted:
        triangles = (points[:3], [points[3], points[0]])
        try:
            area += sum(triangle_area(*triangle) for triangle in triangles)
        except TypeError:
            continue
    return area


def triangle_area(a, b, c):
    return abs(a[0] * (b[1] - c[1]) + b[0] * (c[1] - a[1]) + c[0] * (a[1] - b[1])) / 2


def test_the_mode_of_videox_fun_adds_level_boxes_up_and_drops_slanted_ones():
    level = [(0, 40, 0, 40), (0, 20, 0, 40)]  # left, right, top, bottom, as EasyOCR gives them
    slanted = [[(50, 10), (90, 50), (50, 90), (10, 50)]]
    quads = [[(left, top), (right, top), (right, bottom), (left, bottom)] for left, right, top, bottom in level]
    found = scores(boxes(*quads, *slanted), [np.zeros((100, 100, 3), np.uint8)], area="videox_fun")
    assert found.text_area_share == pytest.approx(as_videox_fun_counts(level, slanted) / 100**2, abs=1e-9)
    assert found.text_area_share == pytest.approx(0.24)
    whole = scores(boxes(*quads, *slanted), [np.zeros((100, 100, 3), np.uint8)], area="sum").text_area_share
    assert whole == pytest.approx(0.24 + 0.32)
    assert sum(kinds(found)) > found.text_area_share  # what kinds of text there are is not told by a faulty sum


def test_the_mode_of_videox_fun_looks_at_the_frame_in_the_middle():
    assert Ocr(area="videox_fun", max_frames=1).sample(np.arange(100) / 25).tolist() == [50]


# ---------------------------------------------------------------------- overlay or scene


def kinds(found):
    return (found.overlay_area_share, found.scene_area_share, found.undecided_area_share)


def share(found):
    """Each kind's part of all text; they add up."""
    parts = np.array(kinds(found))
    assert parts.sum() == pytest.approx(found.text_area_share)
    return (parts / found.text_area_share).round(2).tolist()


def test_text_over_a_moving_picture_is_an_overlay(model):
    found = scores(model, [lettered(frame)[0] for frame in pan([(9 * index, 3 * index) for index in range(4)])])
    assert share(found) == [1, 0, 0]


@pytest.mark.parametrize("step_px", [(15, 0), (0, 9), (4, 2)])
def test_text_that_moves_with_the_picture_is_of_the_scene(model, step_px):
    steps = [(step_px[0] * index, step_px[1] * index) for index in range(4)]
    frames = [
        lettered(frame, at=(40 + right, 150 + down))[0] for frame, (right, down) in zip(pan(steps), steps, strict=True)
    ]
    assert share(scores(model, frames)) == [0, 1, 0]


def test_both_at_once_are_told_apart(model):
    steps = [(12 * index, 0) for index in range(4)]
    frames = []
    for frame, (right, _) in zip(pan(steps), steps, strict=True):
        with_sign, sign_px = lettered(frame, "Hello", (100 + right, 70), 1.0)
        both, title_px = lettered(with_sign, "BREAKING NEWS", (40, 200), 1.1)
        frames.append(both)
    found = scores(model, frames)
    assert found.overlay_area_share == pytest.approx(title_px / (HEIGHT_PX * WIDTH_PX), rel=0.2)
    assert found.scene_area_share == pytest.approx(sign_px / (HEIGHT_PX * WIDTH_PX), rel=0.25)


def test_a_caption_in_a_black_bar_under_a_moving_picture_is_an_overlay(model):
    frames = pan([(9 * index, 3 * index) for index in range(4)]).copy()
    frames[:, 170:] = 0
    assert share(scores(model, [lettered(frame, at=(40, 215))[0] for frame in frames])) == [1, 0, 0]


def test_text_at_rest_in_a_picture_at_rest_is_undecided_also_when_the_light_changes(model):
    picture, _ = lettered(pan([(0, 0)])[0])
    assert share(scores(model, [picture] * 3)) == [0, 0, 1]
    assert share(scores(model, [(picture * light).astype(np.uint8) for light in (1.0, 0.95, 0.9)])) == [0, 0, 1]


def test_a_single_frame_decides_nothing(model):
    assert share(scores(model, [lettered(pan([(0, 0)])[0])[0]])) == [0, 0, 1]


def test_a_title_that_is_shown_too_short_is_not_an_overlay(model):
    frames = list(pan([(9 * index, 0) for index in range(6)]))
    frames[2], _ = lettered(frames[2])
    frames[3], _ = lettered(frames[3])
    assert share(scores(model, frames, fps=1.0)) == [1, 0, 0]
    assert share(scores(model, frames, fps=4.0)) == [0, 1, 0]
    assert share(scores(model, frames, fps=4.0, min_overlay_s=0.25)) == [1, 0, 0]


def test_kinds_that_overlap_still_add_up_to_the_union():
    frames = [lettered(frame)[0] for frame in pan([(9 * index, 3 * index) for index in range(3)])]
    title = [(40, 140), (320, 140), (320, 190), (40, 190)]
    found_boxes = iter(
        [(title, [(left, 100), (left + 50, 100), (left + 50, 190), (left, 190)]) for left in (60, 120, 180)]
    )
    found = scores(lambda frame: boxes(*next(found_boxes))(frame), frames)
    assert found.overlay_area_share == pytest.approx(280 * 50 / (HEIGHT_PX * WIDTH_PX), rel=0.05)
    assert found.scene_area_share == pytest.approx(50 * 40 / (HEIGHT_PX * WIDTH_PX), rel=0.05)  # what stands out above
    assert found.text_area_share == pytest.approx((280 * 50 + 50 * 40) / (HEIGHT_PX * WIDTH_PX), rel=0.05)


def test_a_box_that_grows_is_not_at_rest():
    from openuni.filters._text_kinds import TextKind, classify_text

    frames = [lettered(frame)[0][..., 0] for frame in pan([(9 * index, 3 * index) for index in range(2)])]
    word = np.array([(40, 150), (150, 150), (150, 190), (40, 190)], np.float32)
    line = np.array([(40, 150), (320, 150), (320, 190), (40, 190)], np.float32)
    found = classify_text(frames, [[word], [line]], np.array([0.0, 1.0]), 1.0)
    assert found == [[TextKind.SCENE], [TextKind.SCENE]]


def test_other_words_in_the_same_place_are_other_text():
    from openuni.filters._text_kinds import TextKind, classify_text

    quad = np.array([(40, 150), (300, 150), (300, 190), (40, 190)], np.float32)
    moving = pan([(9 * index, 3 * index) for index in range(2)])
    same = [lettered(frame, "MMMMMMMM")[0][..., 0] for frame in moving]
    other = [same[0], lettered(moving[1], "SOSOSOSO")[0][..., 0]]
    times_s = np.array([0.0, 1.0])
    assert classify_text(same, [[quad], [quad]], times_s, 1.0) == [[TextKind.OVERLAY], [TextKind.OVERLAY]]
    assert classify_text(other, [[quad], [quad]], times_s, 1.0) == [[TextKind.SCENE], [TextKind.SCENE]]


# ---------------------------------------------------------------------- samples, options, weights


def test_one_frame_per_second_and_no_more_than_the_most():
    assert Ocr().sample(np.arange(100) / 25).tolist() == [0, 25, 50, 75]
    assert Ocr(max_frames=3).sample(np.arange(1500) / 25).tolist() == [250, 750, 1250]


def test_nothing_is_fetched_and_the_models_lie_in_the_wheel():
    names = [checkpoint.resolve().name for checkpoint in Ocr().checkpoints()]
    assert len(names) == 2 and "det" in names[0] and "rec" in names[1]


@pytest.mark.parametrize(
    "wrong",
    [{"backend": "tesseract"}, {"area": "all"}, {"max_frames": 0}, {"unclip": 0.0}, {"min_recognition_score": 2.0}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Ocr(**wrong)


# ---------------------------------------------------------------------- EasyOCR's CRAFT, random weights


@pytest.fixture(scope="module")
def craft(tmp_path_factory):
    """Random weights that find something: the last layer is scaled so that the scores lie around the thresholds."""
    import torch
    from easyocr.craft import CRAFT
    from easyocr.imgproc import normalizeMeanVariance

    torch.manual_seed(2)
    network = CRAFT(pretrained=False).eval()
    path = tmp_path_factory.mktemp("craft") / "craft_mlt_25k.pth"
    with torch.no_grad():
        maps, _ = network(torch.from_numpy(normalizeMeanVariance(blocky())).permute(2, 0, 1)[None])
        last = network.conv_cls[-1]
        spread, middle = maps.std(dim=(0, 1, 2)), maps.mean(dim=(0, 1, 2))
        last.weight.div_(spread[:, None, None, None] * 2)
        last.bias.copy_((last.bias - middle) / (spread * 2))
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, path)
    return path


def blocky():
    return np.kron(np.random.default_rng(1).integers(0, 256, (6, 10, 3)), np.ones((16, 16, 1))).astype(np.uint8)


def test_boxes_of_craft_are_those_of_the_original_to_the_pixel(craft, tmp_path):
    import easyocr
    from easyocr.detection import get_detector

    folder = str(tmp_path)
    reader = easyocr.Reader(
        ["en"], gpu=False, model_storage_directory=folder, user_network_directory=folder, download_enabled=False,
        detector=False, recognizer=False, verbose=False,
    )  # fmt: skip
    reader.detector = get_detector(str(craft), "cpu", quantize=False)
    reader.get_textbox = easyocr.detection.get_textbox
    frame = blocky()
    (level,), (slanted,) = reader.detect(frame, canvas_size=960)
    expected = [[(left, top), (right, top), (right, bottom), (left, bottom)] for left, right, top, bottom in level]
    expected += slanted
    found = Ocr(backend="easyocr", checkpoint=str(craft)).load("cpu")(frame)
    assert len(found) > 5
    assert np.array_equal(found, np.array(expected, np.float32))


def test_craft_and_the_mode_of_videox_fun_give_its_number(craft, tmp_path):
    import easyocr
    from easyocr.detection import get_detector

    folder = str(tmp_path)
    reader = easyocr.Reader(
        ["en"], gpu=False, model_storage_directory=folder, user_network_directory=folder, download_enabled=False,
        detector=False, recognizer=False, verbose=False,
    )  # fmt: skip
    reader.detector = get_detector(str(craft), "cpu", quantize=False)
    reader.get_textbox = easyocr.detection.get_textbox
    frame = blocky()
    (level,), (slanted,) = reader.detect(frame)
    assert level and slanted
    options = {"backend": "easyocr", "checkpoint": str(craft), "area": "videox_fun", "long_side_px": 2560}
    detector = Ocr(**options).load("cpu")
    found = scores(detector, [frame], **options)
    expected = as_videox_fun_counts(level, slanted) / frame[..., 0].size
    assert found.text_area_share == pytest.approx(expected, abs=1e-6)
    assert scores(detector, [frame], **options | {"area": "sum"}).text_area_share > expected


def test_craft_comes_from_where_easyocr_says():
    from easyocr.config import detection_models

    (published,) = Ocr.published()
    assert published.url == detection_models["craft"]["url"]


def test_the_published_zip_holds_the_same_weights(craft, tmp_path):
    import zipfile

    path = tmp_path / "craft_mlt_25k.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(craft, craft.name)
    frame = blocky()
    one, other = (Ocr(backend="easyocr", checkpoint=str(place)).load("cpu")(frame) for place in (craft, path))
    assert np.array_equal(one, other)


def test_a_clip_is_scored_with_craft(craft):
    operator = Ocr(backend="easyocr", checkpoint=str(craft))
    found = scores(operator.load("cpu"), [blocky()], backend="easyocr", checkpoint=str(craft))
    assert 0 < found.text_area_share <= 1


def test_a_missing_checkpoint_is_named_with_the_command_for_it(tmp_path, monkeypatch):
    for name in ("EASYOCR_MODULE_PATH", "OPENUNI_CHECKPOINTS"):
        monkeypatch.setenv(name, str(tmp_path))
    (needed,) = Ocr(backend="easyocr").checkpoints()
    with pytest.raises(MissingRequirement, match=r"openuni checkpoints get craft_mlt_25k\.zip"):
        needed.resolve()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "craft_mlt_25k.pth").write_bytes(b"weights")
    (there,) = Ocr(backend="easyocr").checkpoints()
    assert there.resolve() == tmp_path / "model" / "craft_mlt_25k.pth"


class Evil:
    def __reduce__(self):
        import os

        return (os.system, ("touch /tmp/should-not-exist",))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    import torch

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(OpenUniError, match="never executed"):
        Ocr(backend="easyocr", checkpoint=str(tmp_path / "evil.pth")).load("cpu")


@pytest.mark.parametrize("text", [b"", b"not weights"])
@pytest.mark.parametrize("suffix", ["pth", "zip"])
def test_damaged_weights_are_an_error_that_says_so(tmp_path, text, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(text)
    with pytest.raises(OpenUniError, match="cannot be read as weights"):
        Ocr(backend="easyocr", checkpoint=str(path)).load("cpu")


def test_weights_of_another_network_are_refused(tmp_path):
    import torch

    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(OpenUniError, match="weights of CRAFT"):
        Ocr(backend="easyocr", checkpoint=str(tmp_path / "other.pth")).load("cpu")
