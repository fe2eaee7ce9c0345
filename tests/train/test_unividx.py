"""UniVidX: the pretrained model on every row at the start; joint attention and gated LoRAs are what they say."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch.nn import functional

from manifests.errors import OpenUniError
from tests.train.corpora import random_clips, write_corpus
from train.checkpoint import checkpoints
from train.data import Loader
from train.lora import (
    GatedLinear,
    Rows,
    adapter_tensors,
    gated_layers,
    load_adapter,
    load_adapter_tensors,
    save_adapter,
)
from train.models.unityvideo import UnityVideo
from train.models.unividx import UniVidX, UniVidXTransformer
from train.plan import Plan
from train.recipe import Recipe
from train.run import Run
from train.sampler import Conditions, Sampling, sample
from train.setup import prepare
from train.tasks import Task, TaskMix, partitions
from train.trainer import averaged_copy, build_optimizer, train

INTRINSIC = ("rgb", "albedo", "irradiance", "normal")
SIZES = {"heads": 2, "head_dim": 12, "ffn_dim": 32, "text_dim": 8, "channels": 4, "freq_dim": 16, "num_layers": 2}
BASE = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
}


@pytest.fixture(scope="module")
def base() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(**BASE).eval()


def built(base: WanTransformer3DModel, **options: Any) -> UniVidXTransformer:
    """A tiny model on the base, LoRAs at their start."""
    torch.manual_seed(1)
    model = UniVidX(**({"modalities": INTRINSIC, "rank": 3} | SIZES | options)).load("cpu")
    model.load_base(iter([base.state_dict()]))
    return model


def trained(base: WanTransformer3DModel, **options: Any) -> UniVidXTransformer:
    """The same with random LoRAs."""
    model = built(base, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in gated_layers(model).values():
            for up in layer.lora_B.values():
                up.copy_(torch.randn(up.shape, generator=generator) * 0.3)
    return model


def inputs(names: tuple[str, ...], batch: int = 2, given: tuple[str, ...] = ()) -> tuple[dict, dict, dict]:
    generator = torch.Generator().manual_seed(2)
    drawn = {
        name: (
            torch.randn(batch, 4, 3, 4, 6, generator=generator),
            torch.rand(batch, generator=generator) * 0.9 + 0.05,
            torch.randn(batch, 5, 8, generator=generator),
        )
        for name in names
    }
    streams, sigmas, text = ({name: values[place] for name, values in drawn.items()} for place in range(3))
    return streams, sigmas | {name: torch.zeros(batch) for name in given}, text


def on_rows(base: WanTransformer3DModel, names: Any, streams: dict, sigmas: dict, text: dict) -> torch.Tensor:
    """The plain model on all rows as one batch, [B, M, C, T, H, W]."""
    stacked = [torch.stack([group[name] for name in names], 1).flatten(0, 1) for group in (streams, sigmas, text)]
    return base(stacked[0], stacked[1] * 1000, stacked[2]).sample.unflatten(0, (-1, len(names)))


# ---------------------------------------------------------------- at the start it is the base model


@pytest.mark.parametrize("cross_modal", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_one_stream_is_the_base_model_bitwise(base: Any, cross_modal: bool, precision: torch.dtype) -> None:
    model = built(base, cross_modal=cross_modal)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        for name in INTRINSIC:  # no layer knows the modality
            streams, sigmas, text = inputs((name,))
            expected = base(streams[name], sigmas[name] * 1000, text[name]).sample
            assert torch.equal(model(streams, sigmas, text)[name], expected)


@pytest.mark.parametrize("names", [("rgb", "normal"), ("albedo", "irradiance", "normal"), INTRINSIC])
def test_without_cross_modal_attention_every_row_is_the_base_model_bitwise(base: Any, names: tuple[str, ...]) -> None:
    streams, sigmas, text = inputs(names, given=names[:1])
    ours = built(base, cross_modal=False)(streams, sigmas, text)
    expected = on_rows(base, names, streams, sigmas, text)
    assert list(ours) == list(names)
    assert all(torch.equal(ours[name], expected[:, place]) for place, name in enumerate(names))
    joint = built(base)(streams, sigmas, text)
    assert all((joint[name] - ours[name]).abs().max() > 1e-4 for name in names)


def test_base_keys_are_kept_and_the_loras_are_the_rest(base: Any) -> None:
    model = built(base)
    ours, theirs = model.state_dict(), base.state_dict()
    assert set(ours) - set(theirs) == set(model.added_parameters())
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    layers = [f"blocks.{block}.{name}" for block in range(2) for name in LAYERS]
    assert sorted(gated_layers(model)) == sorted(layers)
    # published size: 2,523,136 parameters per block and modality at rank 32 on Wan 14B
    with torch.device("meta"):
        pairs = [(5120, 5120)] * 4 + [(5120, 13824), (13824, 5120)]
        linears = [GatedLinear(*pair, adapters=["rgb"], rank=32) for pair in pairs]
    assert sum(p.numel() for linear in linears for name, p in linear.named_parameters() if "lora" in name) == 2_523_136


LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")


def test_same_as_streams_side_by_side(base: Any) -> None:
    """Rows seen as one sequence, and UnityVideo's one sequence with positions anew in each stream."""
    names = ("rgb", "depth", "flow")
    side_by_side = UnityVideo(modalities=names, rope="per_segment", switcher_dim=8, **SIZES).load("cpu")
    side_by_side.load_base(iter([base.state_dict()]))
    streams, sigmas, text = inputs(names, given=("depth",))
    theirs = side_by_side(streams, sigmas, text)
    ours = built(base, modalities=names)(streams, sigmas, text)
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- cross-modal attention


