"""Depth on one scale for the whole clip: windows as Video-Depth-Anything joins them, single frames steadied."""

import numpy as np
import pytest
import torch

from openuni.annotators._depth_anything import without_zero_metres
from openuni.annotators._depth_stabilization import robust_line, stabilize_depth
from openuni.annotators._depth_windows import scale_and_shift, stitch_depth, windows_of
from openuni.annotators._temporal_consistency import depth_change_share
from openuni.annotators.video_depth import VideoDepth, window_input_size
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.modalities.depth import Depth
from openuni.world import make_clip
from openuni.world.clips import render_clip
from openuni.world.presets import random_scene
from openuni.world.rendering.camera import CameraPath, Lens
from tests.annotators.test_depth_anything import tiny_checkpoint
from tests.moving_pictures import panned, texture


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return VideoDepth(checkpoint=tiny_checkpoint(folder), input_size=56), DecodedClip.from_frames(frames)


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


# ---------------------------------------------------------------------- windows


class AffinePerWindow(torch.nn.Module):
    """Brightness as depth, on a scale and shift that follow from the window; `odd` bends it by the place in it."""

    def __init__(self, odd: float = 0.0, affine: float = 1.0):
        super().__init__()
        self.odd = odd
        self.affine = affine

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        depth = 4.0 + frames.mean(dim=2)
        key = frames.mean()
        scale = 1.0 + self.affine * 0.5 * torch.sin(40.0 * key)
        shift = self.affine * (2.0 + torch.cos(30.0 * key))
        places = torch.arange(frames.shape[1], device=frames.device).view(1, -1, 1, 1) / 32.0
        return scale * (depth + self.odd * torch.sin(5.0 * depth) * places) + shift


def saved(folder, name, *values):
    path = folder / f"{name}.pt"
    torch.jit.script(AffinePerWindow(*values)).save(str(path))
    return str(path)


def flickering_noise(count, height_px=14, width_px=14):
    generator = np.random.default_rng(5)
    noise = generator.integers(0, 128, (count, height_px, width_px, 3))
    return (noise + generator.integers(0, 128, (count, 1, 1, 1))).astype(np.uint8)


def test_windows_are_22_apart_and_are_given_ten_old_frames():
    first, second, third = windows_of(60)
    assert first.tolist() == list(range(32))
    assert second.tolist() == [0, 12, *range(24, 54)]
    assert third.tolist() == [0, 34, *range(46, 60), *[59] * 16]
    assert [len(list(windows_of(count))) for count in (1, 22, 23, 44, 45)] == [1, 1, 2, 2, 3]
    assert {len(indices) for indices in windows_of(23)} == {32}


@pytest.mark.parametrize("count", [5, 23, 60])
def test_windows_on_scales_of_their_own_come_out_on_one(tmp_path, count):
    """Row 7 of the parity table: a d + b per window gives d up to one scale and shift for the clip."""
    frames = flickering_noise(count)
    operator = VideoDepth(window_network=saved(tmp_path, "affine"), input_size=14)
    found = annotate(operator, frames)
    plain = VideoDepth(window_network=saved(tmp_path, "plain", 0.0, 0.0), input_size=14)
    true = annotate(plain, frames).depth.array
    scale, shift = scale_and_shift(found.depth.array, true)
    assert abs(scale - 1) > 0.05
    assert np.abs(scale * found.depth.array + shift - true).max() < 1e-4
    assert found.depth.unit == "disparity" and found.depth.array.shape == (count, 14, 14, 1)
    assert found.aligned_share is None and found.raw_flow_change_share is None


def test_stitching_equals_the_authors_code(tmp_path):
    """Pixel (3, 4) of some frames as Video-Depth-Anything's own `infer_video_depth` (commit of 2025, fp32) gave them
    with the same network; its normal equations in 32 bits are good to 1e-4.
    """
    theirs = {
        0: 3.7812, 12: 4.94264, 24: 4.35787, 27: 4.82137, 31: 4.99253, 32: 5.4146, 45: 4.71042, 46: 4.99848,
        49: 4.85119, 53: 4.99491, 54: 4.727, 59: 4.50464,
    }  # fmt: skip
    operator = VideoDepth(window_network=saved(tmp_path, "odd", 0.3), input_size=14)
    found = annotate(operator, flickering_noise(60)).depth.array[:, 3, 4, 0]
    assert np.abs(found[list(theirs)] - list(theirs.values())).max() < 2e-4


