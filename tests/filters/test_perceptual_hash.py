import cv2
import numpy as np
import pytest

from openuni.filters.perceptual_hash import PerceptualHash, frame_hash
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from tests.moving_pictures import texture

PICTURES = [texture(180, 320, seed=seed, grain_px=12) for seed in range(12)]


def bits_apart(one, other):
    return ((frame_hash(one) ^ frame_hash(other)) & (2**64 - 1)).bit_count()


def jpeg(frame, quality):
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


COPIES = {
    "coded badly": lambda frame: jpeg(frame, 15),
    "half the size": lambda frame: cv2.resize(frame, (160, 90), interpolation=cv2.INTER_AREA),
    "twice the size": lambda frame: cv2.resize(frame, (640, 360), interpolation=cv2.INTER_CUBIC),
    "other shape": lambda frame: cv2.resize(frame, (240, 180), interpolation=cv2.INTER_LINEAR),
    "brighter, flatter": lambda frame: cv2.convertScaleAbs(frame, alpha=0.7, beta=40),
    "grey to colour": lambda frame: (frame * np.array([1.0, 0.8, 0.6])).astype(np.uint8),
    "cropped by 1 %": lambda frame: frame[2:-2, 3:-3],
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_differ_in_few_bits(copy):
    assert max(bits_apart(frame, copy(np.ascontiguousarray(frame))) for frame in PICTURES) <= 7


def test_other_pictures_differ_in_many_bits():
    apart = [bits_apart(one, other) for place, one in enumerate(PICTURES) for other in PICTURES[:place]]
    assert min(apart) > 16
    assert 28 < np.mean(apart) < 36
    assert min(bits_apart(frame, np.ascontiguousarray(frame[:, ::-1])) for frame in PICTURES) > 12


def test_the_bits_are_frequencies_above_their_median_by_hand():
    frame = PICTURES[0]
    small = cv2.resize(frame[..., 0].astype(np.float64), (32, 32), interpolation=cv2.INTER_AREA)
    step = np.arange(32)
    waves = np.cos(np.pi * (step[None, :] + 0.5) * step[:, None] / 32)
    low = (waves @ small @ waves.T)[:9, :9]
    low[0] /= 2**0.5  # an orthonormal transform weighs the zeroth waves less
    low[:, 0] /= 2**0.5
    chosen = low.ravel()[1:65]
    wanted = sum(1 << (63 - place) for place, above in enumerate(chosen > np.median(chosen)) if above)
    assert frame_hash(frame) % 2**64 == wanted
    assert wanted.bit_count() == 32


def test_frames_without_contrast_have_no_hash():
    black = np.zeros((48, 64, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 4, (48, 64, 3), np.uint8)
    assert frame_hash(black) is None
    assert frame_hash(black + noise) is None  # what coding leaves of black
    found = PerceptualHash().run(None, DecodedClip.from_frames(np.stack([black, texture(48, 64), black])))
    assert found.hashes == [frame_hash(texture(48, 64))]


def test_hashes_are_signed_64_bit_numbers_in_order():
    found = PerceptualHash().run(None, DecodedClip.from_frames(np.stack(PICTURES))).hashes
    assert found == [frame_hash(frame) for frame in PICTURES]
    assert all(-(2**63) <= value < 2**63 for value in found)
    assert min(found) < 0 < max(found)


def test_long_clips_are_sampled_over_their_whole_length():
    times_s = np.arange(2500) / 25
    assert len(PerceptualHash(max_frames=1000).sample(times_s)) == 100
    assert np.allclose(times_s[PerceptualHash(max_frames=4).sample(times_s)], [12, 37, 62, 87], atol=1)
    with pytest.raises(OpenUniError, match="Allowed"):
        PerceptualHash(frames_per_s=0)
    with pytest.raises(OpenUniError, match="Allowed"):
        PerceptualHash(max_frames=0)
