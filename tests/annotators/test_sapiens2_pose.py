from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, Sapiens2ForPoseEstimation

from openuni.annotators.dwpose import DETECTOR_FILE, POSE_FILE, REPOSITORY
from openuni.annotators.sapiens2_pose import COCO_TO_SAPIENS2, Sapiens2Pose, whole_body
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.annotators import tiny_sapiens2
from tests.annotators.people_networks import PERSON_BGR, write_detector, write_networks

HEIGHT, WIDTH = 256, 320  # twice the detector's input
# what the authors' file keypoints308.py gives as coco_wholebody_to_goliath_mapping
BY_THE_AUTHORS = (
    {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8, 11: 9, 12: 10, 13: 11, 14: 12, 15: 13, 16: 14}
    | {17: 15, 18: 16, 19: 17, 20: 18, 21: 19, 22: 20, 116: 21, 115: 22, 114: 23, 120: 25, 119: 26, 118: 27}
    | {124: 29, 123: 30, 122: 31, 128: 33, 127: 34, 126: 35, 132: 37, 131: 38, 130: 39, 10: 41, 95: 42, 94: 43}
    | {93: 44, 99: 46, 98: 47, 97: 48, 103: 50, 102: 51, 101: 52, 107: 54, 106: 55, 105: 56, 111: 58, 110: 59}
    | {109: 60, 9: 62}
)


def saved(folder, flip_pairs=((1, 2), (3, 4)), points=308):
    """A checkpoint for 308 points, with an input of 64 x 48 px; and the detector of `people_networks`."""
    if not (folder / DETECTOR_FILE).exists():
        write_networks(folder)
    options = {"flip_pairs": [list(pair) for pair in flip_pairs]} if flip_pairs else {}
    return tiny_sapiens2.saved(folder, "Sapiens2ForPoseEstimation", points, **options)


