"""Ground truth checks itself: what one modality says is held against another, against projections, against the picture.

Every check is a function that measures an error; it is shown to stay within a stated bound on what is rendered, and to
leave it when a fault is planted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from openuni.manifests.arrays.srgb import linear_to_srgb, srgb_to_linear
from openuni.world import WorldClip, render_clip
from openuni.world.presets import random_scene
from openuni.world.rendering.camera import CameraPath
from openuni.world.rendering.shading import frame
from tests.openuni.world.ground_truth import LAYER_SEEDS, ROOM_SEEDS, arrays, clip, grid, sampled

# ---------------------------------------------------------------------- flow


def warp_error(frames: np.ndarray, flow: np.ndarray, valid: np.ndarray) -> float:
    """Mean difference of frame t and frame t + 1 fetched back by the flow, where that is valid, in 8-bit levels."""
    x, y = grid(*flow.shape[1:3])
    errors = []
    for step in range(len(frames) - 1):
        seen = valid[step, ..., 0]
        back = sampled(frames[step + 1].astype(float), x + flow[step, ..., 0], y + flow[step, ..., 1])
        errors.append(np.abs(back - frames[step])[seen].mean())
    return float(np.mean(errors))


@pytest.mark.parametrize(("preset", "seed"), [("interiors", 0), ("interiors", 1), ("person", 3), ("scenes", 1)])
def test_flow_brings_the_next_frame_to_this_one(preset: str, seed: int) -> None:
    """Within 3.5 levels on average, which are resampling and shadows that move; occlusions only are left out."""
    known, flow = arrays(preset, seed), clip(preset, seed).modalities["flow"]
    error = warp_error(known["rgb"], flow.array, flow.valid)
    assert error < 3.5
    assert warp_error(known["rgb"], flow.array + np.float32([1.5, 0.0]), flow.valid) > max(1.5 * error, 3.5)
    assert flow.valid.mean() > 0.7


def backward_error(forward: Any, backward: Any) -> float:
    """Median length in pixels of flow to t + 1 and back, where the first is valid and not small."""
    x, y = grid(*forward.array.shape[1:3])
    lengths = []
    for step in range(len(forward.array) - 1):
        there = forward.array[step]
        back = sampled(backward.array[step + 1], x + there[..., 0], y + there[..., 1])
        seen = forward.valid[step, ..., 0] & (np.linalg.norm(there, axis=-1) > 0.3)
        lengths.append(np.linalg.norm(there + back, axis=-1)[seen])
    assert sum(map(len, lengths)) > 100
    return float(np.median(np.concatenate(lengths)))


@pytest.mark.parametrize(("preset", "seed"), [("interiors", 0), ("persons", 3), ("scenes", 1)])
def test_flow_there_and_back_again_is_nothing(preset: str, seed: int) -> None:
    forward, backward = clip(preset, seed).modalities["flow"], clip(preset, seed).backward_flow
    assert backward_error(forward, backward) < 0.05
    assert backward_error(backward, backward) > 0.3  # the fault: a flow of the wrong direction
    assert np.array_equal(backward.array[0], backward.array[1])
    assert not np.array_equal(backward.valid[1:], forward.valid[:-1])


def test_what_a_forward_flow_hides_is_uncovered_by_the_backward_one() -> None:
    """A point that is hidden at t + 1: nothing there flows back to it, so valid backward flow does not reach it."""
    made = clip("persons", 3)
    forward, backward = made.modalities["flow"], made.backward_flow
    x, y = grid(72, 96)
    reached = np.zeros((72, 96), bool)
    seen = backward.valid[1, ..., 0]
    columns, rows = (x + backward.array[1, ..., 0])[seen], (y + backward.array[1, ..., 1])[seen]
    reached[np.clip(rows.astype(int), 0, 71), np.clip(columns.astype(int), 0, 95)] = True
    hidden = ~forward.valid[0, ..., 0]
    assert hidden.sum() > 30
    assert reached[hidden].mean() < 0.5 * reached[~hidden].mean()


# ---------------------------------------------------------------------- depth, camera, normals


def points_of(made: WorldClip, depth: np.ndarray) -> np.ndarray:
    """Camera-space points [H, W, 3] (y down) of a depth map [H, W]."""
    x, y = grid(*depth.shape)
    lens = made.lens
    across = np.stack([(x - lens.width_px / 2) / lens.focal_px, (y - lens.height_px / 2) / lens.focal_px], axis=-1)
    return np.concatenate([across, np.ones((*depth.shape, 1))], axis=-1) * depth[..., None]


def static_flow_error(made: WorldClip, depth: np.ndarray, still: np.ndarray) -> float:
    """Largest distance in pixels of the flow from where camera and depth alone take the points that do not move."""
    lens, worst = made.lens, 0.0
    x, y = grid(*depth.shape[1:])
    for step in range(len(depth) - 1):
        views = [made.scene.camera.view(index / made.fps) for index in (step, step + 1)]
        world = points_of(made, depth[step].astype(float)) @ views[0].rotation + views[0].eye_m
        after = (world - views[1].eye_m) @ views[1].rotation.T
        found = after[..., :2] / after[..., 2:] * lens.focal_px + (lens.width_px / 2, lens.height_px / 2)
        expected = found - np.stack([x, y], axis=-1)
        error = np.linalg.norm(made.modalities["flow"].array[step] - expected, axis=-1)
        worst = max(worst, float(error[still[step]].max()))
    return worst


@pytest.mark.parametrize("seed", ROOM_SEEDS)
def test_depth_and_camera_alone_give_the_flow_of_what_does_not_move(seed: int) -> None:
    made, known = clip("interiors", seed), arrays("interiors", seed)
    depth = known["depth"][..., 0]
    still = np.ones(depth.shape, bool)
    assert static_flow_error(made, depth, still) < 1e-3
    assert static_flow_error(made, depth * np.float32(1.05), still) > 5e-3
    person, made = arrays("person", 12), clip("person", 12)
    persons = np.isin(person["segmentation"][..., 0], [body.instance for body in made.scene.bodies])
    assert static_flow_error(made, person["depth"][..., 0], ~persons) < 1e-3
    assert static_flow_error(made, person["depth"][..., 0], persons) > 0.5  # they walk


def normal_error_deg(made: WorldClip, depth: np.ndarray, normal: np.ndarray) -> float:
    """Mean angle between the normals and the cross product of neighbouring points, away from edges of any kind."""
    points = points_of(made, depth.astype(float))
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    found = np.cross(down, across) * np.array([1.0, -1.0, -1.0])  # towards the viewer; y up, z back
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    inner = normal[1:-1, 1:-1]
    around = [normal[1 + row : 71 + row, 1 + column : 95 + column] for row in (-1, 0, 1) for column in (-1, 0, 1)]
    flat = np.min([(inner * other).sum(axis=-1) for other in around], axis=0) > 0.98  # no edge, no strong bend
    middle = depth[1:-1, 1:-1]
    opposite = ((depth[1:-1, 2:], depth[1:-1, :-2]), (depth[2:, 1:-1], depth[:-2, 1:-1]))
    bends = [np.abs(one + other - 2 * middle) for one, other in opposite]
    smooth = flat & (np.max(bends, axis=0) < 0.01 * middle)
    assert smooth.mean() > 0.3
    cosine = (found * inner).sum(axis=-1)[smooth]
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).mean())


@pytest.mark.parametrize(("preset", "seed"), [("interiors", 0), ("interiors", 4), ("persons", 3), ("solids", 7)])
def test_normals_are_the_gradient_of_depth(preset: str, seed: int) -> None:
    known = arrays(preset, seed)
    depth, normal = known["depth"][0, ..., 0], known["normal"][0]
    error = normal_error_deg(clip(preset, seed), depth, normal)
    assert error < 0.6
    for axis in range(3):
        flipped = normal.copy()
        flipped[..., axis] *= -1.0
        assert normal_error_deg(clip(preset, seed), depth, flipped) > 5.0
    length = np.linalg.norm(known["normal"], axis=-1)
    assert np.allclose(length, 1.0, atol=1e-6)
    towards = -points_of(clip(preset, seed), depth) * np.array([1.0, -1.0, -1.0])
    assert ((towards * normal).sum(axis=-1) > 0.0).all()  # what is seen faces the eye


def test_the_sky_has_no_normal_and_a_finite_depth() -> None:
    seeds = [seed for seed in range(8) if "yard" in random_scene(seed, 0.25, "person").place]
    known = arrays("person", seeds[0])
    sky = ~known["normal"].any(axis=-1)
    assert 0.05 < sky.mean() < 0.8
    assert known["depth"][sky].min() > 40.0 and np.isfinite(known["depth"]).all()
    assert (known["segmentation"][..., 0][sky] == 0).all()


# ---------------------------------------------------------------------- light


def light_error(rgb: np.ndarray, albedo: np.ndarray, irradiance: np.ndarray) -> float:
    """Largest difference in 8-bit levels between the picture and albedo times irradiance, clipped at white."""
    linear = np.clip(albedo.astype(float) * irradiance, 0.0, 1.0)
    return float(np.abs(255.0 * linear_to_srgb(linear) - rgb).max())


@pytest.mark.parametrize(("preset", "seed"), [("interiors", 0), ("interiors", 1), ("person", 3), ("scenes", 1)])
def test_albedo_times_irradiance_is_the_picture(preset: str, seed: int) -> None:
    known = arrays(preset, seed)
    parts = known["albedo"], known["irradiance"]
    assert light_error(known["rgb"], *parts) <= 0.61
    assert light_error(known["rgb"], parts[0], parts[1] * np.float32(1.02)) > 1.0
    assert light_error(known["rgb"], np.roll(parts[0], 1, axis=2), parts[1]) > 10.0
    # and the other way, before rounding to 8 bits and away from white: within one level
    linear = srgb_to_linear(known["rgb"] / 255.0)
    unclipped = known["rgb"] < 255
    slope = 255.0 * (linear_to_srgb(linear + 1e-4) - linear_to_srgb(linear))
    found = (parts[0].astype(float) * parts[1] - linear)[unclipped] / 1e-4 * slope[unclipped]
    assert np.abs(found).max() < 1.0


def test_albedo_knows_nothing_of_light() -> None:
    """The same scene with other lamps: albedo is the same to the bit, irradiance is not, and has the exposure in it."""
    made = clip("interiors", 1)
    lamps = tuple(replace(light, power=0.3 * light.power, colour=(0.5, 0.8, 1.0)) for light in made.scene.lights)
    other = render_clip(replace(made.scene, lights=lamps), 1, 16.0, made.lens, ("albedo", "irradiance"))
    brighter = render_clip(
        replace(made.scene, exposure=2.0 * made.exposure), 1, 16.0, made.lens, ("albedo", "irradiance")
    )
    first = {name: made.modalities[name].array[0] for name in ("albedo", "irradiance")}
    assert np.array_equal(other.modalities["albedo"].array[0], first["albedo"])
    assert np.abs(other.modalities["irradiance"].array[0] - first["irradiance"]).mean() > 0.05
    assert np.allclose(brighter.modalities["irradiance"].array[0], 2.0 * first["irradiance"], rtol=1e-5)


def test_shadows_and_several_lamps_are_in_the_irradiance() -> None:
    """Each lamp adds its own share, and none where it casts a shadow."""
    made = clip("interiors", 1)
    scene = replace(made.scene, ambient=0.0, solids=tuple(solid for solid in made.scene.solids if solid.shades))
    assert len(scene.lights) >= 2
    alone = [
        render_clip(replace(scene, lights=(light,)), 1, 16.0, made.lens, ("irradiance",)).modalities["irradiance"].array
        for light in scene.lights
    ]
    together = render_clip(scene, 1, 16.0, made.lens, ("irradiance",)).modalities["irradiance"].array
    lit_by_lamps = np.isfinite(together).all()
    assert lit_by_lamps and np.allclose(sum(alone), together, rtol=1e-3, atol=1e-4)
    assert all(0.01 < (light == 0.0).all(axis=-1).mean() < 0.9 for light in alone)  # shadows are there


# ---------------------------------------------------------------------- layers


def composite_error(known: dict[str, np.ndarray]) -> float:
    """Largest difference in 8-bit levels between the picture and its layers put together."""
    share = known["alpha"].astype(float)
    found = share * known["foreground"] + (1.0 - share) * known["background"]
    return float(np.abs(found - known["rgb"]).max())


@pytest.mark.parametrize("seed", LAYER_SEEDS)
def test_layers_put_together_are_the_picture(seed: int) -> None:
    known = arrays("layers", seed)
    assert composite_error(known) <= 0.501
    assert composite_error(known | {"alpha": np.roll(known["alpha"], 1, axis=2)}) > 10.0
    premultiplied = (known["alpha"] * known["foreground"]).astype(np.uint8)
    assert composite_error(known | {"foreground": premultiplied}) > 5.0
    alpha = known["alpha"][..., 0]
    assert np.array_equal(known["rgb"][alpha == 0.0], known["background"][alpha == 0.0])
    assert np.array_equal(known["rgb"][alpha == 1.0], known["foreground"][alpha == 1.0])
    assert ((alpha > 0.0) & (alpha < 1.0)).sum() > 40  # soft edges
    assert np.array_equal(alpha * 16.0, np.rint(alpha * 16.0))


@pytest.mark.parametrize("seed", LAYER_SEEDS)
def test_alpha_background_and_ids_agree(seed: int) -> None:
    made, known = clip("layers", seed), arrays("layers", seed)
    alpha, ids = known["alpha"][..., 0], known["segmentation"][..., 0]
    front = np.isin(ids, made.scene.foreground)
    assert front[alpha == 1.0].all() and not front[alpha == 0.0].any()
    assert abs(alpha.sum() / front.sum() - 1.0) < 0.03  # the same area
    for index in (0, 3):
        behind = frame(made.scene.rear.at(index / made.fps), made.lens)
        assert np.array_equal(known["background"][index], behind)


@pytest.mark.parametrize("seed", LAYER_SEEDS)
def test_the_foreground_goes_on_beyond_its_edge(seed: int) -> None:
    """Next to the edge, where alpha is 0, its colour is one of the edge's: no black and no background."""
    known = arrays("layers", seed)
    for alpha, colour in zip(known["alpha"][..., 0], known["foreground"].astype(int), strict=True):
        inside = alpha > 0.0
        beside = ~inside[1:-1, 1:-1] & (inside[1:-1, 2:] | inside[1:-1, :-2] | inside[2:, 1:-1] | inside[:-2, 1:-1])
        shades = colour[inside].reshape(-1, 3)
        outside = colour[1:-1, 1:-1][beside]
        assert (outside >= shades.min(axis=0)).all() and (outside <= shades.max(axis=0)).all()