def test_cross_modal_attention_is_attention_over_concatenated_keys(base: Any) -> None:
    model = trained(base)
    attention = model.blocks[0].attn1
    batch, count, length = 2, 3, 12
    rows = Rows(("rgb", "albedo", "normal"), torch.tensor([1.0, 0, 1, 0, 1, 1])[:, None, None])
    tokens = torch.randn(batch * count, length, 24, generator=torch.Generator().manual_seed(5))
    rotary = model.rotary((3, 2, 2))
    ours = attention(tokens, None, None, rotary, rows=rows, joint=count)

    def heads(layer: Any) -> torch.Tensor:
        return layer(tokens, rows).unflatten(2, (2, -1))

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
        angles = torch.complex(rotary[0].double()[..., 0::2], rotary[1].double()[..., 0::2])
        return torch.view_as_real(pairs * angles).flatten(-2).float()

    q = turned(attention.norm_q(heads(attention.to_q).flatten(2)).unflatten(2, (2, -1)))
    k = turned(attention.norm_k(heads(attention.to_k).flatten(2)).unflatten(2, (2, -1)))
    v = heads(attention.to_v)
    mixed = []
    for row in range(batch * count):
        first = row // count * count
        keys = torch.cat([k[other] for other in range(first, first + count)])  # [M S, heads, head_dim]
        values = torch.cat([v[other] for other in range(first, first + count)])
        weights = torch.einsum("shd,thd->hst", q[row], keys).div(math.sqrt(12)).softmax(-1)
        mixed.append(torch.einsum("hst,thd->shd", weights, values).flatten(1))
    expected = attention.to_out[0](torch.stack(mixed), rows)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_order_and_company_change_nothing(base: Any) -> None:
    model = trained(base)
    streams, sigmas, text = inputs(INTRINSIC, batch=3)
    sigmas["albedo"][1] = 0.0  # given in one sample only
    sigmas["rgb"][2] = 0.0
    whole = model(streams, sigmas, text)
    turned = [dict(reversed(list(group.items()))) for group in (streams, sigmas, text)]
    assert all(torch.equal(value, whole[name]) for name, value in model(*turned).items())
    for item in range(3):
        alone = model(*({n: v[item : item + 1] for n, v in group.items()} for group in (streams, sigmas, text)))
        for name in INTRINSIC:
            torch.testing.assert_close(alone[name], whole[name][item : item + 1], atol=1e-5, rtol=1e-5)
    changed = model(streams | {"normal": streams["normal"] + 1}, sigmas, text)
    assert all((changed[name] - whole[name]).abs().max() > 1e-5 for name in INTRINSIC)  # joint attention


# ---------------------------------------------------------------- gated LoRA