def test_windows_in_metres_are_not_aligned(tmp_path):
    frames, file = flickering_noise(30), saved(tmp_path, "affine")
    metres = VideoDepth(window_network=file, window_unit="metres", input_size=14)
    found = annotate(metres, frames).depth
    alone = annotate(metres, frames[:5]).depth.array
    network = torch.jit.load(file)
    aligned = annotate(VideoDepth(window_network=file, input_size=14), frames).depth.array
    assert found.unit == "metres" and isinstance(network, torch.nn.Module) and alone.min() > 0
    assert np.array_equal(found.array[:24], aligned[:24]), "the first window is what all others follow"
    assert np.abs(found.array[-4:] - aligned[-4:]).max() > 0.1


def test_what_an_alignment_takes_below_zero_is_zero():
    depths = [np.full((32, 1, 2), 5, np.float32), np.full((32, 1, 2), 9, np.float32)]
    for depth in depths:
        depth[:, 0, 1] -= 1
        depth[20:, 0, 1] -= 20
    assert stitch_depth(depths, 40, align=True).min() == 0


def test_eight_frames_are_blended_from_the_old_window_to_the_new():
    depths = [np.zeros((32, 1, 1), np.float32), np.ones((32, 1, 1), np.float32)]
    found = stitch_depth(depths, 40, align=False)[:, 0, 0]
    assert not found[:24].any() and (found[32:] == 1).all()
    assert np.allclose(found[24:32], np.arange(8) / 7)


def test_long_pictures_go_in_smaller():
    assert [window_input_size(*size, 518) for size in ((480, 832), (720, 1280), (1280, 720))] == [518, 518, 518]
    assert window_input_size(360, 832, 518) == 392  # 518 * 1.777 / 2.311 = 398
    assert window_input_size(10, 1000, 28) == 14


def test_other_files_and_networks_are_explained(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"no program")
    with pytest.raises(OpenUniError, match="not a TorchScript file"):
        VideoDepth(window_network=str(tmp_path / "weights.pt")).load("cpu")
    with pytest.raises(MissingRequirement, match="not found locally"):
        VideoDepth(window_network=str(tmp_path / "nothing.pt")).load("cpu")
    with pytest.raises(MissingRequirement, match="openuni checkpoints get somebody/no-such-depth"):
        VideoDepth(checkpoint="somebody/no-such-depth").load("cpu")
    torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "identity.pt"))
    with pytest.raises(OpenUniError, match="it must map"):
        annotate(VideoDepth(window_network=str(tmp_path / "identity.pt"), input_size=14), flickering_noise(2))


