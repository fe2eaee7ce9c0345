"""filters/_clip.py: loading, image transform, QuickGELU, and one pass per frame for all filters."""

import gc
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from openuni.filters._clip import OPENAI_L14, PUBLISHED, ClipFilter, Embedder, shared_embedder
from openuni.filters.clip_text import ClipText
from openuni.filters.consistency import Consistency
from openuni.filters.embedding import Embedding
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.moving_pictures import panned, texture
from tests.tiny_clip import SIDE_PX, tiny_clip

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
FRAMES = panned([(0, 0), (3, 1), (6, 2)], 48, 80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def checkpoint(folder):
    return Checkpoint(tiny_clip(folder), "path")


def test_embeddings_equal_open_clip_called_directly(checkpoint):
    found = shared_embedder(checkpoint, "cpu").frames(FRAMES, "fp32", 16)
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{checkpoint.ref}")
    with torch.no_grad():
        pixels = torch.stack([transform(Image.fromarray(frame)) for frame in FRAMES])
        direct = network.eval().encode_image(pixels, normalize=True).numpy()
    assert found.dtype == np.float32
    assert np.array_equal(found, direct)
    assert np.abs(found[0] - found[2]).max() > 1e-3  # random weights tell the frames apart


def test_text_equals_open_clip_called_directly(checkpoint):
    found = shared_embedder(checkpoint, "cpu").text("a red ball on a table", "fp32")
    network = open_clip.create_model(f"local-dir:{checkpoint.ref}").eval()
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-L-14")(["a red ball on a table"])
        direct = network.encode_text(tokens, normalize=True).numpy()[0]
    assert np.array_equal(found, direct)


def by_hand(network, pixels, gelu):
    """The image tower written out: embed patches, blocks with the given activation, pool the class token, project."""
    visual = network.visual
    x = torch.nn.functional.conv2d(pixels, visual.conv1.weight, stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        normed = block.ln_1(x)
        x = x + block.attn(normed, normed, normed, need_weights=False)[0]
        x = x + block.mlp.c_proj(gelu(block.mlp.c_fc(block.ln_2(x))))
    x = visual.ln_post(x[:, 0]) @ visual.proj
    return torch.nn.functional.normalize(x, dim=-1)


def test_quick_gelu_is_x_times_sigmoid_of_1_702_x(folder, checkpoint):
    embedder = shared_embedder(checkpoint, "cpu")
    pixels = torch.stack([embedder.pixels(frame) for frame in FRAMES])
    with torch.no_grad():
        wanted = by_hand(embedder.network, pixels, lambda x: x * torch.sigmoid(1.702 * x)).numpy()
        other = by_hand(embedder.network, pixels, torch.nn.functional.gelu).numpy()
    found = embedder.frames(FRAMES, "fp32", 16)
    assert np.abs(found - wanted).max() < 1e-6
    assert np.abs(found - other).max() > 1e-4  # the check tells them apart
    plain = shared_embedder(Checkpoint(tiny_clip(folder, quick_gelu=False), "path"), "cpu")
    assert (embedder.quick_gelu, plain.quick_gelu) == (True, False)
    assert np.abs(plain.frames(FRAMES, "fp32", 16) - other).max() < 1e-6


def test_openais_weights_get_quick_gelu_whatever_the_configuration_says(folder, monkeypatch):
    (folder / "mirror" / "timm").mkdir(parents=True)
    (folder / "mirror" / OPENAI_L14).symlink_to(tiny_clip(folder, quick_gelu=False))
    monkeypatch.setenv("OPENUNI_CHECKPOINTS", str(folder / "mirror"))
    assert Consistency().load("cpu").quick_gelu


@pytest.mark.parametrize("size", [(48, 80), (180, 320), (320, 180), (90, 90)])
def test_the_image_transform_is_pils_bicubic_and_near_to_torchvisions_on_tensors(checkpoint, size):
    """What other curators do (an antialiased resize of the tensor) gives other pixels, by up to a few levels of 255.

    Seen: at most 1.5 levels on smooth pictures as these; the difference is bounded here, not removed: PIL's is what
    CLIP was trained and published with.
    """
    frame = texture(*size)
    found = shared_embedder(checkpoint, "cpu").pixels(frame)

    height, width = (int(SIDE_PX * side / min(size)) for side in size)
    image = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - SIDE_PX) / 2), round((width - SIDE_PX) / 2)
    crop = np.asarray(image)[top : top + SIDE_PX, left : left + SIDE_PX]
    pil = (torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255 - MEAN) / STD
    assert torch.equal(found, pil)

    tensor = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(tensor, (height, width), mode="bicubic", antialias=True)
    resized = resized[0, :, top : top + SIDE_PX, left : left + SIDE_PX].clamp(0, 255)
    levels = (found * STD + MEAN) * 255
    assert 0 < (levels - resized).abs().max() < 2


