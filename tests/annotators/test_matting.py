import dataclasses

import cv2
import numpy as np
import pytest
import torch
from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting, VitMatteImageProcessor

from openuni.annotators._matte import layer_colours, matte_of_clip, spread
from openuni.annotators.matting import BACKGROUND, FOREGROUND, UNKNOWN, Matting, subject_masks, trimaps
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError, Unavailable
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.world import make_clip
from tests.moving_pictures import panned


def tiny_checkpoint(folder):
    """ViTMatte in transformers' format: the real classes, one narrow layer, random weights."""
    path = folder / "tiny"
    if path.exists():
        return str(path)
    backbone = VitDetConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        num_channels=4,
        window_size=2,
        out_features=["stage1"],
    )
    config = VitMatteConfig(
        backbone_config=backbone, hidden_size=16, convstream_hidden_sizes=[4, 8, 8], fusion_hidden_sizes=[8, 8, 8, 4]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VitMatteForImageMatting(config)
        for value in network.parameters():
            torch.nn.init.normal_(value, 0, 0.5)
    network.save_pretrained(path)
    VitMatteImageProcessor().save_pretrained(path)
    return str(path)


def with_maps(frames, **maps):
    return dataclasses.replace(DecodedClip.from_frames(frames), maps=maps)


def square(count, height_px, width_px, one=1):
    """uint16 [T, H, W, 1]: instance `one` in the middle, half as high and wide as the frame."""
    ids = np.zeros((count, height_px, width_px, 1), np.uint16)
    ids[:, height_px // 4 : -(height_px // 4), width_px // 4 : -(width_px // 4)] = one
    return ids


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: random weights in the library's own format, masks as from `sam`."""
    maps = {"segmentation": Segmentation(square(*frames.shape[:3]))}
    return Matting(checkpoint=tiny_checkpoint(folder)), with_maps(frames, **maps)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("matting"))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


# ------------------------------------------------------------------ trimap and subject


def test_the_band_of_a_trimap_is_as_wide_as_asked_for():
    masks = square(1, 120, 160)[..., 0] > 0  # 60 x 80: its side length is 69
    trimap = trimaps(masks, 0.1)[0]
    row = trimap[60]
    assert [int((row == value).sum()) for value in (BACKGROUND, UNKNOWN, FOREGROUND)] == [160 - 80 - 14, 28, 80 - 14]
    assert (row[: 40 - 7] == BACKGROUND).all() and (row[40 + 7 : 120 - 7] == FOREGROUND).all()
    larger = cv2.resize(masks[0].astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)[None] > 0
    assert (trimaps(larger, 0.1) == UNKNOWN).mean() == pytest.approx((trimap == UNKNOWN).mean(), rel=0.05)


def test_what_the_frame_cuts_is_sure_up_to_its_border():
    masks = np.zeros((1, 64, 64), bool)
    masks[0, 32:, 16:48] = True
    assert trimaps(masks, 0.1)[0][63, 32] == FOREGROUND


def test_a_band_is_at_least_a_pixel_and_no_mask_is_all_background():
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 8, 8] = True
    found = trimaps(masks, 0.01)
    assert (found[0] == UNKNOWN).sum() == 5 and not (found[1] != BACKGROUND).any()


def test_the_subject_is_the_largest_instance_that_does_not_fill_the_border():
    ids = np.zeros((2, 40, 60, 1), np.uint16)
    ids[:, :15] = 1  # a wall: the largest, along the top and parts of two sides
    ids[:, 20:35, 10:25] = 2
    ids[:, 30:, 40:50] = 3
    clip = with_maps(noise(2, 80, 120), segmentation=Segmentation(ids))
    for given, wanted in (
        ({"subject": "largest"}, [2]),
        ({"subject": "all"}, [1, 2, 3]),
        ({"subject": "largest", "ids": (3, 9)}, [3]),
    ):
        masks = subject_masks(clip, **given)
        assert masks.shape == (2, 80, 120) and np.array_equal(masks[:, ::2, ::2], np.isin(ids[..., 0], wanted))


def skeleton_in(count, height_px, width_px, left, right):
    points = np.zeros((count, 2, 133, 3), np.float32)
    rng = np.random.default_rng(0)
    points[:, 0, :17, 0] = rng.uniform(left, right, (count, 17))
    points[:, 0, :17, 1] = rng.uniform(0.3 * height_px, 0.7 * height_px, (count, 17))
    points[:, 0, :17, 2] = 0.9  # the second person is never there
    return Skeleton(points, height_px, width_px)


