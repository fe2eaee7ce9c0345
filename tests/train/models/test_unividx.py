"""UniVidX: the pretrained model on every row at the start; joint attention and gated LoRAs are what they say."""

import math
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional

from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.lora import GatedLinear, LoraRouting, gated_layers
from openuni.training.loop.weights import Ema, Weights
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX, UniVidXTransformer
from openuni.training.optimizers.adamw import build_optimizer
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import Task, partitions
from tests.train.backbone.tiny_wan import BASE, SIZES, check_checkpointing, check_keys, inputs, tiny_base
from tests.train.models.tiny_unividx import INTRINSIC, built, trained


@pytest.fixture(scope="module")
def base() -> WanTransformer3DModel:
    return tiny_base()


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
    check_keys(model, base)
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
    rows = LoraRouting(("rgb", "albedo", "normal"), torch.tensor([1.0, 0, 1, 0, 1, 1])[:, None, None])
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
    ours = layer(tokens, LoraRouting(INTRINSIC, gate[:, None, None]))
    for row in range(8):
        name = INTRINSIC[row % 4]
        merged = layer.weight + gate[row] * layer.lora_B[name] @ layer.lora_A[name]
        torch.testing.assert_close(ours[row], functional.linear(tokens[row], merged, layer.bias), atol=1e-5, rtol=1e-5)
        if not gate[row]:
            assert torch.equal(ours[row], layer(tokens)[row])
    alone = layer(tokens[:2], LoraRouting(("albedo",), gate[:2, None, None]))
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


def test_one_stream_has_the_base_models_gradients(base: Any) -> None:
    model = built(base, train_base=True)
    streams, sigmas, text = inputs(("rgb",))
    base.zero_grad()
    base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample.square().mean().backward()
    model(streams, sigmas, text)["rgb"].square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in base.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-7, rtol=1e-5)
    base.zero_grad()


def test_gradient_checkpointing_changes_no_gradient(base: Any) -> None:
    check_checkpointing(trained(base), inputs(("rgb", "albedo"), given=("rgb",)), "albedo")


def test_only_what_is_trained_is_optimised(base: Any) -> None:
    def optimised(model: UniVidXTransformer) -> int:
        added = set(model.added_parameters())
        groups = build_optimizer(Weights(model).local, added, TrainingRecipe().optimizer).param_groups
        return sum(p.numel() for group in groups for p in group["params"])

    frozen, whole = built(base), built(base, train_base=True)
    assert optimised(frozen) == sum(dict(frozen.named_parameters())[name].numel() for name in frozen.added_parameters())
    assert optimised(whole) == sum(p.numel() for p in whole.parameters())
    assert set(Ema(Weights(frozen)).average) == set(frozen.added_parameters())


# ---------------------------------------------------------------- texts, options, wrong input


def test_text_of_the_published_tasks() -> None:
    model = UniVidX()
    captioned = {"t2RAIN", "A2RIN", "I2RAN", "N2RAI", "AI2RN", "AN2RI", "IN2RA"}
    captioned |= {"t2RPFB", "P2RFB", "F2RPB", "B2RPF", "PF2RB", "PB2RF"}
    for family in (INTRINSIC, ("rgb", "alpha", "foreground", "background")):
        for task in partitions(family):
            told = {model.text_condition(task, stream) for stream in task.streams}
            assert told == {"caption" if task.published in captioned else "nothing"}, task.published
    assert model.text_condition(Task.parse("depth->rgb+normal"), "depth") == "caption"


def test_wrong_options_and_input_are_named(base: Any) -> None:
    with pytest.raises(OpenUniError, match=r"rank = 0\. Allowed: at least 1"):
        UniVidX(rank=0)
    with pytest.raises(OpenUniError, match=r"condition_noise = 0\.7\. Allowed: at least 0, below 0\.5"):
        UniVidX(condition_noise=0.7)
    model = built(base)
    streams, sigmas, text = inputs(("rgb", "normal"))
    with pytest.raises(OpenUniError, match=r'"normals" is not known\. Did you mean "normal"'):
        model({"normals": streams["normal"]}, sigmas, text)
    with pytest.raises(OpenUniError, match="share one shape"):
        model(streams | {"normal": streams["normal"][:, :, :2]}, sigmas, text)
