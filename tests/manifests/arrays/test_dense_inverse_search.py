"""DIS on frames of every shape: OpenCV's own choice of pyramid levels crashes the process on low, wide frames."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from openuni.manifests.arrays.dense_inverse_search import PRESETS, dis_estimator, fits_dis
from openuni.manifests.errors import ClipError
from tests.moving_pictures import panned

# Runs in its own process, which a regression would kill.
SWEEP = """
import cv2, numpy as np
from openuni.manifests.arrays.dense_inverse_search import PRESETS, dis_estimator

random = np.random.default_rng(0)
for preset in PRESETS:
    for short_px in (8, 9, 11, 12, 15, 16, 17, 24, 31, 32, 33, 64):
        for long_px in (12, 13, 16, 39, 40, 41, 64, 79, 80, 96, 128, 159, 160, 192, 256, 330):
            for size in ((short_px, long_px), (long_px, short_px)):
                estimator = dis_estimator(preset, *size, "test")
                for _ in range(2):
                    before, after = random.integers(0, 256, (2, *size), dtype=np.uint8)
                    flow = estimator.calc(before, after, np.zeros((*size, 2), np.float32))
                    assert np.isfinite(flow).all(), (preset, size)
print("all sizes")
"""


def test_no_size_crashes_the_process_or_gives_nan():
    done = subprocess.run([sys.executable, "-c", SWEEP], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "all sizes"), done.stderr


@pytest.mark.parametrize("size", [(12, 40), (14, 240), (30, 200)])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_low_wide_frame_has_the_flow_of_its_content(size, preset):
    before, after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in panned([(0, 0), (1, 0)], *size))
    flow = dis_estimator(preset, *size, "test").calc(before, after, np.zeros((*size, 2), np.float32))
    assert np.median(flow[..., 0]) == pytest.approx(1, abs=0.1)
    assert np.median(flow[..., 1]) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("size", [(48, 64), (64, 10), (256, 12), (16, 64), (320, 576)])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_other_frames_have_the_flow_of_an_unchanged_estimator(size, preset):
    before, after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in panned([(0, 0), (1, 1)], *size))
    ours = dis_estimator(preset, *size, "test").calc(before, after, np.zeros((*size, 2), np.float32))
    plain = cv2.DISOpticalFlow.create(PRESETS[preset])
    assert np.array_equal(ours, plain.calc(before, after, np.zeros((*size, 2), np.float32)))


@pytest.mark.parametrize("size", [(1, 1), (1, 256), (7, 64), (64, 7), (8, 8), (11, 11)])
def test_frames_that_opencv_rejects_are_an_error_of_the_clip(size):
    assert not fits_dis(*size)
    with pytest.raises(ClipError, match=rf"motion: .*sides >= 8 px and one side >= 12 px, got {size[1]} x {size[0]}"):
        dis_estimator("fast", *size, "motion")