def test_gated_lora_is_the_merged_weights_of_each_row() -> None:
    torch.manual_seed(0)
    layer = GatedLinear(6, 5, INTRINSIC, rank=2)
    for up in layer.lora_B.values():
        torch.nn.init.normal_(up)
    tokens = torch.randn(8, 7, 6)
    gate = torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 0])
    ours = layer(tokens, Rows(INTRINSIC, gate[:, None, None]))
    for row in range(8):
        name = INTRINSIC[row % 4]
        merged = layer.weight + gate[row] * layer.lora_B[name] @ layer.lora_A[name]
        torch.testing.assert_close(ours[row], functional.linear(tokens[row], merged, layer.bias), atol=1e-5, rtol=1e-5)
        if not gate[row]:
            assert torch.equal(ours[row], layer(tokens)[row])
    alone = layer(tokens[:2], Rows(("albedo",), gate[:2, None, None]))
    merged = layer.weight + layer.lora_B["albedo"] @ layer.lora_A["albedo"]
    torch.testing.assert_close(alone, functional.linear(tokens[:2], merged, layer.bias), atol=1e-5, rtol=1e-5)


def test_whole_model_is_the_base_with_merged_weights(base: Any) -> None:
    """One modality made: attention and feed-forward alike have its LoRA; given: neither has."""
    model = trained(base)
    merged = WanTransformer3DModel(**BASE)
    merged.load_state_dict(base.state_dict())
    with torch.no_grad():
        for name, layer in gated_layers(model).items():
            merged.get_submodule(name).weight += layer.lora_B["normal"] @ layer.lora_A["normal"]
    streams, sigmas, text = inputs(("normal",))
    expected = merged(streams["normal"], sigmas["normal"] * 1000, text["normal"]).sample
    torch.testing.assert_close(model(streams, sigmas, text)["normal"], expected, atol=1e-5, rtol=1e-5)
    clean = {"normal": torch.zeros(2)}
    expected = base(streams["normal"], clean["normal"], text["normal"]).sample
    assert torch.equal(model(streams, clean, text)["normal"], expected)


def test_given_rows_are_untouched_by_their_lora(base: Any) -> None:
    model = trained(base)
    streams, sigmas, text = inputs(INTRINSIC, given=("rgb", "normal"))
    before = model(streams, sigmas, text)
    with torch.no_grad():
        for layer in gated_layers(model).values():
            for name in ("rgb", "normal"):
                layer.lora_B[name].add_(1.0)
    after = model(streams, sigmas, text)
    assert all(torch.equal(after[name], before[name]) for name in INTRINSIC)
    ungated = trained(base, gated=False)
    first = ungated(streams, sigmas, text)
    assert (first["albedo"] - before["albedo"]).abs().max() > 1e-4


def test_shared_lora(base: Any) -> None:
    model = trained(base, lora="shared", rank=6)
    assert {name.rpartition(".")[2] for name in model.added_parameters()} == {"shared"}
    streams, sigmas, text = inputs(("rgb", "normal"))
    same = [group | {"normal": group["rgb"]} for group in (streams, sigmas, text)]
    out = model(*same)
    assert torch.equal(out["rgb"], out["normal"])  # nothing tells them apart
    assert (out["rgb"] - built(base)(*same)["rgb"]).abs().max() > 1e-4
    decoupled = trained(base)(*same)
    assert (decoupled["rgb"] - decoupled["normal"]).abs().max() > 1e-4
    given = [same[0], {"rgb": torch.zeros(2), "normal": sigmas["rgb"]}, same[2]]
    plain = trained(base, cross_modal=False, lora="shared")(*given)["rgb"]
    assert torch.equal(plain, built(base, cross_modal=False)(*given)["rgb"])  # gated all the same