def test_people_are_the_instances_that_key_points_lie_in():
    ids = square(3, 40, 60, one=7)
    ids[:, 5:9, 5:9] = 8
    person = skeleton_in(3, 80, 120, 40, 80)  # the picture twice as large as the masks
    clip = with_maps(noise(3, 40, 60), segmentation=Segmentation(ids), skeleton=person)
    assert np.array_equal(subject_masks(clip, "people"), ids[..., 0] == 7)
    away = with_maps(noise(3, 40, 60), segmentation=Segmentation(ids), skeleton=skeleton_in(3, 80, 120, 0, 5))
    with pytest.raises(Unavailable, match="no instance with keypoints of a person found"):
        subject_masks(away, "people")


@pytest.mark.parametrize("options", [{}, {"subject": "all"}, {"ids": (4,)}])
def test_a_clip_without_a_subject_is_unavailable(checkpoint, options):
    operator = Matting(checkpoint=checkpoint, **options)
    with pytest.raises(Unavailable, match=r"no subject: .* found in this clip"):
        operator.run(operator.load("cpu"), with_maps(noise(1, 32, 32), segmentation=Segmentation(square(1, 32, 32, 0))))


def test_which_maps_are_wanted():
    assert Matting().requires() == ("segmentation",)
    assert Matting(subject="people").requires() == ("segmentation", "skeleton")
    assert Matting(subject="people", ids=(1,)).requires() == ("segmentation",)
    assert Matting(checkpoint="mine.torchscript").requires() == ()


# ------------------------------------------------------------------ ViTMatte


def test_alpha_is_the_trimap_where_it_is_sure_and_the_networks_between(checkpoint):
    frames = noise(2, 70, 90)  # no multiple of 32
    clip = with_maps(frames, segmentation=Segmentation(square(2, 70, 90)))
    operator = Matting(checkpoint=checkpoint)
    network, processor = operator.load("cpu")
    alpha = operator.run((network, processor), clip).alpha.array[..., 0]
    trimap = trimaps(square(2, 70, 90)[..., 0] > 0, operator.trimap_band_share)

    # by hand, from the definition: (x / 255 - 0.5) / 0.5, the trimap as it is, zeros to the right and below
    pixels = torch.zeros(2, 4, 96, 96)
    pixels[:, :3, :70, :90] = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2) / 127.5 - 1
    pixels[:, 3, :70, :90] = torch.from_numpy(trimap) / 255
    with torch.no_grad():
        by_hand = network(pixel_values=pixels).alphas[:, 0, :70, :90].numpy()
    assert np.ptp(by_hand) > 0.1
    band = trimap == UNKNOWN
    assert np.abs(alpha - by_hand)[band].max() < 1e-5
    assert np.array_equal(alpha[~band], (trimap == FOREGROUND)[~band])


def test_batches_do_not_change_the_matte(checkpoint):
    ids = square(5, 48, 64)
    ids[2] = 0  # out of the picture for a moment
    clip = with_maps(noise(5, 48, 64), segmentation=Segmentation(ids))
    found = []
    for size in (1, 2, 8):
        operator = Matting(checkpoint=checkpoint, frames_per_batch=size)
        found.append(operator.run(operator.load("cpu"), clip).alpha.array)
    assert not found[0][2].any() and found[0][1].any()
    for alpha in found[1:]:
        assert np.abs(alpha - found[0]).max() < 1e-5


def test_bf16_stays_near_fp32(checkpoint):
    clip = with_maps(noise(1, 48, 64), segmentation=Segmentation(square(1, 48, 64)))
    exact, half = (
        operator.run(operator.load("cpu"), clip).alpha.array
        for operator in (Matting(checkpoint=checkpoint), Matting(checkpoint=checkpoint, precision="bf16"))
    )
    assert half.dtype == np.float32 and 0 < np.abs(exact - half).max() < 0.1


