"""Whole clips: the same bytes for the same seed, frames that agree with their ground truth, captions that are true."""

import cv2
import numpy as np
import pytest

from openuni.manifests.errors import OpenUniError
from openuni.world import WorldClip, make_clip
from openuni.world.caption import caption
from openuni.world.presets import random_scene
from openuni.world.rendering.shapes import Box, Capsule, Cone, Cylinder, Sphere
from openuni.world.sample import OBJECT_COLOURS
from openuni.world.scene import COLOURS

BT709 = np.array([0.2126, 0.7152, 0.0722])
SHAPE_NAMES = [shape.name for shape in (Sphere, Box, Cylinder, Cone, Capsule)]


def small(seed: int, preset: str = "solids", frames: int = 5) -> WorldClip:
    return make_clip(seed, frames=frames, height_px=64, width_px=80, preset=preset)


def warped(clip: WorldClip, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame `step + 1` fetched back by the flow, and frame `step`: float32 [H, W, 3]."""
    flow = clip.modalities["flow"].array[step]
    rows, columns = np.mgrid[0 : flow.shape[0], 0 : flow.shape[1]].astype(np.float32)
    back = cv2.remap(
        clip.frames[step + 1].astype(np.float32),
        columns + flow[..., 0],
        rows + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return back, clip.frames[step].astype(np.float32)


def test_types_sizes_and_the_last_flow() -> None:
    clip = small(3)
    assert clip.frames.shape == (5, 64, 80, 3) and clip.frames.dtype == np.uint8
    assert sorted(clip.modalities) == ["depth", "flow", "normal", "rgb", "segmentation"]
    assert all(modality.array.shape[:3] == (5, 64, 80) for modality in clip.modalities.values())
    flow = clip.modalities["flow"]
    assert np.array_equal(flow.array[-1], flow.array[-2])
    assert np.array_equal(flow.valid[-1], flow.valid[-2])
    single = small(3, frames=1)
    assert not single.modalities["flow"].array.any() and single.modalities["flow"].valid.all()


def test_a_seed_gives_the_same_bytes_always_and_another_seed_gives_others() -> None:
    first, again, other = small(11), small(11), small(12)
    for name, modality in first.modalities.items():
        assert modality.array.tobytes() == again.modalities[name].array.tobytes()
        assert modality.array.tobytes() != other.modalities[name].array.tobytes()
    assert (first.caption, first.scene) == (again.caption, again.scene)
    assert first.scene != other.scene
    assert not np.array_equal(first.frames, small(11, "still").frames)


@pytest.mark.parametrize("seed", [2, 4, 7, 100, 104, 106])
def test_flow_brings_the_next_frame_back_to_this_one(seed: int) -> None:
    """Where valid, to a median of 3 of 255 levels; what is left is changing light and resampling."""
    clip = make_clip(seed, frames=4, height_px=96, width_px=96)
    flow = clip.modalities["flow"]
    for step in range(3):
        back, frame = warped(clip, step)
        seen = flow.valid[step, ..., 0]
        error = np.abs(back - frame).max(axis=-1)
        assert np.median(error[seen]) <= 3.0
        assert np.quantile(error[seen], 0.9) < 12.0
        still = np.abs(clip.frames[step + 1].astype(np.float32) - frame).max(axis=-1)
        moving = seen & (np.abs(flow.array[step]).max(axis=-1) > 0.5)
        if moving.sum() > 200:
            assert error[moving].mean() < 0.6 * still[moving].mean()


def test_an_estimator_finds_the_flow_because_everything_has_texture() -> None:
    """DIS on eight clips: within a pixel nearly everywhere, and on moving objects far better than no flow at all."""
    near, better = [], []
    for seed in range(8):
        clip = make_clip(seed, frames=2)
        first, second = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames)
        found = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(first, second, None)
        flow = clip.modalities["flow"]
        seen = flow.valid[0, ..., 0]
        on_object = seen & (clip.modalities["segmentation"].array[0, ..., 0] > 0)
        error, speed = (np.linalg.norm(way, axis=-1) for way in (found - flow.array[0], flow.array[0]))
        near.append(np.mean(error[seen] < 1.0))
        better.append(np.median(error[on_object]) / np.median(speed[on_object]))
    assert np.mean(near) > 0.85
    assert np.median(better) < 0.35


def test_nothing_moves_in_a_still_clip() -> None:
    for seed in range(4):
        clip = small(seed, "still")
        flow = clip.modalities["flow"]
        assert (flow.array == 0.0).all() and flow.valid.all()
        assert all(np.array_equal(frame, clip.frames[0]) for frame in clip.frames)
        assert clip.frames[0].std() > 10.0  # a picture all the same


def test_dark_clips_are_dark_and_the_others_are_not() -> None:
    for seed in range(8):
        dark, bright = (small(seed, preset, frames=2).frames @ BT709 / 255.0 for preset in ("dark", "solids"))
        assert 0.001 < dark.mean() < 0.05
        assert 0.2 < bright.mean() < 0.75


def test_about_half_of_the_cameras_move() -> None:
    kinds = [random_scene(seed, 1.3).camera.kind for seed in range(60)]
    assert 18 <= kinds.count("static") <= 42
    assert set(kinds) == {"static", "pan", "orbit", "dolly"}


@pytest.mark.parametrize("preset", ["solids", "still", "dark"])
def test_captions_name_what_is_there_and_nothing_else(preset: str) -> None:
    for seed in range(6):
        clip = small(seed, preset, frames=3)
        seen = np.unique(clip.modalities["segmentation"].array).tolist()
        assert seen[1:] == sorted(clip.scene.objects)  # 0 is the room
        words = clip.caption.rstrip(".").replace(",", "").lower().split()
        for solid in clip.scene.objects.values():
            assert f"{solid.material.colour} {solid.material.pattern} {solid.shape.name}" in clip.caption
        assert sum(words.count(colour) for colour in OBJECT_COLOURS) == len(clip.scene.objects)
        assert sum(words.count(name) for name in SHAPE_NAMES) == len(clip.scene.objects)
        assert clip.caption[0].isupper() and clip.caption.endswith(".")


def test_objects_look_as_their_colour_is_called() -> None:
    hues = {name: hue_of(np.array(COLOURS[name])[:, None])[0] for name in OBJECT_COLOURS}
    told = []
    for seed in range(24):
        clip = make_clip(seed, frames=1, height_px=64, width_px=64)
        for instance, solid in clip.scene.objects.items():
            pixels = clip.frames[0][clip.modalities["segmentation"].array[0, ..., 0] == instance].T
            coloured = pixels[:, np.ptp(pixels, axis=0) > 40]
            if coloured.shape[1] > 20:
                hue = np.median(hue_of(coloured))
                nearest = min(hues, key=lambda name: abs((hues[name] - hue + 180.0) % 360.0 - 180.0))
                told.append(nearest == solid.material.colour)
    assert len(told) > 30
    assert np.mean(told) > 0.95


def hue_of(pixels: np.ndarray) -> np.ndarray:
    """Degrees [n] of RGB [3, n]; red is 30, so that shades of red do not wrap."""
    red, green, blue = pixels.astype(np.float64)
    return (np.degrees(np.arctan2(np.sqrt(3.0) * (green - blue), 2.0 * red - green - blue)) + 30.0) % 360.0


def test_captions_tell_the_true_direction() -> None:
    told = 0
    for seed in range(80):
        scene = random_scene(seed, 1.3)
        view = scene.camera.view(0.0)
        for solid in scene.objects.values():
            start, end = (view.to_camera(solid.path.pose(time_s).position_m[:, None])[:, 0] for time_s in (0.0, 1.0))
            phrase = caption(scene).lower().split(solid.material.colour)[1].split(" and a")[0].split(", ")[0]
            words = {"to the left": (0, -1), "to the right": (0, 1), "away from": (2, 1), "towards the": (2, -1)}
            for text, (axis, sign) in words.items():
                if text in phrase.split(" while ")[0]:
                    told += 1
                    assert sign * (end - start)[axis] > 0.3 * np.linalg.norm(end - start)
    assert told > 30


def test_captions_tell_where_the_camera_goes() -> None:
    """From the picture: when the view turns to the right, the room moves to the left."""
    found = set()
    for seed in range(60):
        scene = random_scene(seed, 0.25)
        if scene.camera.kind == "static" or scene.camera.kind in found:
            continue
        found.add(scene.camera.kind)
        clip = make_clip(seed, frames=4, height_px=48, width_px=48)
        room = clip.modalities["segmentation"].array[0, ..., 0] == 0
        flow, depth = clip.modalities["flow"].array[0], clip.modalities["depth"].array[0, ..., 0]
        columns = np.broadcast_to(np.arange(48) - 23.5, (48, 48))
        if scene.camera.kind == "pan":
            assert ("pans right" in clip.caption) == (flow[room, 0].mean() < 0)
        elif scene.camera.kind == "dolly":
            assert ("moves forward" in clip.caption) == ((flow[room, 0] * columns[room]).mean() > 0)
        else:  # the camera goes to the right about a point ahead: what is near goes left faster than what is far
            near, far = depth[room] < np.quantile(depth[room], 0.2), depth[room] > np.quantile(depth[room], 0.8)
            faster_left = flow[room, 0][near].mean() < flow[room, 0][far].mean()
            assert ("orbits to the right" in clip.caption) == faster_left
    assert found == {"pan", "orbit", "dolly"}


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(OpenUniError, match=r'world preset "solid" is not known\. Did you mean "solids"'):
        make_clip(0, preset="solid")
    with pytest.raises(OpenUniError, match=r"height_px = 8.*at least 1 frame and 16 px a side"):
        make_clip(0, height_px=8)


def test_long_and_fast_clips_stay_in_the_room() -> None:
    clip = make_clip(5, frames=60, height_px=24, width_px=32, fps=4.0)
    assert clip.modalities["segmentation"].array[-1].any()
    assert clip.modalities["depth"].array.min() > 0.5