def test_gradients_reach_exactly_the_loras_of_made_streams(base: Any) -> None:
    model = built(base)
    streams, sigmas, text = inputs(("rgb", "albedo", "normal"), given=("rgb",))
    out = model(streams, sigmas, text)
    sum(out[name].square().mean() for name in ("albedo", "normal")).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    expected = {name for name in model.added_parameters() if name.endswith(("lora_B.albedo", "lora_B.normal"))}
    assert reached == expected  # every zero point can learn; A has no gradient while B is zero
    model = trained(base)
    sum(value.square().mean() for value in model(streams, sigmas, text).values()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {name for name in model.added_parameters() if name.endswith((".albedo", ".normal"))}
    assert [name for name, p in model.named_parameters() if p.requires_grad] == model.added_parameters()


def test_gradient_checkpointing_changes_no_gradient(base: Any) -> None:
    model = trained(base)
    streams, sigmas, text = inputs(("rgb", "albedo"), given=("rgb",))
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(streams, sigmas, text)["albedo"].square().mean().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0] and found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_only_what_is_trained_is_optimised(base: Any) -> None:
    def optimised(model: UniVidXTransformer) -> int:
        groups = build_optimizer(model, Recipe().optimizer).param_groups
        return sum(p.numel() for group in groups for p in group["params"])

    frozen, whole = built(base), built(base, train_base=True)
    assert optimised(frozen) == sum(dict(frozen.named_parameters())[name].numel() for name in frozen.added_parameters())
    assert optimised(whole) == sum(p.numel() for p in whole.parameters())
    average = dict(averaged_copy(frozen).named_parameters())
    shared = {name for name, p in frozen.named_parameters() if average[name] is p}
    assert shared == set(average) - set(frozen.added_parameters())


# ---------------------------------------------------------------- files


def test_one_lora_goes_through_a_file(base: Any, tmp_path: Path) -> None:
    model, other = trained(base), built(base)
    path = save_adapter(model, "normal", tmp_path / "normal.safetensors")
    keys = set(load_file(path))
    assert keys == {
        f"transformer.blocks.{block}.{layer}.lora_{part}.weight"
        for block in range(2)
        for layer in LAYERS
        for part in "AB"
    }
    assert {name for name, _ in base.named_modules()} >= {
        key.removeprefix("transformer.").rpartition(".lora_")[0] for key in keys
    }
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    load_adapter(other, "normal", path)
    for name, tensor in other.state_dict().items():
        theirs = model.state_dict() if name.endswith(".normal") else before
        assert torch.equal(tensor, theirs[name])
    load_adapter(other, "albedo", path)  # a LoRA may start from another's
    assert torch.equal(other.blocks[1].ffn.net[2].lora_B["albedo"], model.blocks[1].ffn.net[2].lora_B["normal"])
    peft = {key.replace("transformer.", "base_model.model.", 1): value for key, value in load_file(path).items()}
    load_adapter_tensors(other, "rgb", peft, "here")
    assert torch.equal(other.blocks[0].attn1.to_q.lora_A["rgb"], model.blocks[0].attn1.to_q.lora_A["normal"])


