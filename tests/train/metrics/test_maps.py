"""Known answers, and agreement with the public code of the papers, whose figures for these inputs stand here."""

import cv2
import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.normal import Normal
from openuni.manifests.modalities.rgb import RGB
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.training.metrics.alpha import matte_errors
from openuni.training.metrics.densepose import DensePoseMetric
from openuni.training.metrics.normal import NormalMetric
from openuni.training.metrics.pictures import PictureMetric
from openuni.training.metrics.segmentation import SegmentationMetric, contour_f_measure, frame_iou
from openuni.training.metrics.skeleton import SIGMAS, SkeletonMetric


def normals(*angles_deg: float) -> Normal:
    """Turned away from the viewer by these angles, one pixel each."""
    turn = np.radians(angles_deg)
    return Normal(np.stack([np.sin(turn), 0 * turn, np.cos(turn)], axis=-1).astype(np.float32)[None, None])


def test_angles_of_normals_by_hand() -> None:
    found = NormalMetric().of_clip(normals(0, 10, 20, 25, 60), normals(0, 0, 0, 0, 0))
    assert found == pytest.approx(
        {"mean_deg": 23, "median_deg": 20, "within_11_25_deg": 0.4, "within_22_5_deg": 0.6, "within_30_deg": 0.8},
        abs=1e-4,
    )


def test_a_pixel_without_a_surface_counts_only_if_the_truth_has_one() -> None:
    nothing = np.zeros((1, 1, 1, 3), np.float32)
    some = Normal(np.concatenate([normals(0).array, nothing], axis=2))
    assert NormalMetric().of_clip(normals(0, 30), some)["mean_deg"] == pytest.approx(0, abs=1e-4)
    assert NormalMetric().of_clip(some, normals(0, 0))["mean_deg"] == pytest.approx(45, abs=1e-4)
    with pytest.raises(ClipError, match="true surface"):
        NormalMetric().of_clip(normals(0), Normal(nothing))


def test_pictures_by_hand() -> None:
    true = RGB(np.full((2, 16, 16, 3), 128, np.uint8))
    predicted = RGB(np.full((2, 16, 16, 3), 128 + 51, np.uint8))
    found = PictureMetric().of_clip(predicted, true)
    assert found["psnr_db"] == pytest.approx(-10 * np.log10(0.04)) and found["mae"] == pytest.approx(0.2)
    assert found["scale_invariant_error"] == pytest.approx(0, abs=1e-9)
    small = PictureMetric().of_clip(RGB(true.array[:, :8]), RGB(true.array[:, :8]))
    assert small["ssim"] is None and small["psnr_db"] == 100


def test_the_colour_of_the_light_costs_albedo_nothing() -> None:
    reflectance = np.random.default_rng(0).uniform(0.1, 0.5, (1, 12, 12, 3)).astype(np.float32)
    tinted = Albedo(reflectance * np.array([1.5, 1.0, 0.5], np.float32))
    found = PictureMetric().of_clip(tinted, Albedo(reflectance))
    assert found["scale_invariant_error"] == pytest.approx(0, abs=1e-9) and found["psnr_db"] < 30
    other = Albedo(np.random.default_rng(1).uniform(0.1, 0.5, (1, 12, 12, 3)).astype(np.float32))
    assert PictureMetric().of_clip(other, Albedo(reflectance))["scale_invariant_error"] > 0.05


