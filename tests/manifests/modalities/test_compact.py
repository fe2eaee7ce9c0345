"""Maps in a bounded number of bits: the bound holds, and so does the error that the row states."""

import cv2
import numpy as np
import pytest

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._compact import FILE_BYTES, FRAME_BYTES
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import COMPACT_BITS_PER_PX as DEPTH_BITS
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import COMPACT_BITS_PER_PX as FLOW_BITS
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.segmentation import COMPACT_BITS_PER_PX as IDS_BITS
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton, SkeletonConstants
from tests.manifests.modalities.people import standing

FRAMES, HEIGHT_PX, WIDTH_PX = 12, 120, 160


def bits_per_px(data: bytes) -> float:
    return len(data) * 8 / (FRAMES * HEIGHT_PX * WIDTH_PX)


def surface(noise: float) -> np.ndarray:
    """Waves that move, and noise that no codec foresees: float32 [T, H, W, 1] in 0..1."""
    t, y, x = np.meshgrid(np.arange(FRAMES), np.arange(HEIGHT_PX), np.arange(WIDTH_PX), indexing="ij")
    smooth = 0.5 + 0.4 * np.sin((x + 2 * t) / 90) * np.cos(y / 110)
    rough = np.random.default_rng(0).uniform(-noise, noise, smooth.shape)
    return np.clip(smooth + rough, 0, 1)[..., None].astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("unit", ["disparity", "metres"])
def test_depth_keeps_the_bound_and_the_error_that_its_levels_state(noise: float, unit: str) -> None:
    depth = Depth(surface(noise) + (1 if unit == "metres" else 0), unit)
    payload = depth.encode_compact(25)
    back = Depth.decode(payload.data, payload.constants)
    assert bits_per_px(payload.data) <= DEPTH_BITS
    if payload.size_px == depth.size_px:
        lo, hi, levels = payload.constants.lo, payload.constants.hi, payload.constants.levels
        if unit == "disparity":
            assert np.abs(back.array - depth.array).max() <= (hi - lo) / (2 * levels) * 1.001 + 1e-6
        else:
            assert np.abs(np.log(back.array / depth.array)).max() <= np.log(hi / lo) / (2 * levels) * 1.001 + 1e-6


def test_the_rougher_the_fewer_levels_and_in_the_end_a_smaller_map() -> None:
    payloads = [Depth(surface(noise)).encode_compact(25) for noise in (0.0, 0.0003, 0.3)]
    levels = [payload.constants.levels for payload in payloads]
    assert levels[0] > levels[1] >= 255
    assert payloads[0].size_px == payloads[1].size_px == (HEIGHT_PX, WIDTH_PX)
    height_px, width_px = payloads[2].size_px
    assert height_px < HEIGHT_PX and bits_per_px(payloads[2].data) <= DEPTH_BITS
    assert Depth.decode(payloads[2].data, payloads[2].constants).size_px == (height_px, width_px)


def test_a_window_of_a_compact_clip_has_the_clips_scale() -> None:
    payload = Depth(surface(0.002)).encode_compact(25)
    back = Depth.decode(payload.data, payload.constants)
    np.testing.assert_array_equal(back.take(3, 5).to_rgb(), back.to_rgb()[3:5])
    assert back.encode(25).constants.levels == 65535


@pytest.mark.parametrize("levels", [0, -1, 65536])
def test_levels_from_a_strangers_file_are_checked(levels: int) -> None:
    payload = Depth(surface(0.0)).encode(25)
    with pytest.raises(ClipError, match="levels"):
        Depth.decode(payload.data, payload.constants._replace(levels=levels))


@pytest.mark.parametrize("noise_px", [0.0, 0.05, 0.5])
def test_flow_keeps_the_bound_and_the_error_of_its_step(noise_px: float) -> None:
    random = np.random.default_rng(1)
    array = np.concatenate([surface(0.0) * 20 - 7, surface(0.0) * 3], axis=-1)
    array += random.uniform(-noise_px, noise_px, array.shape).astype(np.float32)
    valid = random.random((*array.shape[:3], 1)) > 0.01
    flow = Flow(array.astype(np.float32), valid)
    payload = flow.encode_compact(25)
    back = Flow.decode(payload.data, payload.constants)
    assert bits_per_px(payload.data) <= FLOW_BITS
    if payload.size_px == flow.size_px:
        assert payload.constants.divisor_px == flow.constants().divisor_px
        assert np.abs(back.array - flow.array).max() <= payload.constants.step_px / 2 * 1.001
        np.testing.assert_array_equal(back.valid, valid)


def test_flow_of_smooth_motion_stays_at_its_finest() -> None:
    flow = Flow(np.repeat(surface(0.0), 2, axis=-1))
    assert flow.encode_compact(25).constants == flow.encode(25).constants