def operator_of(folder, **options):
    return Sapiens2Pose(checkpoint=saved(folder), detector=str(folder), **options)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint, and persons added to the frames."""
    shown = frames.copy()
    for number, frame in enumerate(shown):
        frame[8:24, 8 + 2 * number : 28 + 2 * number] = PERSON_BGR[::-1]
    return operator_of(folder), DecodedClip.from_frames(shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("sapiens2_pose")
    saved(place)
    return place


def frame_with(*cells):
    """uint8 [256, 320, 3] RGB: noise, and at each cell (column, row; 16 px each) a person."""
    frame = np.random.default_rng(0).integers(0, 120, (HEIGHT, WIDTH, 3), np.uint8)
    for column, row in cells:
        frame[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = PERSON_BGR[::-1]
    return frame


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(np.stack(frames)))


def box_of(cell):
    """Corner and sides of the box that the detector gives a person, 80 x 128 px in the middle of the cell."""
    return [16 * cell[0] + 8 - 40.0, 16 * cell[1] + 8 - 64.0, 80.0, 128.0]


def test_the_points_are_those_that_the_authors_name_in_both_layouts():
    assert COCO_TO_SAPIENS2 == BY_THE_AUTHORS
    assert len(set(COCO_TO_SAPIENS2.values())) == 53


def test_every_point_goes_to_its_place_and_the_others_are_missing():
    places = np.stack([np.arange(308), 1000 + np.arange(308)], axis=1).astype(np.float32)
    points = whole_body(places, np.linspace(0.1, 1.4, 308))
    assert points.dtype == np.float32
    for ours, theirs in BY_THE_AUTHORS.items():
        assert points[ours, :2].tolist() == [theirs + 0.5, 1000.5 + theirs]
        assert points[ours, 2] == pytest.approx(min(1.0, 0.1 + 1.3 * theirs / 307))
    others = sorted(set(range(133)) - set(BY_THE_AUTHORS))
    assert len(others) == 80
    assert not points[others].any()


def test_points_that_were_not_found_are_missing():
    scores = np.ones(308)
    scores[[0, 1, 2]] = 0.0, -0.2, np.nan
    places = np.ones((308, 2))
    places[3] = np.inf, 1
    points = whole_body(places, scores)
    assert not points[:4].any()
    assert points[4].tolist() == [1.5, 1.5, 1.0]


@pytest.mark.parametrize("flip", [False, True])
def test_poses_are_those_of_the_library(folder, flip):
    cells = [(6, 6), (13, 9)]
    frame = frame_with(*cells)
    found = annotate(operator_of(folder, flip_test=flip), [frame]).skeleton.array
    checkpoint = saved(folder)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    network = Sapiens2ForPoseEstimation.from_pretrained(checkpoint).eval()
    boxes = [[box_of(cell) for cell in cells]]
    inputs = processor(images=[frame], boxes=boxes, return_tensors="pt")
    with torch.no_grad():
        raw, mirrored = network(**inputs), None
        if flip:
            pairs = torch.tensor(network.config.flip_pairs)
            mirrored = network(pixel_values=inputs["pixel_values"].flip(-1), flip_pairs=pairs)
    (theirs,) = processor.post_process_pose_estimation(raw, boxes=boxes, outputs_flipped=mirrored)
    expected = [whole_body(one["keypoints"].numpy(), one["scores"].numpy()) for one in theirs]
    assert found.shape == (1, 2, 133, 3)
    order = [0, 1] if np.abs(found[0, 0] - expected[0]).max() < np.abs(found[0, 0] - expected[1]).max() else [1, 0]
    for place, other in enumerate(order):
        assert (found[0, place, :, 2] > 0).sum() > 20
        assert np.allclose(found[0, place], expected[other], rtol=0, atol=5e-3)  # boxes of 32-bit logarithms


def test_persons_keep_their_place_and_frames_without_them_have_none(folder):
    cells = [[(6, 6)], [(7, 6)], [], [(8, 6), (15, 9)]]
    found = annotate(operator_of(folder), [frame_with(*there) for there in cells])
    array = found.skeleton.array
    assert array.shape == (4, 2, 133, 3)
    assert array[..., 2].any(axis=2).tolist() == [[True, False], [True, False], [False, False], [True, True]]
    assert (found.persons_max, found.identity_count, found.person_share, found.relink_count) == (2, 2, 0.75, 1)
    assert found.box_share == pytest.approx(80 * 128 / (WIDTH * HEIGHT), rel=1e-5)
    one = annotate(operator_of(folder, max_persons=1), [frame_with(*there) for there in cells])
    assert one.skeleton.array.shape[1] == 1


def test_nobody_is_nobody(folder):
    found = annotate(operator_of(folder), [frame_with()] * 2)
    assert found.skeleton.array.shape == (2, 0, 133, 3)
    assert found[1:] == (0, 0.0, 0, 0.0, None, None, None, 0, None)


def test_batches_do_not_change_the_poses(folder):
    frames = [frame_with((4, 5), (13, 9)), frame_with((5, 5)), frame_with((6, 5))]
    one, many = (annotate(operator_of(folder, frames_per_batch=count), frames).skeleton.array for count in (1, 8))
    assert np.allclose(one[..., 2], many[..., 2], atol=1e-4)
    assert np.mean(np.abs(one - many) > 0.05) < 0.02  # a maximum that two pixels share may move


def test_bf16_stays_near_fp32(folder):
    frames = [frame_with((6, 6))]
    exact, half = (annotate(operator_of(folder, precision=one), frames).skeleton.array for one in ("fp32", "bf16"))
    assert 0 < np.abs(exact[..., 2] - half[..., 2]).max() < 0.2


def test_other_files_are_refused_with_what_is_needed(tmp_path):
    good = saved(tmp_path)
    with pytest.raises(OpenUniError, match=r"expected one output .* from a YOLOX export without built-in NMS"):
        Sapiens2Pose(checkpoint=good, detector=str(tmp_path), detector_file=POSE_FILE).load("cpu")
    with pytest.raises(MissingRequirement, match=r"other\.onnx not found in .* set detector_file"):
        Sapiens2Pose(checkpoint=good, detector=str(tmp_path), detector_file="other.onnx").load("cpu")
    with pytest.raises(OpenUniError, match="name of a file in `detector`, without a folder"):
        Sapiens2Pose(detector_file="../yolox.onnx")
    alone = Path(tmp_path / "alone.onnx")
    write_detector(alone, (40, 64))
    assert Sapiens2Pose(checkpoint=good, detector=str(alone)).load("cpu").detector.height_px == 128
    other = tmp_path / "17"
    other.mkdir()
    with pytest.raises(OpenUniError, match="the network has 17 outputs, must have 308"):
        Sapiens2Pose(checkpoint=saved(other, points=17), detector=str(tmp_path)).load("cpu")
    plain = tmp_path / "plain"
    plain.mkdir()
    checkpoint = saved(plain, flip_pairs=())
    with pytest.raises(OpenUniError, match=r"which points are mirrored .* Set flip_test = false"):
        Sapiens2Pose(checkpoint=checkpoint, detector=str(plain)).load("cpu")
    Sapiens2Pose(checkpoint=checkpoint, detector=str(plain), flip_test=False).load("cpu")


def test_checkpoints_are_the_network_and_the_detector():
    network, detector = Sapiens2Pose().checkpoints()
    assert (network.ref, network.terms) == ("facebook/sapiens2-pose-0.4b", "use-restricted")
    assert (detector.ref, detector.only, detector.terms) == (REPOSITORY, (DETECTOR_FILE,), "permissive")
    assert Sapiens2Pose(detector="./nowhere").checkpoints()[1].store == "path"
    assert [one.ref for one in Sapiens2Pose.published()] == [
        f"facebook/sapiens2-pose-{size}" for size in ("0.4b", "0.8b", "1b", "5b")
    ]
