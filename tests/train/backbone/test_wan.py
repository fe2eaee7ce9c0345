"""What all models on Wan share: loading without a second copy, named sizes, precision, attention, compiled blocks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.lora import gated_layers
from openuni.training.backbone.pretrained import WEIGHTS, weight_shards
from openuni.training.loop.training_checkpoint import load_model, model_tensors
from openuni.training.loop.weights import Ema, Weights
from openuni.training.models.unityvideo import UnityVideo, UnityVideoTransformer
from openuni.training.models.unividx import UniVidX, UniVidXTransformer
from openuni.training.optimizers.adamw import build_optimizer
from openuni.training.parity.subject import plain_model
from openuni.training.recipe import RECIPES_DIR, TrainingRecipe
from tests.train.backbone.tiny_wan import inputs as rows
from tests.train.backbone.wan_components import NAMES, SMALL, components

# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("name", components())
def test_pretrained_weights_are_taken_as_they_are(folder: Path, name: str) -> None:
    plain = plain_model(folder)
    model = components(pretrained=str(folder))[name].load("cpu")
    ours = model.state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in plain.state_dict().items())
    assert not [key for key, tensor in ours.items() if tensor.is_meta or tensor.isnan().any()]
    assert torch.equal(model.rope.freqs_cos, plain.rope.freqs_cos)
    spelled = components(**SMALL)[name].load("cpu")
    assert {key: (t.shape, t.dtype) for key, t in spelled.state_dict().items()} == {
        key: (t.shape, t.dtype) for key, t in ours.items()
    }
    assert {k for k, p in spelled.named_parameters() if p.requires_grad} == {
        k for k, p in model.named_parameters() if p.requires_grad
    }
    with torch.no_grad():  # none of it is a view of the file
        for parameter in model.parameters():
            parameter.add_(1.0)
    again = components(pretrained=str(folder))[name].load("cpu").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in plain.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_files_of_other_precision_are_read_alike(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(3, 5).to(dtype), "scalar": torch.tensor(2.0, dtype=dtype), "none": torch.empty(0, 4)}
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    read = {name: tensor for shard in weight_shards(tmp_path) for name, tensor in shard.items()}
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == tensor.dtype and torch.equal(read[name], tensor) for name, tensor in tensors.items())
    save_file({"a": torch.zeros(2, dtype=torch.int64)}, tmp_path / WEIGHTS)
    with pytest.raises(OpenUniError, match="a is I64"):
        list(weight_shards(tmp_path))


def test_weights_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"ffn_dim": 40}))
    with pytest.raises(OpenUniError, match=r"ffn\.net\.0\.proj.* is \[32.*\], expected \[40"):
        UniVidX(modalities=NAMES, pretrained=str(tmp_path)).load("cpu")
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(OpenUniError, match=r"differing keys: blocks\.2\."):
        UniVidX(modalities=NAMES, pretrained=str(tmp_path)).load("cpu")
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = min(tmp_path.glob("*.safetensors"))
    first.write_bytes(b"\xff" * 100)
    with pytest.raises(OpenUniError, match="cannot be read as a safetensors file"):
        UniVidX(modalities=NAMES, pretrained=str(tmp_path)).load("cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not a valid JSON file"),
        ("[]", r"must be that of a plain WanTransformer3DModel, got None"),
        ({"_class_name": "UNet2DModel"}, r"WanTransformer3DModel, got UNet2DModel"),
        ({"in_channels": None}, "must be that of a plain WanTransformer3DModel"),
        ({"vace_layers": [0]}, "must be that of a plain WanTransformer3DModel"),
        ({"out_channels": 8}, "input and output channels must be equal"),
        ({"eps": 1e-2}, r"eps must be 1e-06, as in the published models, got 0\.01"),
        ({"cross_attn_norm": False}, "cross_attn_norm must be True, as in the published models, got False"),
    ],
)
def test_what_no_run_could_record_is_refused(folder: Path, tmp_path: Path, config: Any, message: str) -> None:
    """A run's record says the sizes of its base, and nothing else of it."""
    if isinstance(config, dict):
        whole = json.loads((folder / "config.json").read_text()) | config
        config = json.dumps({key: value for key, value in whole.items() if value is not None or key != "in_channels"})
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(OpenUniError, match=message):
        UniVidX(modalities=NAMES, pretrained=str(tmp_path)).load("cpu")