def test_key_points_in_half_the_bytes() -> None:
    people = np.stack([standing((30.0, 10.0), 60.0), standing((90.0, 5.0), 70.0)])
    points = np.repeat(people[None], FRAMES, axis=0).astype(np.float32)
    points[3:, 1] = 0  # the second one leaves
    points[5, 0, 7, 2] = 0.0005
    skeleton = Skeleton(points, HEIGHT_PX, WIDTH_PX)
    payload = skeleton.encode_compact(25)
    assert len(payload.data) < 0.45 * len(skeleton.encode(25).data)
    back = Skeleton.decode(payload.data, payload.constants)
    back.check()
    assert np.abs(back.array[..., :2] - points[..., :2]).max() <= 1 / 32
    assert np.abs(back.array[..., 2] - points[..., 2]).max() <= 1 / 255
    np.testing.assert_array_equal(back.array[..., 2] > 0, points[..., 2] > 0)
    np.testing.assert_array_equal(back.array[..., 2] >= 0.3, points[..., 2] >= 0.3)


def test_key_points_far_out_take_a_coarser_step() -> None:
    points = np.zeros((1, 1, 133, 3), np.float32)
    points[0, 0, 0] = 5000.3, -3000.7, 1
    payload = Skeleton(points, 4000, 6000).encode_compact(25)
    assert payload.constants.step_px == 1 / 4
    assert np.abs(Skeleton.decode(payload.data, payload.constants).array - points).max() <= 1 / 8
    nobody = Skeleton(np.zeros((2, 0, 133, 3), np.float32), 40, 60).encode_compact(25)
    assert Skeleton.decode(nobody.data, nobody.constants).array.shape == (2, 0, 133, 3)


def test_a_compact_file_is_not_taken_for_an_exact_one() -> None:
    points = standing((30.0, 10.0), 60.0)[None, None].astype(np.float32)
    skeleton = Skeleton(points, HEIGHT_PX, WIDTH_PX)
    exact, compact = skeleton.encode(25), skeleton.encode_compact(25)
    for data, constants in ((exact.data, compact.constants), (compact.data, exact.constants)):
        with pytest.raises(ClipError, match="stored tensor"):
            Skeleton.decode(data, SkeletonConstants(*constants))
    with pytest.raises(ClipError, match="step_px"):
        Skeleton.decode(compact.data, compact.constants._replace(step_px=-1.0))


@pytest.mark.parametrize(("height_px", "width_px"), [(120, 160), (37, 53), (2, 3), (1, 1)])
@pytest.mark.parametrize("kind", [Segmentation, DensePose])
def test_ids_and_parts_are_exact_and_smaller(
    kind: type[Segmentation | DensePose], height_px: int, width_px: int
) -> None:
    rough = np.random.default_rng(0).normal(size=(height_px + FRAMES, width_px + 2 * FRAMES))
    smooth = cv2.GaussianBlur(rough, (0, 0), 6)
    shapes = np.digitize(smooth / smooth.std(), [0.4, 1.2]).astype(np.uint16) * 12
    pans = [shapes[t : t + height_px, 2 * t : 2 * t + width_px] for t in range(FRAMES)]
    array = np.ascontiguousarray(np.stack(pans)[..., None])
    if kind is DensePose:
        array = np.concatenate([array, array * 9, 255 - array], axis=-1).astype(np.uint8)
    maps = kind(array)
    exact, compact = maps.encode(25), maps.encode_compact(25)
    assert compact.size_px == maps.size_px
    np.testing.assert_array_equal(kind.decode(compact.data, compact.constants).array, array)
    assert compact.data == maps.encode_compact(25).data, "equal maps give equal bytes"
    if height_px == 120:
        assert len(compact.data) < 0.7 * len(exact.data)
        damaged = bytearray(compact.data)
        damaged[-len(damaged) // 3] ^= 64
        with pytest.raises(ClipError):
            kind.decode(bytes(damaged), compact.constants)


def test_ids_too_ragged_for_the_bound_are_halved() -> None:
    noise = np.random.default_rng(0).integers(0, 9, (FRAMES, HEIGHT_PX, WIDTH_PX, 1)).astype(np.uint16)
    ids = Segmentation(noise)
    compact = ids.encode_compact(25)
    assert compact.size_px < ids.size_px
    assert len(compact.data) <= max(IDS_BITS * noise.size / 8, FILE_BYTES + FRAMES * FRAME_BYTES)
    np.testing.assert_array_equal(
        Segmentation.decode(compact.data, compact.constants).array, halved(ids, compact.size_px).array
    )


def halved(signal: Modality, size_px: tuple[int, int]) -> Modality:
    while signal.size_px != size_px:
        signal = signal.resize(max(1, signal.size_px[0] // 2), max(1, signal.size_px[1] // 2))
    return signal


def test_ids_that_need_16_bits_are_stored_as_ever() -> None:
    ids = Segmentation((surface(0.0) > 0.5).astype(np.uint16) * 300)
    assert ids.encode_compact(25).data == ids.encode(25).data