def test_files_that_do_not_fit_are_refused(base: Any, tmp_path: Path) -> None:
    model = trained(base)
    tensors = adapter_tensors(model, "rgb")
    with pytest.raises(OpenUniError, match=r'"com" is not known.*rgb'):
        load_adapter_tensors(model, "com", tensors, "file")
    short = dict(list(tensors.items())[1:])
    with pytest.raises(OpenUniError, match=r"lacks blocks\.0\.attn1\.to_q\.lora_A\.weight"):
        load_adapter_tensors(model, "rgb", short, "file")
    foreign = tensors | {"transformer.blocks.9.attn1.to_q.lora_A.weight": torch.zeros(3, 24)}
    before = tensors["transformer.blocks.0.attn1.to_q.lora_A.weight"].clone()
    with pytest.raises(OpenUniError, match=r"has blocks\.9\.attn1"):
        load_adapter_tensors(model, "rgb", {k: v + 1 for k, v in foreign.items()}, "file")
    with pytest.raises(OpenUniError, match=r"another size.*\[2, 24\]"):
        load_adapter_tensors(model, "rgb", adapter_tensors(built(base, rank=2), "rgb"), "file")
    assert torch.equal(model.blocks[0].attn1.to_q.lora_A["rgb"], before)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(OpenUniError, match="cannot be read"):
        load_adapter(model, "rgb", tmp_path / "no.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(OpenUniError, match="has a, which"):
        load_adapter(model, "rgb", tmp_path / "a.safetensors")


# ---------------------------------------------------------------- texts, options, wrong input


def test_text_of_the_published_tasks() -> None:
    model = UniVidX()
    captioned = {"t2RAIN", "A2RIN", "I2RAN", "N2RAI", "AI2RN", "AN2RI", "IN2RA"}
    captioned |= {"t2RPFB", "P2RFB", "F2RPB", "B2RPF", "PF2RB", "PB2RF"}
    for family in (INTRINSIC, ("rgb", "alpha", "foreground", "background")):
        for task in partitions(family):
            told = {model.text_of(task, stream) for stream in task.streams}
            assert told == {"caption" if task.published in captioned else "nothing"}, task.published
    assert model.text_of(Task.parse("depth->rgb+normal"), "depth") == "caption"


def test_wrong_options_and_input_are_named(base: Any) -> None:
    with pytest.raises(OpenUniError, match="rank must be at least 1"):
        UniVidX(rank=0)
    with pytest.raises(OpenUniError, match="condition_noise"):
        UniVidX(condition_noise=0.7)
    model = built(base)
    streams, sigmas, text = inputs(("rgb", "normal"))
    with pytest.raises(OpenUniError, match=r'"normals" is not known\. Did you mean "normal"'):
        model({"normals": streams["normal"]}, sigmas, text)
    with pytest.raises(OpenUniError, match="share one shape"):
        model(streams | {"normal": streams["normal"][:, :, :2]}, sigmas, text)


# ---------------------------------------------------------------- training and sampling


def recipe(**model: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "model": {"name": "unividx", "modalities": ["rgb", "albedo", "normal"], "rank": 4} | model,
            "tasks": {"partitions": 1.0},
            "data": {"text_length": 0, "validation_share": 0.0, "caption_dropout": 0.0},
            "flow": {"shift": 1.0, "density": "uniform"},
            "optimizer": {
                "steps": 2,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "added_rate_factor": 1.0,
                "warmup_steps": 0,
            },
            "ema": {"decay": 0.9},
            "checkpoints": {"every_steps": 1},
        }
    )


SMALL = {"heads": 2, "head_dim": 12, "ffn_dim": 32, "freq_dim": 16, "num_layers": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(6, ("rgb", "albedo", "normal")))


def test_a_run_saves_the_loras_alone_and_resumes_bitwise(base: Any, corpus: Any, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "wan" / "transformer")
    settings = recipe(pretrained=str(tmp_path / "wan"))
    run = train(settings, corpus, tmp_path / "run")

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(settings, corpus, tmp_path / "stopped", stop)
    again = train(settings, corpus, tmp_path / "stopped")
    for part in ("model", "ema", "optimizer"):
        ours, theirs = again.checkpoint.tensors(part), run.checkpoint.tensors(part)
        assert ours.keys() == theirs.keys() and all(".lora_" in name for name in ours)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    opened = Run.open(tmp_path / "run", "cpu").model
    assert all(torch.equal(opened.state_dict()[name], tensor) for name, tensor in base.state_dict().items())
    assert torch.equal(
        opened.blocks[0].ffn.net[2].lora_B["albedo"], theirs_ema(run)["blocks.0.ffn.net.2.lora_B.albedo"]
    )
    made = run.sample("rgb->albedo+normal", {"rgb": torch.randn(1, 4, 2, 2, 2)}, [""], sampling=Sampling(2, 1.0))
    assert set(made) == {"albedo", "normal"}


def theirs_ema(run: Run) -> dict[str, torch.Tensor]:
    return checkpoints(run.folder)[-1].tensors("ema")


def test_second_stage_starts_from_the_loras_of_the_first(base: Any, corpus: Any, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "wan")
    first = train(recipe(pretrained=str(tmp_path / "wan")), corpus, tmp_path / "first")
    settings = recipe(pretrained=str(tmp_path / "wan")).to_dict() | {"start_from": str(first.folder)}
    settings["optimizer"] |= {"steps": 1, "learning_rate": 0.0}
    second = train(Recipe.from_dict(settings), corpus, tmp_path / "second")
    ours, theirs = second.checkpoint.tensors("model"), first.checkpoint.tensors("ema")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_learns_all_partitions_of_random_clips(corpus: Any, tmp_path: Path) -> None:
    settings = recipe(**SMALL | {"heads": 4, "train_base": True}).to_dict()
    settings["optimizer"] |= {"steps": 150, "batch_size": 8, "learning_rate": 5e-3}
    settings["checkpoints"] |= {"every_steps": 150}
    losses = [row["loss"] for row in train(Recipe.from_dict(settings), corpus, tmp_path).log if "loss" in row]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])