@pytest.mark.parametrize("wrong", [{"stabilization_frames": -1.0}, {"window_unit": "feet"}, {"input_size": 20}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match=r"video_depth: .*Allowed"):
        VideoDepth(**wrong)


# ---------------------------------------------------------------------- single frames


@pytest.fixture(scope="module")
def rooms():
    """A furnished room from a camera that somebody carries, and one towards which the camera travels."""
    carried = make_clip(2, frames=24, height_px=96, width_px=128, preset="interiors", modalities=["depth"])
    scene = random_scene(1, 1.5, "solids")
    eye, target = scene.camera.view(0.0).eye_m, (0.0, 0.8, -0.6)
    camera = CameraPath("dolly", tuple(eye.tolist()), target, travel_m_per_s=1.0)
    ahead = scene.__class__(scene.solids, scene.lights, scene.ambient, camera)
    return carried, render_clip(ahead, 24, 16.0, Lens.with_view(96, 128, 54.0), ["depth"])


def disparity(world):
    return 1 / world.modalities["depth"].array[..., 0]


def flickering(disparity):
    """Another scale (15 %) and shift (10 % of the range) in every frame."""
    generator = np.random.default_rng(0)
    scale = 1 + 0.15 * generator.standard_normal(len(disparity))
    shift = 0.1 * np.ptp(disparity) * generator.random(len(disparity))
    return (scale[:, None, None] * disparity + shift[:, None, None]).astype(np.float32)


def error(found, true):
    """Mean error after one scale and shift for the clip, as a share of the range."""
    scale, shift = scale_and_shift(found, true)
    return np.abs(scale * found + shift - true).mean() / np.ptp(np.percentile(true, [5, 95]))


@pytest.mark.parametrize("which", [0, 1], ids=["carried", "ahead"])
def test_flicker_of_scale_and_shift_goes(rooms, which):
    """From 9 to 12 % of the range between frames to 0.7 % at most, where true depth has 0.2 to 0.4 %."""
    world = rooms[which]
    clip, true = DecodedClip.from_frames(world.frames, world.fps), disparity(world)
    bad = flickering(true)
    good, aligned = stabilize_depth(clip, bad, 8.0, scale_only=False)
    before, after, known = (depth_change_share(clip, Depth(d[..., None])) for d in (bad, good, true))
    assert aligned == 1.0
    assert before > 0.09 and after < 0.007 and after < known + 0.005
    assert error(bad, true) > 0.07 and error(good, true) < 0.03


@pytest.mark.parametrize("which", [0, 1], ids=["carried", "ahead"])
def test_true_motion_of_the_camera_stays(rooms, which):
    world = rooms[which]
    clip, true = DecodedClip.from_frames(world.frames, world.fps), disparity(world)
    kept, _ = stabilize_depth(clip, true, 8.0, scale_only=False)
    assert np.abs(kept - true).mean() < 0.01 * np.ptp(np.percentile(true, [5, 95]))
    grown, wanted = kept[-1].mean() / kept[0].mean(), true[-1].mean() / true[0].mean()
    assert grown == pytest.approx(wanted, rel=0.01)
    if which == 1:
        assert wanted > 1.2, "1.5 m nearer"


def test_metres_get_one_scale_and_stay_metres(rooms):
    world = rooms[0]
    clip, metres = DecodedClip.from_frames(world.frames, world.fps), world.modalities["depth"].array[..., 0]
    scale = 1 + 0.1 * np.random.default_rng(3).standard_normal((len(metres), 1, 1)).astype(np.float32)
    good, _ = stabilize_depth(clip, metres * scale, 8.0, scale_only=True)
    assert np.abs(good / metres - scale.mean()).mean() < 0.03
    ratio = np.median(good / metres, axis=(1, 2))
    assert np.abs(np.diff(ratio)).max() < 0.01 < 0.1 < np.abs(np.diff(scale[:, 0, 0])).max()


def test_nothing_is_aligned_across_a_cut():
    frames = np.concatenate([np.repeat(texture(64, 96)[None], 4, 0), np.repeat(texture(64, 96, seed=5)[None], 4, 0)])
    slope = np.broadcast_to(np.linspace(1, 2, 96, dtype=np.float32), (8, 64, 96)).copy()
    slope[4:] += np.linspace(0, 1, 64, dtype=np.float32)[:, None] * 3
    scale = np.array([1, 1.2, 1, 1.2, 3, 3.3, 3, 3.3], np.float32)[:, None, None]
    good, aligned = stabilize_depth(DecodedClip.from_frames(frames), slope * scale, 100.0, scale_only=False)
    assert aligned == pytest.approx(6 / 7)
    change = np.abs(np.diff(good, axis=0)).mean(axis=(1, 2)) / good.mean()
    assert change[3] > 0.5 and np.delete(change, 3).max() < 0.05


def test_depth_without_relief_stays_as_it_is():
    frames = np.repeat(texture(64, 96)[None], 3, 0)
    flat = np.array([1, 2, 3], np.float32)[:, None, None] * np.ones((3, 64, 96), np.float32)
    good, aligned = stabilize_depth(DecodedClip.from_frames(frames), flat, 8.0, scale_only=False)
    assert aligned == 0.0 and np.array_equal(good, flat)


def test_a_robust_line_is_deaf_to_outliers_and_symmetric():
    generator = np.random.default_rng(0)
    x = generator.random(4000)
    y = 1.5 * x + 0.2 + 0.01 * generator.standard_normal(4000)
    y[:1000] = generator.random(1000) * 5
    line = robust_line(x + 0.01 * generator.standard_normal(4000), y)
    assert line.scale == pytest.approx(1.5, abs=0.01) and line.shift == pytest.approx(0.2, abs=0.01)
    there, back = robust_line(x, y), robust_line(y, x)
    assert there.scale * back.scale == pytest.approx(1, abs=2e-3)
    assert robust_line(x, generator.random(4000)) is None
    assert robust_line(np.ones(10), np.ones(10)) is None


def test_single_frames_are_those_of_depth_anything_when_nothing_is_steadied(tmp_path):
    from openuni.annotators.depth_anything import DepthAnything

    frames, file = panned([(i, 0) for i in range(6)], 45, 80), tiny_checkpoint(tmp_path)
    plain = annotate(DepthAnything(checkpoint=file, input_size=56), frames)
    off = annotate(VideoDepth(checkpoint=file, input_size=56, stabilization_frames=0), frames)
    assert np.array_equal(plain.depth.array, off.depth.array)
    assert off.flow_change_share == off.raw_flow_change_share == plain.flow_change_share
    assert off.aligned_share is None
    steady = annotate(VideoDepth(checkpoint=file, input_size=56), frames)
    assert steady.raw_flow_change_share == plain.flow_change_share
    assert not np.array_equal(steady.depth.array, plain.depth.array)


@pytest.mark.parametrize(("kind", "unit"), [("relative", "disparity"), ("metric", "metres")])
def test_the_unit_is_the_checkpoints(tmp_path, kind, unit):
    operator = VideoDepth(checkpoint=tiny_checkpoint(tmp_path, kind), input_size=56)
    found = annotate(operator, panned([(0, 0), (3, 1), (5, 2)], 45, 80))
    assert found.depth.unit == unit and found.depth.array.min() >= 0
    assert annotate(operator, panned([(0, 0)], 45, 80)).aligned_share is None


def test_the_order_of_batches_does_not_matter(tmp_path):
    frames, file = panned([(i, 0) for i in range(5)], 45, 80), tiny_checkpoint(tmp_path)
    one, many = (
        annotate(VideoDepth(checkpoint=file, input_size=56, frames_per_batch=n), frames).depth.array for n in (1, 4)
    )
    assert np.abs(one - many).max() < 1e-4 * many.max()


class Rectified(torch.nn.Module):
    """Ends in a ReLU: exact zeros wherever the red channel is below the middle."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.relu(pixels[:, :, 0])


@pytest.mark.parametrize("black", [False, True])
def test_metres_of_zero_become_one_millimetre_and_nothing_else_changes(tmp_path, black):
    torch.jit.script(Rectified()).save(str(tmp_path / "rectified.ts"))
    frames = flickering_noise(5) * 2 * (not black)
    file = str(tmp_path / "rectified.ts")
    zeros = annotate(VideoDepth(window_network=file, input_size=14), frames).depth.array == 0
    found = annotate(VideoDepth(window_network=file, window_unit="metres", input_size=14), frames).depth
    assert zeros.any() and zeros.all() == black
    assert np.all(found.array[zeros] == np.float32(0.001)) and found.unit == "metres"
    assert black or found.array[~zeros].min() > 0.001
    decoded = type(found).decode(found.encode(12).data, found.constants())
    np.testing.assert_allclose(decoded.array, found.array, rtol=1e-3)


def test_the_rule_for_zero_metres():
    depth = np.array([0.0, -0.0, 2.0, 1e-5], np.float32)
    assert without_zero_metres(depth).tolist() == np.array([1e-5, 1e-5, 2.0, 1e-5], np.float32).tolist()
    assert without_zero_metres(depth[2:]) is not None and np.array_equal(without_zero_metres(depth[2:]), depth[2:])
    negative = np.array([-1.0, 0.0, 3.0], np.float32)
    assert without_zero_metres(negative).tolist() == [-1.0, float(np.float32(0.001)), 3.0]
