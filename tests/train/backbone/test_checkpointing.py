"""Selective recomputation: the same gradients, attention once, less memory than without; and compiled blocks."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.profiler import profile

from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.checkpointing import KERNELS, is_attention
from openuni.training.backbone.compilation import COMPILE
from openuni.training.estimate.footprint import fake_pass
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX
from tests.train.backbone.tiny_wan import SIZES, AttentionCalls
from tests.train.backbone.wan_components import components, inputs

MODES = (False, True, "selective")


def gradients(component: Any, name: str) -> tuple[dict[str, torch.Tensor], int, float]:
    """By parameter; runs of attention kernels; bytes that autograd keeps after the forward pass."""
    torch.manual_seed(1)
    model = component.load("cpu")
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    if component.compile != "none":  # which happens here
        sum(value.sum() for value in model(*inputs(name)).values()).backward()
        model.zero_grad()
    watched = AttentionCalls() if component.compile == "none" else profile()  # modes are not compiled
    with watched as calls:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(*inputs(name))
        sum(value.float().square().mean() for value in outputs.values()).backward()
    if isinstance(calls, profile):
        kernels = [e.count for e in calls.key_averages() if e.key.startswith(KERNELS) and "backward" not in e.key]
    count = calls.count if isinstance(calls, AttentionCalls) else sum(kernels)
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}, count, sum(kept.values())


@pytest.mark.parametrize("name", components())
def test_all_but_attention_is_recomputed(folder: Path, name: str) -> None:
    found = {}
    for mode in MODES:
        found[mode] = gradients(components(pretrained=str(folder), gradient_checkpointing=mode)[name], name)
    plain, plain_calls, plain_bytes = found[False]
    for mode in MODES[1:]:
        assert found[mode][0].keys() == plain.keys()
        assert all(torch.equal(found[mode][0][key], gradient) for key, gradient in plain.items())
        assert found[mode][2] < plain_bytes
    assert (plain_calls, found[True][1], found["selective"][1]) == (4, 8, 4)  # two in each of two blocks


def test_kernels_are_known_by_their_names() -> None:
    ops = torch.ops.aten
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu"):
        assert is_attention(getattr(ops, f"_scaled_dot_product_{kernel}").default)
        assert not is_attention(getattr(ops, f"_scaled_dot_product_{kernel}_backward").default)
    assert not is_attention(ops.mm.default) and not is_attention(ops._softmax.default)


def test_memory_is_between_that_of_the_others() -> None:
    """4 blocks of width 24 and 192 tokens in float32: two results [192, 24] and their log-sums per head, each."""
    component = UnityVideo(("rgb",), num_layers=4, heads=2, head_dim=12, ffn_dim=96, text_dim=8, channels=4)
    found = fake_pass(component.load("cpu"), ("rgb",), (4, 3, 16, 16), 5)
    assert found.attention_bytes == 4 * 2 * 4 * (192 * 24 + 192 * 2)
    assert found.attention_flops == 4 * 4 * 192 * 24 * (192 + 5)
    assert found.kept_bytes("selective") == found.kept_bytes(True) + found.attention_bytes < found.kept_bytes(False)
    least, selective, most = (found.computed_flops(mode) for mode in (False, "selective", True))
    assert least < selective == most - found.attention_flops < most


@pytest.mark.parametrize("value", ["full", 2, "true"])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(OpenUniError, match=r'gradient_checkpointing = .* Allowed: .*"?selective'):
        parse_options(UnityVideo, {"gradient_checkpointing": value}, "unityvideo")


@pytest.mark.slow
def test_compiled_blocks_recompute_selectively(folder: Path) -> None:
    component = components(pretrained=str(folder), gradient_checkpointing="selective")["unityvideo"]
    expected, _, _ = gradients(component, "unityvideo")
    torch._dynamo.reset()
    found, calls, _ = gradients(dataclasses.replace(component, compile="aot_eager"), "unityvideo")
    assert calls == 4
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- compiled graphs over buckets


def graphs_by_shape(kind: Any, counts: tuple[int, ...], batches: tuple[int, ...], limit: int) -> list[int]:
    """Number of graphs after each of several latent shapes, in every combination of streams and samples."""
    torch._dynamo.reset()
    names = ("rgb", "depth", "normal")
    model = kind(modalities=names, **SIZES).load("cpu")
    for block in model.blocks:
        block.compile(backend="eager", **COMPILE | {"recompile_limit": limit})
    before, seen = counters["stats"]["unique_graphs"], []
    for grid in ((2, 6, 8), (3, 6, 10), (1, 4, 6), (5, 8, 12)):
        for count in counts:
            for batch in batches:
                given = (
                    {name: torch.randn(batch, 4, *grid) for name in names[:count]},
                    {name: torch.rand(batch) for name in names[:count]},
                    {name: torch.randn(batch, 5, 8) for name in names[:count]},
                )
                sum(value.sum() for value in model(*given).values()).backward()
                with torch.no_grad():  # validation
                    model(*given)
        seen.append(counters["stats"]["unique_graphs"] - before)
    return seen


@pytest.mark.parametrize("kind", [UnityVideo, UniVidX])
def test_a_second_latent_shape_makes_graphs_for_all_others(kind: Any) -> None:
    seen = graphs_by_shape(kind, (2,), (2,), COMPILE["recompile_limit"])
    assert seen[0] < seen[1] == seen[-1] <= 6, seen  # with and without gradients, the first block and the others


@pytest.mark.slow
def test_many_streams_and_shapes_stay_below_the_limit() -> None:
    """More than PyTorch's 8, at which a training ended; then no more."""
    seen = graphs_by_shape(UniVidX, (1, 2), (1, 2), COMPILE["recompile_limit"])
    assert 8 < seen[2] == seen[-1] < COMPILE["recompile_limit"] / 2, seen
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        graphs_by_shape(UniVidX, (1, 2), (1, 2), 8)
