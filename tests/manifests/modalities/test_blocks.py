"""Maps that come in blocks of frames are stored and read as those that come at once: bytes, constants, values."""

import io

import numpy as np
import pytest

from openuni.manifests.contracts.modality import find_modality, modality_names
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.foreground import Foreground
from openuni.manifests.modalities.irradiance import Irradiance
from openuni.manifests.modalities.rgb import RGB
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.video.video_errors import VideoError
from openuni.world import make_clip

FRAMES = 7


@pytest.fixture(scope="module")
def maps():
    """One map of every modality."""
    found = dict(make_clip(1, frames=FRAMES, height_px=48, width_px=64, preset="layers").modalities)
    rng = np.random.default_rng(0)
    made = {"densepose": DensePose(rng.integers(0, 25, (FRAMES, 48, 64, 3), np.uint8))}
    made["alpha"] = Alpha(rng.random((FRAMES, 48, 64, 1), np.float32))
    made["albedo"] = Albedo(rng.random((FRAMES, 48, 64, 3), np.float32))
    made["irradiance"] = Irradiance(rng.random((FRAMES, 48, 64, 3), np.float32) * 3)
    made["rgb"], made["foreground"], made["background"] = (
        kind(rng.integers(0, 256, (FRAMES, 48, 64, 3), np.uint8)) for kind in (RGB, Foreground, Background)
    )
    return found | made


def blocks(signal, size):
    return [signal.take(start, min(start + size, FRAMES)) for start in range(0, FRAMES, size)]


@pytest.mark.parametrize("name", modality_names())
@pytest.mark.parametrize("size", range(1, FRAMES + 1))
@pytest.mark.parametrize("compact", [False, True], ids=["full", "compact"])
def test_blocks_are_stored_and_read_as_the_whole(maps, name, size, compact):
    if name == "skeleton":
        pytest.skip("stored as tensors")
    signal = maps[name]
    whole, file = signal.encode_compact(25) if compact else signal.encode(25), io.BytesIO()
    payload = type(signal).encode_blocks(blocks(signal, size), 25, file, compact=compact)
    assert file.getvalue() == whole.data
    assert (payload.constants, payload.frames, payload.size_px) == (
        whole.constants,
        FRAMES,
        whole.size_px or signal.size_px,
    )
    file.seek(0)
    back = type(signal).joined(list(type(signal).decode_blocks(file, payload.constants, size)))
    expected = type(signal).decode(whole.data, whole.constants)
    for field in signal.frame_fields:
        np.testing.assert_array_equal(getattr(back, field), getattr(expected, field))


def test_only_skeletons_are_not_stored_as_video():
    assert [name for name in modality_names() if not find_modality(name).is_streamable()] == ["skeleton"]


def test_constants_are_those_of_the_extreme_block():
    speeds = np.zeros((FRAMES, 8, 9, 2), np.float32)
    speeds[4, 3, 3] = 700, -3  # the coarser step, and nothing near the percentile
    flow = Flow(speeds)
    assert Flow.constants_of(blocks(flow, 2)) == flow.constants() and flow.constants().step_px == 1 / 32
    metres = Depth(np.linspace(0.5, 9, FRAMES * 6, dtype=np.float32).reshape(FRAMES, 2, 3, 1), "metres")
    assert Depth.constants_of(blocks(metres, 3))[1:3] == (0.5, 9.0)
    ids = Segmentation(np.zeros((FRAMES, 4, 4, 1), np.uint16))
    ids.array[6, 0, 0] = 300  # 16 bits for all frames
    file = io.BytesIO()
    assert Segmentation.encode_blocks(blocks(ids, 3), 25, file).constants.ids == [0, 300]
    assert file.getvalue() == ids.encode(25).data


def test_blocks_of_another_unit_or_size_are_refused():
    one = np.ones((1, 4, 4, 1), np.float32)
    with pytest.raises(ClipError, match="one unit"):
        Depth.encode_blocks([Depth(one), Depth(one, "metres")], 25, io.BytesIO())
    with pytest.raises((VideoError, ValueError), match="same shape"):
        Depth.encode_blocks([Depth(one), Depth(np.ones((1, 4, 6, 1), np.float32))], 25, io.BytesIO())


def test_damage_is_found_at_the_latest_after_the_last_block(maps):
    payload = maps["depth"].encode(25)
    data = bytearray(payload.data)
    data[-200:-150] = bytes(50)
    with pytest.raises(ClipError, match="damaged"):
        list(Depth.decode_blocks(io.BytesIO(bytes(data)), payload.constants, 2))
