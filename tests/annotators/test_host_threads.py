"""Work on frames in threads: the same results, and the guide flow in the background of a network."""

import threading

import cv2
import numpy as np
import pytest

from openuni.annotators._guide_flow import guide_flow, guide_flow_in_background
from openuni.annotators._host_threads import in_threads
from openuni.annotators.dis import Dis
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError
from tests.moving_pictures import panned

FRAMES = panned([(2 * step, step % 3) for step in range(5)], 48, 64)


@pytest.fixture(params=[1, 3])
def threads(request):
    """OpenCV's threads, and so ours."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(request.param)
    yield request.param
    cv2.setNumThreads(before)


def test_results_are_in_order_and_threads_end(threads):
    running = threading.active_count()
    together = threading.Barrier(threads, timeout=30)

    def work(number, add):
        if number < threads:
            together.wait()  # passes only if that many calls run at the same time
        return number + add

    assert in_threads(work, range(20), [100] * 20) == list(range(100, 120))
    assert threading.active_count() == running


def test_the_first_error_arrives(threads):
    def fails(number):
        raise ClipError(f"frame {number}")

    with pytest.raises(ClipError, match="frame 0"):
        in_threads(fails, range(4))


@pytest.mark.parametrize("width_px", [64, 43, 45, 50])
def test_flow_does_not_depend_on_threads(width_px):
    """Nor on chance: at widths that its patches do not fill, an estimator keeps values of the pair before."""
    frames = np.ascontiguousarray(FRAMES[:, :32, :width_px])
    found = []
    before = cv2.getNumThreads()
    for count in (1, 2, 5, 5):
        cv2.setNumThreads(count)
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
