"""Codecs: known answers, exact inverses, and parity with the libraries behind them."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openuni.manifests.contracts.modality import find_modality, modality_names, read_rendering
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.training.codecs.bytes import Bytes
from openuni.training.codecs.dct import COEFFICIENTS, Dct
from openuni.training.codecs.umt5 import Umt5, cleaned
from openuni.training.codecs.wan_vae import WanVae
from tests.manifests.modalities.people import standing
from tests.train.tiny_codecs import tiny_umt5, tiny_vae


def smooth_video(frames: int = 9, side: int = 32) -> np.ndarray:
    """A bright disc that moves over a shaded, slightly noisy ground: float32 [T, H, W, 3] in 0..1."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    video = np.empty((frames, side, side, 3))
    for t in range(frames):
        disc = 1 / (1 + np.exp(40 * (np.hypot(x - 0.3 - 0.04 * t, y - 0.5) - 0.2)))
        video[t] = np.stack([0.3 + 0.3 * x + 0.4 * disc, 0.3 + 0.2 * y, 0.5 - 0.3 * disc], axis=-1)
    return (video + 0.01 * random.standard_normal(video.shape)).clip(0, 1).astype(np.float32)


# ---------------------------------------------------------------- dct


def test_dct_is_exactly_invertible_with_all_channels() -> None:
    video = np.random.default_rng(0).random((9, 16, 24, 3), dtype=np.float32)
    codec = Dct(COEFFICIENTS)
    latents = codec.encode(None, video)
    assert latents.shape == (COEFFICIENTS, 3, 2, 3) and latents.dtype == np.float32
    np.testing.assert_allclose(codec.decode(None, latents), video, atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(1, 96), seed=st.integers(0, 1000))
def test_dct_round_trip_is_an_orthogonal_projection(channels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    video, other = (random.random((5, 8, 16, 3), dtype=np.float32) for _ in range(2))
    codec = Dct(channels)

    def project(x: np.ndarray) -> np.ndarray:
        return codec.synthesise(codec.encode(None, x)) * 2.0 - 1.0

    once = project(video)
    np.testing.assert_allclose(project((once + 1) / 2), once, atol=1e-5)  # idempotent
    weights = np.array([4.0, 1, 1, 1, 1])[:, None, None, None]  # the first frame stands for four
    left = (weights * project(video) * (other * 2 - 1)).sum()
    right = (weights * (video * 2 - 1) * project(other)).sum()
    assert left == pytest.approx(right, abs=1e-2)  # self-adjoint
    kept, lost = (weights * once**2).sum(), (weights * ((video * 2 - 1) - once) ** 2).sum()
    assert kept + lost == pytest.approx((weights * (video * 2 - 1) ** 2).sum(), rel=1e-4)  # Pythagoras


@pytest.mark.parametrize("name", modality_names())
def test_dct_carries_every_modality(name: str) -> None:
    smooth = 0.5 + smooth_video(9, 32) / 2  # as normals: all face the viewer, so that they are smooth too
    kind, codec = find_modality(name), Dct()
    signal = (
        kind.from_rgb(smooth) if kind.invertible else Skeleton(standing((16, 6), 3)[None, None].repeat(9, 0), 32, 32)
    )
    rgb = signal.to_rgb()
    decoded = codec.decode(None, codec.encode(None, rgb))
    assert decoded.shape == rgb.shape
    back = read_rendering(name, decoded)
    assert back.name == (name if kind.invertible else "rgb")
    assert back.array.shape[:3] == (9, 32, 32)
    if name in ("rgb", "albedo", "irradiance", "normal", "alpha", "foreground", "background"):  # smooth as the video is
        assert np.abs(back.to_rgb() - rgb).mean() < 0.02


def test_dct_of_a_grey_video_is_its_mean_alone() -> None:
    latents = Dct(8).encode(None, np.full((5, 8, 8, 3), 0.75, np.float32))
    # 0.5 in -1..1, times sqrt(3) for the sum of colours and 16 for the block's 256 pixels, over the scale of 10
    np.testing.assert_allclose(latents[0], 0.5 * np.sqrt(3) * 16 / 10, atol=1e-5)
    np.testing.assert_allclose(latents[1:], 0, atol=1e-6)


def test_dct_first_frame_stands_still_whatever_the_latents_say() -> None:
    ramp = np.full((5, 8, 8, 3), 0.5, np.float32)
    ramp[1:] += np.linspace(-0.3, 0.3, 4, dtype=np.float32)[:, None, None, None]
    latents = Dct().encode(None, ramp)
    in_time = int(np.abs(latents[1:, 1, 0, 0]).argmax()) + 1  # the slowest change of luminance
    assert abs(latents[in_time, 1, 0, 0]) > 0.1 and latents[in_time, 0, 0, 0] == pytest.approx(0, abs=1e-6)
    moved = latents.copy()
    moved[in_time, 0] += 1.0  # as a generated latent may have it
    np.testing.assert_allclose(Dct().synthesise(moved)[0], Dct().synthesise(latents)[0], atol=1e-6)
    moved[in_time, 1] += 1.0
    assert np.abs(Dct().synthesise(moved)[1] - Dct().synthesise(latents)[1]).max() > 0.005


def test_dct_keeps_world_like_video_and_scales_it_to_about_one() -> None:
    video = smooth_video()
    latents = Dct().encode(None, video)
    error = np.square(Dct().decode(None, latents) - video).mean()
    assert -10 * np.log10(error) > 30
    assert 0.2 < latents.std() < 2


def test_dct_order_is_nested() -> None:
    video = smooth_video()
    np.testing.assert_allclose(Dct(48).encode(None, video)[:16], Dct(16).encode(None, video), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (5, 12, 16, 3), (5, 16, 20, 3), (5, 16, 16, 1)])