@pytest.mark.parametrize("listing", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_of_shards_that_is_none_is_named(tmp_path: Path, listing: str) -> None:
    (tmp_path / f"{WEIGHTS}.index.json").write_text(listing)
    with pytest.raises(OpenUniError, match=r'is not a shard index: it must have a table "weight_map"'):
        list(weight_shards(tmp_path))


def test_an_addition_without_a_value_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    component = components(pretrained=str(folder))["univigu"]
    kind = type(component.load("cpu"))
    monkeypatch.setattr(kind, "after_base", lambda self: None)
    with pytest.raises(RuntimeError, match=r"leaves .* without a value"):
        component.load("cpu")


MEASURE = """
import re, sys
from openuni.training.models.unividx import UniVidX
component = UniVidX(modalities=("rgb", "depth"), rank=2, pretrained=sys.argv[1])
UniVidX(modalities=("rgb", "depth"), heads=2, head_dim=12, ffn_dim=32, num_layers=1, text_dim=8).load("cpu")
component.base_options()
def peak():  # not getrusage's, which begins with that of the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
model = component.load("cpu")
after = peak()
base = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "lora" not in n)
print((after - before) / base, base)
"""


@pytest.mark.slow
def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path) -> None:
    """Peak memory of a fresh process; a second copy, or random weights first, would be 2 or more."""
    model = WanTransformer3DModel(num_attention_heads=8, attention_head_dim=96, ffn_dim=4096, num_layers=8)
    model.save_pretrained(tmp_path)  # in one file
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    ratio, base = map(float, done.stdout.split())
    assert base > 250e6
    print(f"{base / 1e6:.0f} MB of weights: {ratio:.2f} times that at the peak")
    assert ratio < 1.3, ratio  # a tensor in hand and the interpreter's own beside the weights


# ---------------------------------------------------------------- named sizes

# config.json as published with the weights; parameters as the model cards and the files' own headers count them
WAN = {
    "_class_name": "WanTransformer3DModel",
    "_diffusers_version": "0.33.0.dev0",
    "added_kv_proj_dim": None,
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "freq_dim": 256,
    "image_dim": None,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
    "text_dim": 4096,
}
PUBLISHED = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": (
        {"ffn_dim": 8960, "num_attention_heads": 12, "num_layers": 30},
        1_418_996_800,
    ),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": (
        {"ffn_dim": 13824, "num_attention_heads": 40, "num_layers": 40},
        14_288_491_584,
    ),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": (
        {
            "ffn_dim": 14336,
            "num_attention_heads": 24,
            "num_layers": 30,
            "in_channels": 48,
            "out_channels": 48,
            "pos_embed_seq_len": None,
        },
        4_999_787_712,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str, tmp_path: Path) -> None:
    config, count = PUBLISHED[name]
    pipeline = tmp_path / "transformer"
    pipeline.mkdir()
    (pipeline / "config.json").write_text(json.dumps(WAN | config))
    kinds = {"unityvideo": UnityVideoTransformer, "unividx": UniVidXTransformer}
    for kind, component in components(pretrained=str(tmp_path)).items():
        resolved = component.resolved()
        assert (resolved.num_layers, resolved.heads, resolved.head_dim, resolved.ffn_dim) == (
            *(config["num_layers"], config["num_attention_heads"], 128, config["ffn_dim"]),
        )
        channels = config.get("in_channels", 16)
        assert (resolved.channels, resolved.patch, resolved.text_dim) == (channels, (1, 2, 2), 4096)
        given = component.base_options()
        assert all(given[key] == value for key, value in resolved.base_options().items() if key != "patch_size")
        if kind not in kinds:
            continue
        extra = {"switcher_dim": 256} if kind == "unityvideo" else {"adapters": NAMES, "rank": 32}
        with torch.device("meta"):
            model = kinds[kind](NAMES, **extra, **component.base_options())
        added = set(model.added_parameters())
        assert sum(p.numel() for n, p in model.named_parameters() if n not in added) == count
        assert (model.channels, model.patch, model.text_dim) == (channels, (1, 2, 2), 4096)


def test_recipes_name_published_sizes() -> None:
    named = {path.stem: TrainingRecipe.load(path).model.get("pretrained") for path in RECIPES_DIR.glob("*_wan*.toml")}
    assert set(named.values()) == set(PUBLISHED)
    assert named["unityvideo_wan2_2_5b"] == "Wan-AI/Wan2.2-TI2V-5B-Diffusers"