def edge_brightness(alpha: np.ndarray, colour: np.ndarray) -> float:
    """Of half-covered pixels, the foreground's brightness as a share of that of covered pixels beside them; median."""
    bright, shares = colour.astype(float).sum(axis=-1), []
    for step, row, column in np.argwhere((alpha > 0.0) & (alpha < 0.6)):
        window = np.s_[step, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        full = bright[window][alpha[window] == 1.0]
        if len(full):
            shares.append(bright[step, row, column] / full.mean())
    assert len(shares) > 20
    return float(np.median(shares))


@pytest.mark.parametrize("seed", LAYER_SEEDS)
def test_the_foreground_is_straight(seed: int) -> None:
    """At its soft edge it is about as bright as inside: not multiplied with alpha."""
    known = arrays("layers", seed)
    assert 0.75 < edge_brightness(known["alpha"][..., 0], known["foreground"]) < 1.3
    assert edge_brightness(known["alpha"][..., 0], known["alpha"] * known["foreground"]) < 0.5


def test_a_foreground_out_of_the_picture_leaves_the_background() -> None:
    """A camera that looks away: alpha is 0, the picture is the background, and nothing fails."""
    made = clip("layers", 2)
    camera = CameraPath("static", (0.0, 1.4, 2.0), (0.0, 1.2, 9.0))  # towards the wall behind
    away = render_clip(replace(made.scene, camera=camera), 1, 16.0, made.lens)
    assert not away.modalities["alpha"].array.any()
    assert np.array_equal(away.frames, away.modalities["background"].array)
