"""Matting by TorchScript networks that the user supplies."""

import numpy as np
import pytest
import torch

from openuni.annotators._scripted_matte import load_scripted
from openuni.annotators.matting import Matting
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


class Recurrent(torch.nn.Module):
    """The signature of RobustVideoMatting's releases; four states that remember, at the scale asked for."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(6, 3, 3, padding=1)

    def forward(
        self,
        src: torch.Tensor,
        r1: torch.Tensor | None = None,
        r2: torch.Tensor | None = None,
        r3: torch.Tensor | None = None,
        r4: torch.Tensor | None = None,
        downsample_ratio: float = 1.0,
    ):
        memory = torch.zeros_like(src[:, 0]) if r1 is None else r1
        alphas: list[torch.Tensor] = []
        fronts: list[torch.Tensor] = []
        for frame in src.unbind(1):
            memory = torch.tanh(self.mix(torch.cat([frame, memory], dim=1)))
            alphas.append(torch.sigmoid(memory[:, :1] * 4 * downsample_ratio))
            fronts.append(1 - frame)
        alpha, front = torch.stack(alphas, dim=1), torch.stack(fronts, dim=1)
        return [front, alpha, memory, memory * 2, memory * 3, memory * 4]


class PerFrame(torch.nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean(dim=1, keepdim=True)


class TooSmall(torch.nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, :1, ::2, ::2]


class TwoSources(torch.nn.Module):
    def forward(self, frames: torch.Tensor, trimap: torch.Tensor) -> torch.Tensor:
        return frames * trimap


def scripted(folder, module):
    path = folder / f"{type(module).__name__}.torchscript"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for value in module.parameters():
            torch.nn.init.normal_(value, 0, 0.5)
    torch.jit.script(module).save(str(path))
    return str(path)


def matte(path, frames, **options):
    operator = Matting(checkpoint=path, **options)
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


def test_chunks_of_a_recurrent_network_do_not_change_alpha_and_states_begin_anew(tmp_path):
    path, frames = scripted(tmp_path, Recurrent()), noise(13, 16, 24)
    one, twelve = matte(path, frames, frames_per_batch=1), matte(path, frames, frames_per_batch=12)
    assert np.abs(one.alpha.array - twelve.alpha.array).max() < 1e-5
    operator = Matting(checkpoint=path, frames_per_batch=5)
    model = operator.load("cpu")
    for _ in range(2):  # a second clip does not see the first one's states
        again = operator.run(model, DecodedClip.from_frames(frames))
        assert np.abs(again.alpha.array - one.alpha.array).max() < 1e-5
    late = matte(path, frames[5:])  # but within a clip the states matter
    assert np.abs(late.alpha.array[0] - one.alpha.array[5]).max() > 1e-3


def test_the_foreground_of_a_network_is_kept_where_alpha_is_above_0(tmp_path):
    frames = noise(2, 24, 32)
    found = matte(scripted(tmp_path, Recurrent()), frames)
    assert np.array_equal(found.foreground.array, 255 - frames)


def test_recurrent_networks_look_at_512_px_unless_told_otherwise(tmp_path):
    path, frames = scripted(tmp_path, Recurrent()), noise(1, 16, 1024)
    asked = [matte(path, frames, downsample_ratio=ratio).alpha.array for ratio in (0.0, 0.5, 1.0)]
    assert np.array_equal(asked[0], asked[1]) and np.abs(asked[0] - asked[2]).max() > 0.01


def test_a_network_of_single_frames(tmp_path):
    frames = noise(3, 20, 30)
    found = matte(scripted(tmp_path, PerFrame()), frames, frames_per_batch=2)
    assert np.abs(found.alpha.array[..., 0] - frames.mean(axis=-1) / 255).max() < 1e-5
    traced = tmp_path / "traced.pt"
    torch.jit.trace(PerFrame(), torch.zeros(1, 3, 8, 8)).save(str(traced))
    assert np.array_equal(matte(str(traced), frames).alpha.array, found.alpha.array)


def test_other_programs_are_explained(tmp_path):
    with pytest.raises(OpenUniError, match="forward takes frames, trimap"):
        load_scripted(tmp_path / scripted(tmp_path, TwoSources()), "cpu")
    with pytest.raises(OpenUniError, match=r"must return a finite alpha with one channel"):
        matte(scripted(tmp_path, TooSmall()), noise(1, 16, 16))
    weights = tmp_path / "weights.pt"
    torch.save(PerFrame().state_dict(), weights)
    (tmp_path / "broken.ts").write_bytes(b"nothing")
    for path in (weights, tmp_path / "broken.ts"):
        with pytest.raises(OpenUniError, match="is not a TorchScript file"):
            Matting(checkpoint=str(path)).load("cpu")
    with pytest.raises(MissingRequirement, match="existing file"):
        Matting(checkpoint="nowhere.torchscript").load("cpu")