def test_a_pipeline_of_two_transformers_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("transformer", "transformer_2"):
        (tmp_path / name).mkdir()
        for file in folder.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OpenUniError, match=r"two transformers.*transformer_2"):
        UnityVideo(pretrained=str(tmp_path)).resolved()
    UnityVideo(pretrained=str(tmp_path / "transformer_2")).load("cpu")


# ---------------------------------------------------------------- precision


def test_a_bfloat16_base_is_that_of_autocast_bit_for_bit(folder: Path) -> None:
    torch.manual_seed(1)
    wide = UniVidX(modalities=NAMES, rank=3, pretrained=str(folder)).load("cpu")
    torch.manual_seed(1)
    half = UniVidX(modalities=NAMES, rank=3, pretrained=str(folder), frozen_dtype="bfloat16").load("cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for ours, theirs in zip(gated_layers(half).values(), gated_layers(wide).values(), strict=True):
            for name, up in ours.lora_B.items():
                up.copy_(torch.randn(up.shape, generator=generator) * 0.3)
                theirs.lora_B[name].copy_(up)
    streams, sigmas, text = rows(NAMES, given=("rgb",))
    exact = wide(streams, sigmas, text)
    with torch.autocast("cpu", torch.bfloat16):
        expected = wide(streams, sigmas, text)
        inside = half(streams, sigmas, text)
    alone = half(streams, sigmas, text)  # computes in bfloat16 of its own accord
    for name in NAMES:
        assert torch.equal(inside[name], expected[name]) and torch.equal(alone[name], expected[name])
        error = (alone[name].float() - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.02  # what bfloat16 products cost: eight bits
    for model in (half, wide):
        with torch.autocast("cpu", torch.bfloat16):
            sum(v.float().square().mean() for v in model(streams, sigmas, text).values()).backward()
    gradients = dict(wide.named_parameters())
    for name, parameter in half.named_parameters():
        assert (parameter.grad is None) == (gradients[name].grad is None)
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32 and torch.equal(parameter.grad, gradients[name].grad)


def test_rope_modulation_norms_and_additions_stay_float32(folder: Path) -> None:
    model = UniVidX(modalities=NAMES, rank=3, pretrained=str(folder), frozen_dtype="bfloat16").load("cpu")
    wide = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    half = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert wide | half == {name for name, _ in model.named_parameters()} and not any("norm" in n for n in half)
    assert set(model.added_parameters()) <= wide
    assert {n for n in wide if "table" in n or ".time_" in n} == {
        n for n, _ in model.named_parameters() if "table" in n or ".time_" in n
    }
    assert {"patch_embedding.weight", "blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.bias"} <= half
    assert model.rope.freqs_cos.dtype == torch.float32
    assert all(not dict(model.named_parameters())[name].requires_grad for name in half)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[2].dtype))
    model(*rows(NAMES))
    assert seen == [torch.float32]  # the modulation from sigma


def test_a_bfloat16_base_goes_through_average_and_checkpoint(folder: Path, tmp_path: Path) -> None:
    component = UniVidX(modalities=NAMES, rank=3, pretrained=str(folder), frozen_dtype="bfloat16")
    model = component.load("cpu")
    weights = Weights(model)
    ema = Ema(weights)
    streams, sigmas, text = rows(NAMES)
    expected = model(streams, sigmas, text)
    with ema.applied() as average:
        assert all(torch.equal(value, expected[name]) for name, value in average(streams, sigmas, text).items())
    assert set(ema.average) == set(model.added_parameters())
    saved = model_tensors(model)
    assert set(saved) == set(model.added_parameters())
    again = component.resolved().load("cpu")
    load_model(again, saved, tmp_path)
    assert all(torch.equal(value, expected[name]) for name, value in again(streams, sigmas, text).items())
    groups = build_optimizer(weights.local, set(model.added_parameters()), TrainingRecipe().optimizer).param_groups
    assert {p.dtype for group in groups for p in group["params"]} == {torch.float32}
    random = UniVidX(modalities=NAMES, rank=3, frozen_dtype="bfloat16", **SMALL).load("cpu")
    whole = model_tensors(random)  # a frozen base that is in no file is saved, as it is
    assert whole["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    with pytest.raises(OpenUniError, match="train_base = true"):
        UniVidX(train_base=True, frozen_dtype="bfloat16")