def test_each_frame_is_embedded_once_for_all_filters(checkpoint, monkeypatch):
    seen = []
    inner = Embedder._embed

    def counting(self, frames, precision):
        seen.append(len(frames))
        return inner(self, frames, precision)

    monkeypatch.setattr(Embedder, "_embed", counting)
    clip = DecodedClip.from_frames(panned([(0, 0), (5, 1), (9, 2), (9, 2)], 48, 80), caption="a texture")
    filters = [kind(checkpoint=checkpoint.ref, frames_per_batch=2) for kind in (Consistency, ClipText, Embedding)]
    models = [operator.load("cpu") for operator in filters]
    assert models[0] is models[1] is models[2]
    for operator, model in zip(filters, models, strict=True):
        operator.run(model, clip.take(np.arange(4)))  # as a worker does: a copy of the frames for each filter
    assert seen == [2, 1]  # four frames, two of them equal
    other = DecodedClip.from_frames(panned([(1, 1)], 48, 80), caption="a texture")
    filters[0].embed(models[0], other.frames)
    assert seen == [2, 1, 1]


def test_what_is_remembered_is_bounded_and_per_precision(checkpoint, monkeypatch):
    monkeypatch.setattr("openuni.filters._clip.CACHED_FRAMES", 2)
    embedder = Embedder(Path(checkpoint.ref), "cpu", quick_gelu=False)
    first = embedder.frames(FRAMES, "fp32", 16)
    assert len(embedder.frame_cache) == 2
    assert np.array_equal(embedder.frames(FRAMES[1:], "fp32", 16), first[1:])
    rounded = embedder.frames(FRAMES, "bf16", 16)
    apart = np.abs(rounded - first).max(axis=1)
    assert 0 < apart.min() <= apart.max() < 0.05
    assert rounded.dtype == np.float32
    assert np.allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-6)


def test_the_network_goes_when_no_filter_holds_it(folder):
    checkpoint = Checkpoint(tiny_clip(folder, embed_dim=8), "path")
    model = Consistency(checkpoint=checkpoint.ref).load("cpu")
    assert shared_embedder(checkpoint, "cpu") is model
    before = id(model.network)
    del model
    gc.collect()
    from openuni.filters import _clip

    assert all(id(embedder.network) != before for embedder in _clip._alive.values())


def test_samples_lie_on_an_even_grid_in_time_shared_by_all_filters():
    times_s = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.09, 300))
    for kind in (Consistency, ClipText, Embedding):
        picked = times_s[kind().sample(times_s)]
        assert np.abs(picked - times_s[0] - np.arange(len(picked))).max() < 0.05
        assert np.array_equal(kind(max_frames=3).sample(times_s), ClipFilter.sample(kind(max_frames=3), times_s))
        assert len(kind(max_frames=3).sample(times_s)) == 3


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_a_folder_without_safetensors_or_configuration_is_refused(folder, tmp_path, name):
    source = Path(tiny_clip(folder))
    for file in source.iterdir():
        (tmp_path / (file.name if file.name != name else "open_clip_pytorch_model.bin")).symlink_to(file)
    with pytest.raises(OpenUniError, match=f"{name} not found in"):
        Consistency(checkpoint=str(tmp_path)).load("cpu")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('{"model_cfg": {"vision_cfg": {"timm_model_name": "hf-hub:x/y"}}}', "timm_model_name"),
        ('{"model_cfg": {"text_cfg": {"hf_tokenizer_name": "x/y", "hf_model_name": "x/y"}}}', "hf_model_name, hf_tok"),
        ("[]", "is not an open_clip configuration"),
        ("{", "is not an open_clip configuration"),
        (" " * (1024**2 + 1), "1 MiB"),
        (json.dumps({"model_cfg": {"embed_dim": 8}}), "not a CLIP model"),
    ],
    ids=["timm", "transformers", "list", "broken", "huge", "no towers"],
)
def test_other_configurations_are_refused(folder, tmp_path, config, reason):
    (tmp_path / "open_clip_model.safetensors").symlink_to(Path(tiny_clip(folder)) / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(OpenUniError, match=reason):
        Consistency(checkpoint=str(tmp_path)).load("cpu")


def test_other_or_damaged_weights_are_refused(folder, tmp_path):
    source = Path(tiny_clip(folder))
    (tmp_path / "open_clip_config.json").symlink_to(source / "open_clip_config.json")
    weights = tmp_path / "open_clip_model.safetensors"
    weights.symlink_to(Path(tiny_clip(folder, embed_dim=8)) / "open_clip_model.safetensors")
    with pytest.raises(OpenUniError, match="not a CLIP model"):
        Consistency(checkpoint=str(tmp_path)).load("cpu")
    weights.unlink()
    weights.write_bytes((source / "open_clip_model.safetensors").read_bytes()[:1000])
    with pytest.raises(OpenUniError, match="not a CLIP model"):
        Consistency(checkpoint=str(tmp_path)).load("cpu")


def test_missing_weights_come_with_the_command():
    with pytest.raises(MissingRequirement, match=f"openuni checkpoints get {OPENAI_L14}"):
        Consistency().load("cpu")
    (published,) = PUBLISHED
    assert (published.licence, published.terms, published.requires_acceptance) == ("Apache-2.0", "permissive", False)


@pytest.mark.parametrize(
    "wrong", [{"frames_per_s": 0.0}, {"max_frames": 0}, {"frames_per_batch": 0}, {"precision": "fp8"}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match=r"consistency: .*Allowed"):
        Consistency(**wrong)


def test_the_tiny_checkpoint_is_what_open_clip_writes(checkpoint):
    names = load_file(Path(checkpoint.ref) / "open_clip_model.safetensors").keys()
    assert {"visual.conv1.weight", "token_embedding.weight", "logit_scale"} <= set(names)