def mattes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random mattes of three frames, and others near them: float32 [3, 30, 40]."""
    draw = np.random.default_rng(seed)

    def one() -> np.ndarray:
        small = draw.random((3, 6, 8)).astype(np.float32)
        large = np.stack([cv2.resize(frame, (40, 30), interpolation=cv2.INTER_LINEAR) for frame in small])
        return np.clip(1.6 * large - 0.3, 0, 1).astype(np.float32)

    true = one()
    return np.clip(0.7 * true + 0.3 * one(), 0, 1).astype(np.float32), true


@pytest.mark.parametrize(
    ("seed", "theirs"),
    [
        (0, (103.82310, 17.343609, 0.12603492, 0.13363715, 20.856812)),
        (1, (102.93726, 17.028734, 0.12549235, 0.12822917, 18.325445)),
    ],
)
def test_matte_errors_are_those_of_robust_video_matting(seed: int, theirs: tuple[float, ...]) -> None:
    assert matte_errors(*mattes(seed)) == pytest.approx(theirs, rel=1e-5)


def test_a_single_matte_has_no_change_over_time() -> None:
    predicted, true = mattes(0)
    assert matte_errors(predicted[:1], true[:1]).dtssd_e2 is None


@pytest.mark.parametrize(
    ("size", "theirs"),
    [
        ((30, 40), (0.7930380837497846, 0.627177700348432)),
        ((120, 160), (0.34078361256676765, 0.5382612347753045)),
        ((200, 300), (0.18505141170865164, 0.7726570356380761)),
    ],
)
def test_contours_and_regions_are_those_of_davis(size: tuple[int, int], theirs: tuple[float, float]) -> None:
    draw = np.random.default_rng(3)
    for other in ((30, 40), (120, 160), (200, 300)):
        small = draw.random((2, 5, 7)).astype(np.float32)
        first, second = (cv2.resize(frame, other[::-1]) > 0.55 for frame in small)
        first |= cv2.resize(small[1], other[::-1]) > 0.6
        if other == size:
            assert (contour_f_measure(first, second), frame_iou(first, second)) == pytest.approx(theirs)
    empty = np.zeros((9, 9), bool)
    assert contour_f_measure(empty, empty) == frame_iou(empty, empty) == 1
    assert contour_f_measure(empty, np.eye(9, dtype=bool)) == 0


def segments(*rows: str) -> Segmentation:
    """One frame per row of ids."""
    return Segmentation(np.array([[int(char) for char in row] for row in rows], np.uint16)[:, None, :, None])


def test_ids_need_not_agree_and_each_instance_is_matched_once() -> None:
    true = segments("111100222200", "111100222200")
    swapped = segments("222200111100", "222200111100")
    assert set(SegmentationMetric().of_clip(swapped, true).values()) == {1.0}
    joined = SegmentationMetric().of_clip(segments("111100111100", "111100111100"), true)
    assert joined["mean_iou"] == 0.25  # one of two instances, at IoU 0.5
    assert joined["average_precision"] == pytest.approx(0.1 * 1 / (1 + 2 - 1))  # found at the first of ten thresholds
    lost = SegmentationMetric().of_clip(segments("000000000000", "000000000000"), true)
    assert lost["mean_iou"] == lost["region_j"] == lost["average_precision"] == 0
    with pytest.raises(ClipError, match="at least one true instance"):
        SegmentationMetric().of_clip(true, segments("000000000000", "000000000000"))


def test_an_instance_that_changes_its_id_is_worse_than_one_that_keeps_it() -> None:
    true = segments("1111", "1111", "1111", "1111")
    found = SegmentationMetric().of_clip(segments("1111", "1111", "1111", "2222"), true)
    assert found["mean_iou"] == found["region_j"] == 0.75


def persons(*points: np.ndarray) -> Skeleton:
    """Persons of one frame, of 100 x 100 px; 17 points each, float [17, 2]."""
    array = np.zeros((1, len(points), 133, 3), np.float32)
    for index, person in enumerate(points):
        array[0, index, :17, :2], array[0, index, :17, 2] = person, 1
    return Skeleton(array, 100, 100)


def body(x_px: float) -> np.ndarray:
    """Points on a box of 10 x 20 px."""
    rows = np.linspace(0, 20, 17)
    return np.stack([x_px + 10 * (np.arange(17) % 2), 30 + rows], axis=-1)


def test_key_points_by_hand() -> None:
    true, moved = persons(body(10)), body(10)
    moved[:, 0] += 3
    expected = np.exp(-9 / (2 * np.square(2 * SIGMAS) * 0.53 * 200)).mean()
    found = SkeletonMetric().of_clip(persons(moved), true)
    assert found["oks"] == pytest.approx(expected) and found["pck"] == 1  # 3 px of 0.2 x 20
    moved[:8, 0] += 2
    assert SkeletonMetric().of_clip(persons(moved), true)["pck"] == pytest.approx(9 / 17)


def test_persons_are_matched_in_any_order_and_others_count_as_wrong() -> None:
    true = persons(body(10), body(60))
    found = SkeletonMetric().of_clip(persons(body(60), body(10), body(85)), true)
    assert found == {"oks": 1, "pck": 1, "person_recall": 1, "person_precision": pytest.approx(2 / 3)}
    half = SkeletonMetric().of_clip(persons(body(60)), true)
    assert half == {"oks": 0.5, "pck": 0.5, "person_recall": 0.5, "person_precision": 1}
    assert SkeletonMetric().of_clip(persons(), true)["person_precision"] is None
    with pytest.raises(ClipError, match="at least one true person"):
        SkeletonMetric().of_clip(true, persons())


def surface(parts: list[int], u: int) -> DensePose:
    """One row of pixels."""
    array = np.zeros((1, 1, len(parts), 3), np.uint8)
    array[0, 0, :, 0], array[0, 0, :, 1] = parts, np.where(parts, u, 0)
    return DensePose(array)


def test_body_parts_by_hand() -> None:
    found = DensePoseMetric().of_clip(surface([1, 1, 2, 0, 2], 51), surface([1, 2, 2, 2, 0], 0))
    assert found["part_iou"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["person_iou"] == 3 / 5 and found["uv_error"] == pytest.approx(0.2)
    with pytest.raises(ClipError, match="true body part"):
        DensePoseMetric().of_clip(surface([1], 0), surface([0], 0))