def test_other_checkpoints_are_explained(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OpenUniError, match="is not ViTMatte in transformers format"):
        Matting(checkpoint=str(tmp_path)).load("cpu")
    with pytest.raises(MissingRequirement, match="openuni checkpoints get hustvl/vitmatte-small-composition-1k"):
        Matting().load("cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"subject": "none"},
        {"precision": "fp8"},
        {"trimap_band_share": 0.0},
        {"trimap_band_share": 0.6},
        {"frames_per_batch": 0},
        {"downsample_ratio": 2.0},
        {"ids": (0,)},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Matting(**wrong)


# ------------------------------------------------------------------ colours of the layers


def composite(front, rear, alpha):
    share = alpha[..., None]
    return share * front + (1 - share) * rear


def disc(height_px=60, width_px=80, edge_px=8.0):
    """float32 [H, W]: 1 inside, 0 outside, a soft edge between."""
    y, x = np.mgrid[:height_px, :width_px]
    return np.clip((18 - np.hypot(x - 40, y - 30)) / edge_px + 0.5, 0, 1).astype(np.float32)


def test_even_colours_are_recovered_straight_wherever_alpha_is_above_0():
    alpha = disc()
    front, rear = np.float32([230, 40, 90]), np.float32([20, 200, 120])
    picture = np.rint(composite(front, rear, alpha)).astype(np.uint8)
    found = layer_colours(picture, alpha)
    assert np.abs(found.foreground - front)[alpha > 0].max() < 1.5  # the picture's rounding, magnified
    assert np.abs(found.background - rear)[alpha < 1].max() < 1.5
    premultiplied = alpha[..., None] * front
    assert np.abs(found.foreground - premultiplied)[(alpha > 0) & (alpha < 0.5)].min() > 10  # not what is wanted
    assert np.abs(found.foreground - front).max() < 1.5  # and they go on where alpha is 0


def test_the_composite_of_the_layers_is_the_picture():
    rng = np.random.default_rng(1)
    alpha = rng.uniform(0, 1, (40, 50)).astype(np.float32)
    alpha[:10], alpha[-10:] = 0, 1
    picture = rng.integers(96, 160, (40, 50, 3)).astype(np.uint8)  # no colour has to leave 0..255
    found = layer_colours(picture, alpha)
    assert np.abs(composite(found.foreground, found.background, alpha) - picture).max() < 1e-3
    assert np.array_equal(np.rint(found.foreground[-10:]), picture[-10:])
    assert np.array_equal(np.rint(found.background[:10]), picture[:10])


def test_a_colour_known_nowhere_and_one_pixel():
    assert np.isfinite(layer_colours(noise(9, 7), np.zeros((9, 7), np.float32)).foreground).all()
    assert np.isfinite(layer_colours(noise(9, 7), np.ones((9, 7), np.float32)).background).all()
    assert layer_colours(noise(1, 1), np.full((1, 1), 0.5, np.float32)).foreground.shape == (1, 1, 3)


def test_spreading_keeps_what_is_known_and_invents_no_colour():
    colour = noise(33, 50).astype(np.float32)
    weight = (np.random.default_rng(2).random((33, 50)) < 0.1).astype(np.float32)
    filled = spread(colour, weight)
    assert np.abs(filled - colour)[weight > 0].max() < 1e-3
    known = colour[weight > 0]
    assert (filled >= known.min(axis=0) - 1e-2).all() and (filled <= known.max(axis=0) + 1e-2).all()


@pytest.fixture(scope="module")
def world():
    """A rendered clip whose layers are known."""
    return make_clip(0, preset="layers", frames=3, height_px=120, width_px=208)


def test_layers_of_a_rendered_scene_come_near_the_truth(world):
    truth = {name: world.modalities[name].array for name in ("alpha", "foreground", "background")}
    for image, alpha, front, rear in zip(world.frames, truth["alpha"][..., 0], *list(truth.values())[1:], strict=True):
        found = layer_colours(image, alpha)
        soft = (alpha > 0) & (alpha < 1)
        assert soft.sum() > 80

        def error(estimate, known, weight, soft=soft):
            return float((np.abs(estimate - known).mean(axis=-1) * weight)[soft].sum() / weight[soft].sum())

        assert error(found.foreground, front, alpha) < 0.15 * error(image.astype(np.float32), front, alpha)
        assert error(found.background, rear, 1 - alpha) < 0.15 * error(image.astype(np.float32), rear, 1 - alpha)
        again = composite(found.foreground, found.background, alpha)
        assert np.abs(again - image).mean() < 0.1  # the rest would have to leave 0..255


def test_true_masks_are_sure_only_where_the_true_matte_is(world):
    truth = world.modalities["alpha"].array[..., 0]
    clip = with_maps(world.frames, segmentation=world.modalities["segmentation"])
    masks = subject_masks(clip, "largest", world.scene.foreground)
    trimap = trimaps(masks, Matting().trimap_band_share)
    band = trimap == UNKNOWN
    recovered = np.where(band, truth, trimap == FOREGROUND)  # a network that is right in the band
    assert (recovered == truth).mean() > 0.9995  # the rest: thinner than a pixel, so in no mask
    assert band.mean() < 0.5 * (trimap == FOREGROUND).mean() + 0.1 and truth[band].std() > 0.3


def test_scores_tell_a_good_matte_from_a_bad_one(world):
    clip = DecodedClip.from_frames(world.frames)
    alpha = world.modalities["alpha"].array[..., 0]
    true = matte_of_clip(clip, alpha)
    shifted = matte_of_clip(clip, np.roll(alpha, 6, axis=2))
    jumping = alpha.copy()
    jumping[1::2] = np.roll(jumping[1::2], 6, axis=2)
    assert true.covered_share == pytest.approx(float(alpha.mean()), rel=1e-6)
    assert true.soft_share == pytest.approx(((alpha >= 0.02) & (alpha <= 0.98)).mean())
    assert true.edge_rank > 0.9 > shifted.edge_rank + 0.1
    assert true.composite_residual < 0.003
    assert true.alpha_change < 0.7 * matte_of_clip(clip, jumping).alpha_change
    assert true.background is None  # the person's feet hide some pixels in all three frames


def over_texture(lefts_px):
    """A disc of one colour before a texture that stands still: frames, alpha, foreground's colour, background."""
    rear = panned([(0, 0)], 60, 160)[0]
    front = np.array([200, 40, 60], np.uint8)
    alpha = np.stack([np.roll(np.pad(disc(), ((0, 0), (0, 80))), left, axis=1) for left in lefts_px])
    frames = np.stack([np.rint(composite(front, rear.astype(np.float32), one)) for one in alpha]).astype(np.uint8)
    return frames, alpha, front, rear


def test_the_background_is_known_where_the_foreground_leaves_every_pixel_of_a_resting_camera():
    frames, alpha, front, rear = over_texture([0, 40, 80])
    found = matte_of_clip(DecodedClip.from_frames(frames), alpha)
    assert np.abs(found.background.array.astype(int) - rear).max() <= 5  # alpha below 0.02 counts as free
    seen = alpha > 0.1
    assert np.abs(found.foreground.array.astype(int) - front)[seen].max() <= 8
    again = np.stack(
        [composite(*layers) for layers in zip(found.foreground.array, found.background.array, alpha, strict=True)]
    )
    assert np.abs(again - frames).max() < 4 and found.composite_residual < 0.002
    assert matte_of_clip(DecodedClip.from_frames(frames[::2]), alpha[::2]).background is not None
    near = over_texture([0, 10, 20])  # some pixels are covered in all frames
    assert matte_of_clip(DecodedClip.from_frames(near[0]), near[1]).background is None
    moved = frames.copy()
    moved[1] = np.roll(moved[1], 3, axis=0)  # the camera is bumped
    bumped = np.stack([alpha[0], np.roll(alpha[1], 3, axis=0), alpha[2]])
    assert matte_of_clip(DecodedClip.from_frames(moved), bumped).background is None


def test_a_matte_that_asks_for_colours_that_do_not_exist():
    dark = np.zeros((1, 60, 80, 3), np.uint8)
    dark[0, 20:40, 30:50] = 255  # white on black, but half covered everywhere: neither grey can be brighter than white
    clip = DecodedClip.from_frames(dark)
    front = np.full_like(dark, 40)  # what a network claims
    assert matte_of_clip(clip, np.full((1, 60, 80), 0.5, np.float32), front).composite_residual > 0.05
    assert matte_of_clip(clip, np.full((1, 60, 80), 0.5, np.float32)).composite_residual < 0.01


def test_a_matte_that_moves_with_the_picture_does_not_change():
    frames = panned([(0, 0), (3, 1), (6, 2)])
    alpha = np.stack([np.roll(disc(120, 180), shift, axis=(0, 1)) for shift in ((0, 0), (1, 3), (2, 6))])
    clip = DecodedClip.from_frames(frames)
    assert matte_of_clip(clip, alpha).alpha_change < 0.01
    still = np.repeat(alpha[:1], 3, axis=0)
    assert matte_of_clip(clip, still).alpha_change > 0.05
    hard = matte_of_clip(clip, (alpha > 2).astype(np.float32))
    assert hard.alpha_change is None and hard.composite_residual is None and hard.edge_rank is None
    assert hard.covered_share == hard.soft_share == 0