def test_dct_refuses_sizes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ClipError, match="must be"):
        Dct().encode(None, np.zeros(shape, np.float32))


def test_dct_refuses_impossible_channels() -> None:
    with pytest.raises(OpenUniError, match="1 to 768"):
        Dct(channels=769)


# ---------------------------------------------------------------- bytes


def test_bytes_rows_depend_on_byte_and_position() -> None:
    rows = Bytes(dim=16).encode(None, "abа")  # the last letter is Cyrillic: two bytes
    assert rows.shape == (5, 16) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows[:2], Bytes(dim=16).encode(None, "ab c")[:2])
    assert not np.allclose(Bytes(dim=16).encode(None, "aa")[0], Bytes(dim=16).encode(None, "aa")[1])
    assert len(Bytes(dim=16).encode(None, "")) == 1


def test_bytes_vectors_are_pinned() -> None:
    # changing them would silently change every corpus: raise `revision` when they do
    np.testing.assert_allclose(Bytes(dim=4).encode(None, "A")[0], PINNED, atol=1e-6)


PINNED = [-0.70710678, -0.70710678, 1.70710678, 1.70710678]


def test_bytes_cut_after_a_whole_character() -> None:
    codec = Bytes(dim=8, max_bytes=4)
    np.testing.assert_array_equal(codec.encode(None, "abcé"), codec.encode(None, "abc"))
    assert len(codec.encode(None, "abécd")) == 5


def test_bytes_are_about_orthonormal() -> None:
    from openuni.training.codecs.bytes import _signs

    gram = _signs(256) @ _signs(256).T / 256
    assert np.abs(gram - np.eye(257)).max() < 0.35


# ---------------------------------------------------------------- wan_vae


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_vae(tmp_path_factory.mktemp("pipeline"))


def test_wan_vae_is_diffusers_with_normalised_means(vae_folder: str) -> None:
    from diffusers import AutoencoderKLWan

    codec = WanVae(checkpoint=vae_folder)
    model = codec.load("cpu")
    video = smooth_video(9, 32)
    latents = codec.encode(model, video)
    assert latents.shape == (16, 3, 4, 4) and latents.dtype == np.float32
    vae = AutoencoderKLWan.from_pretrained(vae_folder, subfolder="vae").eval()
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        raw = vae.encode(torch.from_numpy(video).permute(3, 0, 1, 2)[None] * 2 - 1).latent_dist.mean
        decoded = vae.decode(raw).sample[0].permute(1, 2, 3, 0)
    np.testing.assert_allclose(latents, ((raw - mean) / std)[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(codec.decode(model, latents), ((decoded + 1) / 2).clamp(0, 1).numpy(), atol=1e-5)


def test_wan_vae_version_follows_weights_and_tiling(vae_folder: str) -> None:
    codec = WanVae(checkpoint=vae_folder)
    assert codec.version() != dataclasses.replace(codec, tiling=True).version()
    assert dataclasses.replace(codec, tiling=True).load("cpu").use_tiling
    assert WanVae(checkpoint=f"{vae_folder}/vae").load("cpu").config.z_dim == 16


def test_wan_vae_names_what_is_wrong(vae_folder: str, tmp_path: object) -> None:
    codec = WanVae(checkpoint=vae_folder)
    with pytest.raises(ClipError, match=r"4k \+ 1"):
        codec.encode(codec.load("cpu"), np.zeros((8, 32, 32, 3), np.float32))
    with pytest.raises(OpenUniError, match="openuni checkpoints get nobody/nothing"):
        WanVae(checkpoint="nobody/nothing").load("cpu")
    with pytest.raises(OpenUniError, match="AutoencoderKLWan"):
        WanVae(checkpoint=str(tmp_path)).load("cpu")


# ---------------------------------------------------------------- umt5


@pytest.fixture(scope="module")
def umt5_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_umt5(tmp_path_factory.mktemp("umt5"))


def test_umt5_is_the_encoder_trimmed_to_the_text(umt5_folder: str) -> None:
    from transformers import UMT5EncoderModel

    codec = Umt5(checkpoint=umt5_folder, dtype="float32")
    rows = codec.encode(codec.load("cpu"), "  a red\n ball ")
    assert rows.shape == (4, 12) and rows.dtype == np.float32
    encoder = UMT5EncoderModel.from_pretrained(f"{umt5_folder}/text_encoder").eval()
    # as the Wan pipeline does it: padded to the full length with a mask, then trimmed
    ids, mask = torch.zeros(1, 512, dtype=torch.long), torch.zeros(1, 512, dtype=torch.long)
    ids[0, :4], mask[0, :4] = torch.tensor([3, 4, 5, 1]), 1
    with torch.no_grad():
        padded = encoder(ids, mask).last_hidden_state[0, :4]
    np.testing.assert_allclose(rows, padded.numpy(), atol=1e-5)


def test_umt5_cuts_long_texts_and_has_a_row_for_none(umt5_folder: str) -> None:
    codec = Umt5(checkpoint=umt5_folder, dtype="float32", max_tokens=5)
    model = codec.load("cpu")
    assert codec.encode(model, "a red ball rolls a red ball").shape == (5, 12)
    assert codec.encode(model, "").shape == (1, 12)


def test_text_is_cleaned_as_wan_does() -> None:
    assert cleaned(" a &amp;amp; b\n\tc  ") == "a & b c"
    assert cleaned("schÃ¶n") == "schön"
