"""The flow that annotators share."""

import dataclasses

import cv2
import numpy as np
import pytest

from openuni.annotators._guide_flow import guide_flow, guide_flow_in_background, warp
from openuni.annotators.dis import Dis
from openuni.manifests.contracts.decoded_clip import DecodedClip
from tests.moving_pictures import panned

FRAMES = panned([(2 * step, step % 3) for step in range(5)], 48, 64)


def texture(height_px, width_px):
    noise = np.random.default_rng(0).integers(0, 256, (height_px, width_px, 3)).astype(np.float32)
    return (cv2.GaussianBlur(noise, (0, 0), 3) * 4 % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def clip():
    wide = texture(96, 200)
    return DecodedClip.from_frames(np.stack([wide[:, 30 - 4 * t : 158 - 4 * t] for t in range(3)]))


def test_a_texture_that_moves_four_pixels_to_the_right(clip):
    flow = guide_flow(clip)
    assert flow.forward.shape == (2, 96, 128, 2) and flow.size_px == (96, 128)
    inner = slice(16, -16)
    assert np.abs(flow.forward[:, inner, inner] - [4, 0]).mean() < 0.1
    assert np.abs(flow.backward[:, inner, inner] + [4, 0]).mean() < 0.1
    assert flow.forward_valid[:, inner, inner].mean() > 0.99
    assert not flow.forward_valid[:, :, -3:].any(), "what leaves the picture cannot be confirmed"


def test_it_is_computed_once_and_travels_with_the_maps(clip):
    assert guide_flow(clip) is guide_flow(clip)
    assert guide_flow(dataclasses.replace(clip, maps={})) is guide_flow(clip)
    assert guide_flow(clip, 48) is not guide_flow(clip)
    assert guide_flow(clip, 48).size_px == (48, 64)
    assert guide_flow(clip.take(np.array([0, 2]))).forward.shape[0] == 1


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 4, 64)])
def test_nothing_to_match_is_no_motion_and_nowhere_valid(shape):
    flow = guide_flow(DecodedClip.from_frames(np.zeros((*shape, 3), np.uint8)))
    assert len(flow.forward) == shape[0] - 1
    assert not flow.forward.any() and not flow.forward_valid.any() and not flow.backward_valid.any()


def test_values_are_carried_from_where_a_pixel_goes():
    ids = np.zeros((8, 8), np.uint16)
    ids[2:4, 5:7] = 9
    flow = np.full((8, 8, 2), (3, 1), np.float32)
    moved = warp(ids, flow, nearest=True)
    assert moved[1:3, 2:4].tolist() == [[9, 9], [9, 9]] and (moved > 0).sum() == 4


# ---------------------------------------------------------------------- threads


@pytest.mark.parametrize("width_px", [64, 43, 45, 50])
def test_flow_does_not_depend_on_threads(width_px, monkeypatch):
    """Nor on chance: at widths that its patches do not fill, an estimator keeps values of the pair before."""
    frames = np.ascontiguousarray(FRAMES[:, :32, :width_px])
    found = []
    before = cv2.getNumThreads()
    for count in (1, 2, 5, 5):
        cv2.setNumThreads(count)
        monkeypatch.setenv("OPENUNI_THREADS", str(count))
        clip = DecodedClip.from_frames(frames)
        flow, guide = Dis().run(None, clip), guide_flow(clip)
        found.append((flow.flow.array, flow.flow.valid, guide.forward, guide.forward_valid, guide.backward_valid))
    cv2.setNumThreads(before)
    assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_the_guide_flow_is_there_when_the_network_is_done():
    clip, alone = DecodedClip.from_frames(FRAMES), DecodedClip.from_frames(FRAMES)
    with guide_flow_in_background(clip):
        pass
    (flow,) = clip.cache.values()
    assert guide_flow(clip) is flow and np.array_equal(flow.forward, guide_flow(alone).forward)


def test_it_survives_a_network_that_fails_and_is_used_by_the_next_try():
    clip = DecodedClip.from_frames(FRAMES)
    with pytest.raises(MemoryError), guide_flow_in_background(clip):
        raise MemoryError("batch too large")
    (flow,) = clip.cache.values()
    assert guide_flow(clip) is flow