def test_the_debug_recipe_runs(corpus: Any, tmp_path: Path) -> None:
    run = train("unividx_debug", corpus, tmp_path)
    assert run.checkpoint.step == 10 and len(run.tasks) == 7
    assert {name.rpartition(".")[2] for name in run.model.added_parameters()} == {"rgb", "albedo", "normal"}


def test_both_families_in_one_model() -> None:
    every = tuple(dict.fromkeys((*INTRINSIC, "alpha", "foreground", "background")))
    mix = TaskMix.build({"intrinsic": 0.5, "alpha": 0.5}, every)
    assert len(mix.tasks) == 30
    model = UniVidX(modalities=every, rank=2, **SIZES).load("cpu")
    for task in mix.tasks:
        made = model(*inputs(task.streams, batch=1, given=task.given))
        assert set(made) == set(task.streams)


def test_noise_on_given_streams(base: Any, corpus: Any, tmp_path: Path) -> None:
    """The published option: given streams at a small sigma, in training and in sampling, and still known as given."""
    model = trained(base, condition_noise=0.005)
    assert model.given_sigma == 0.005
    streams, sigmas, text = inputs(("rgb", "normal"))
    sigmas["rgb"] = torch.full((2,), 0.005)
    before = model(streams, sigmas, text)
    with torch.no_grad():
        for layer in gated_layers(model).values():
            layer.lora_B["rgb"].add_(1.0)
    assert torch.equal(model(streams, sigmas, text)["normal"], before["normal"])
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    clean = {"rgb": streams["rgb"]}
    conditions = Conditions(clean, text, None)
    sample(model, Task.parse("rgb->normal"), conditions, streams["rgb"].shape, Sampling(2, 1.0))
    assert all(torch.equal(told["rgb"], torch.full((2,), 0.005)) for _, told, _ in seen)
    assert all(torch.equal(noisy["rgb"], seen[0][0]["rgb"]) for noisy, _, _ in seen)
    assert 0 < (seen[0][0]["rgb"] - clean["rgb"]).std() < 0.02
    with pytest.raises(OpenUniError, match="not above that of given streams"):
        sample(model, Task.parse("rgb->normal"), conditions, streams["rgb"].shape, Sampling(400, 1.0))


def test_loader_gives_given_streams_their_sigma_and_made_ones_more(corpus: Any, tmp_path: Path) -> None:
    settings = recipe(condition_noise=0.4, **SMALL)
    run = train(settings, corpus, tmp_path)
    setup = prepare(settings, corpus, run.folder)
    loader = Loader(setup.corpus, setup.index, setup.texts, settings, setup.model)
    plan = Plan.build(setup.index, setup.mix, settings.seed, settings.optimizer.batch_size)
    levels = []
    for batch in (batch for step in range(8) for part in loader.step(plan, step) for batch in part):
        for name, made in batch.made.items():
            assert torch.equal(batch.sigmas[name][~made], torch.full_like(batch.sigmas[name], 0.4)[~made])
            levels += batch.sigmas[name][made].tolist()
    assert min(levels) > torch.tensor(0.4).item()  # as drawn, four in ten would lie below
    assert setup.model.given_sigma == 0.4 and run.model.given_sigma == 0.4


def test_guidance_takes_the_caption_from_all_streams(base: Any) -> None:
    model = trained(base)
    streams, _, text = inputs(("rgb", "normal"), batch=1)
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2]))
    conditions = Conditions({}, text, torch.zeros(5, 8), captioned=("rgb", "normal"))
    sample(model, Task.parse("text->rgb+normal"), conditions, streams["rgb"].shape, Sampling(1, 1.0, guidance=2.0))
    assert [bool(told[name].any()) for told in seen for name in ("rgb", "normal")] == [True, True, False, False]
