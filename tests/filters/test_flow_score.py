import numpy as np
import pytest

from openuni.filters.flow_score import FlowScore, resized
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from tests.moving_pictures import panned, texture

SHIFT_PX = (3.0, -1.0)


class Stub:
    """A network that sees the same motion everywhere, and remembers what it was shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, before, after):
        self.seen.append((before, after))
        return np.broadcast_to(np.float32(SHIFT_PX), (*before.shape[:2], 2))


def by_torch(frame):
    """As the original prepares a frame: portraits transposed, bilinear with align_corners."""
    import torch

    tensor = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
    tensor = tensor.transpose(2, 3) if tensor.shape[2] > tensor.shape[3] else tensor
    out = torch.nn.functional.interpolate(tensor, (320, 576), mode="bilinear", align_corners=True)
    return out[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (320, 576), (720, 1280), (1280, 720), (64, 64)])
def test_constant_flow_has_its_mean_of_both_directions_whatever_the_shape(size):
    stub = Stub()
    frames = np.stack([texture(*size, seed) for seed in range(3)])
    found = FlowScore().run(stub, DecodedClip.from_frames(frames))
    assert found.mean_abs_px == 2.0
    assert [pair[0].shape for pair in stub.seen] == [(320, 576, 3)] * 2
    assert np.array_equal(stub.seen[0][1], stub.seen[1][0])
    for shown, frame in zip((stub.seen[0][0], *(after for _, after in stub.seen)), frames, strict=True):
        assert np.abs(shown - by_torch(frame)).max() <= 0.51  # ours are whole numbers


def test_frames_0_10_20_30():
    assert FlowScore().sample(np.arange(100) / 25).tolist() == [0, 10, 20, 30]
    assert FlowScore().sample(np.arange(15) / 25).tolist() == [0, 10]
    assert FlowScore(step_frames=2, max_frames=3).sample(np.arange(15) / 25).tolist() == [0, 2, 4]


def test_a_pan_is_measured_in_pixels_at_320_x_576():
    frames = panned([(0, 0), (4, 2), (8, 4)], 160, 288)  # half the size: twice the pixels
    found = FlowScore().run(FlowScore().load("cpu"), DecodedClip.from_frames(frames))
    assert found.mean_abs_px == pytest.approx((8 + 4) / 2, rel=0.03)


def test_one_frame_has_no_score_and_stills_have_0():
    frames = panned([(0, 0), (0, 0)])
    model = FlowScore().load("cpu")
    assert FlowScore().run(model, DecodedClip.from_frames(frames[:1])) == (None,)
    assert FlowScore().run(model, DecodedClip.from_frames(frames)) == (0.0,)


def test_frames_of_one_pixel_are_no_fault():
    assert (resized(np.full((1, 1, 3), 7, np.uint8)) == 7).all()


@pytest.mark.parametrize("wrong", [{"step_frames": 0}, {"max_frames": 1}, {"preset": "slow"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        FlowScore(**wrong)
