"""UnityVideo over two to four streams: what the pretrained model is at the start, layouts, the released switcher."""

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from openuni.manifests.errors import OpenUniError
from openuni.training.models.unityvideo import UnityVideo
from tests.train.backbone.tiny_wan import SIZES, check_checkpointing, inputs, tiny_base
from tests.train.models.tiny_unividx import built as unividx

FOUR = ("rgb", "depth", "flow", "skeleton")
SETS = [FOUR[:2], FOUR[:3], FOUR]


@pytest.fixture
def base() -> WanTransformer3DModel:
    return tiny_base()


def built(base: WanTransformer3DModel, **options: Any) -> Any:
    """A tiny model on the base, additions at their start."""
    torch.manual_seed(1)
    model = UnityVideo(**({"modalities": FOUR, "switcher_dim": 8} | SIZES | options)).load("cpu")
    model.load_base(iter([base.state_dict()]))
    return model


def trained(base: WanTransformer3DModel, **options: Any) -> Any:
    """The same with random values wherever the additions are zero, and experts that have moved."""
    model = built(base, **options)
    generator = torch.Generator().manual_seed(3)
    added = set(model.added_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in added:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


# ---------------------------------------------------------------- what is left of the pretrained model


@pytest.mark.parametrize("switcher", ["per_block", "released"])
@pytest.mark.parametrize("rope", ["continued", "per_segment"])
def test_one_rgb_stream_is_the_base_model_bitwise(base: Any, switcher: str, rope: str) -> None:
    streams, sigmas, text = inputs(("rgb",))
    ours = built(base, switcher=switcher, rope=rope)(streams, sigmas, text)["rgb"]
    assert torch.equal(ours, base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample)


@pytest.mark.parametrize("names", SETS, ids=len)
def test_with_continued_positions_streams_are_one_wide_video_to_the_base_model(base: Any, names: tuple) -> None:
    """So the output for rgb beside others is not that for rgb alone: the base sees a video of M times the width."""
    streams, sigmas, text = inputs(names)
    sigmas, text = dict.fromkeys(names, sigmas["rgb"]), dict.fromkeys(names, text["rgb"])
    wide = torch.cat([streams[name] for name in sorted(names, key=lambda name: (name != "rgb", name))], dim=-1)
    expected = base(wide, sigmas["rgb"] * 1000, text["rgb"]).sample.split(6, dim=-1)
    for switcher in ("per_block", "released"):
        ours = built(base, rope="continued", switcher=switcher)(streams, sigmas, text)
        for place, name in enumerate(ours):
            torch.testing.assert_close(ours[name], expected[place], atol=1e-5, rtol=1e-5)
    alone = base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample
    assert (ours["rgb"] - alone).abs().max() > 1e-3
    anew = built(base, rope="per_segment")(streams, sigmas, text)
    assert any((anew[name] - ours[name]).abs().max() > 1e-3 for name in names)


@pytest.mark.parametrize("names", SETS, ids=len)
def test_with_positions_anew_copies_of_a_video_are_that_video_to_the_base_model(base: Any, names: tuple) -> None:
    """What the pretrained model knows holds beside streams that agree with it; with continued positions it does not."""
    streams, sigmas, text = inputs(("rgb",))
    expected = base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample
    copies = [dict.fromkeys(names, group["rgb"]) for group in (streams, sigmas, text)]
    for name, ours in built(base, rope="per_segment")(*copies).items():
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5, msg=name)
    continued = built(base, rope="continued")(*copies)
    assert all((ours - expected).abs().max() > 1e-3 for ours in continued.values())


# ---------------------------------------------------------------- layouts and positions


@pytest.mark.parametrize("names", SETS, ids=len)
@pytest.mark.parametrize("given", [(), ("depth",)], ids=["joint", "depth given"])
def test_side_by_side_is_the_same_as_stacked_rows(base: Any, names: tuple, given: tuple) -> None:
    """One sequence with positions anew in each stream, and UniVidX's rows seen as one sequence in self-attention."""
    streams, sigmas, text = inputs(names, given=given)
    side_by_side = built(base, rope="per_segment")(streams, sigmas, text)
    stacked = unividx(base, modalities=names)(streams, sigmas, text)
    for name in names:
        torch.testing.assert_close(side_by_side[name], stacked[name], atol=1e-5, rtol=1e-5)
    continued = built(base, rope="continued")(streams, sigmas, text)
    assert any((continued[name] - stacked[name]).abs().max() > 1e-3 for name in names)


@pytest.mark.parametrize("names", SETS, ids=len)
def test_blocks_are_the_same_on_rows(base: Any, names: tuple) -> None:
    """The same with trained switchers, block by block: rows [B M, S], attention over [B, M S], modulation per row."""
    model = trained(base, rope="per_segment")
    block, count, batch, length = model.blocks[0], len(names), 2, 12
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(batch, count, length, 24, generator=generator)
    sigmas = [torch.rand(batch, generator=generator) for _ in names]
    told = model.embed_conditioning(sigmas, [torch.randn(batch, 5, 8, generator=generator) for _ in names])
    switch = torch.randn(batch, count, 24, generator=generator)
    ours = block(tokens, told.text, told.table, switch, *model.rotary((3, 2, 2), count))

    rows = tokens.flatten(0, 1)
    table = (
        block.scale_shift_table + told.table.flatten(0, 1) + block.switcher(switch.flatten(0, 1)).unflatten(1, (6, -1))
    )
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = table.chunk(6, dim=1)
    normed = block.norm1(rows) * (1 + scale_1) + shift_1
    one_sequence = normed.view(batch, count * length, 24)
    rotary = [part.repeat(1, count, 1, 1) for part in model.rotary((3, 2, 2))]
    rows = rows + block.attn1(one_sequence, None, None, rotary).view_as(rows) * gate_1
    rows = rows + block.attn2(block.norm2(rows), told.text, None, None)
    rows = rows + block.ffn(block.norm3(rows) * (1 + scale_2) + shift_2) * gate_2
    torch.testing.assert_close(ours.flatten(0, 1), rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_positions_of_several_streams(base: Any, count: int) -> None:
    frames, rows, columns = 3, 2, 3
    wide = base.rope(torch.empty(1, 4, frames, 2 * rows, 2 * columns * count))[0].view(
        frames, rows, columns * count, 12
    )
    model = built(base)
    continued, _ = model.rotary((frames, rows, columns), count, continued=True)
    anew, _ = model.rotary((frames, rows, columns), count)
    for place in range(count):
        shape = (count, frames, rows, columns, 12)
        first = place * columns
        torch.testing.assert_close(continued.view(shape)[place], wide[:, :, first : first + columns], atol=0, rtol=0)
        torch.testing.assert_close(anew.view(shape)[place], wide[:, :, :columns], atol=0, rtol=0)


# ---------------------------------------------------------------- additions


@pytest.mark.parametrize("switcher", ["per_block", "released"])
@pytest.mark.parametrize("names", SETS, ids=len)
def test_every_zero_point_can_learn_at_the_start(base: Any, switcher: str, names: tuple) -> None:
    """Each has a gradient, from the loss of each of the streams that it touches; and moving it moves the output."""
    model = built(base, modalities=names, switcher=switcher)
    parameters = dict(model.named_parameters())
    zero = [name for name in model.added_parameters() if not parameters[name].detach().any()]
    per_block = [f"blocks.{block}.switcher.2.{kind}" for block in range(2) for kind in ("weight", "bias")]
    released = [f"modality_embeddings.{name}" for name in names if name != "rgb"]
    assert sorted(zero) == sorted(per_block if switcher == "per_block" else released)
    streams, sigmas, text = inputs(names)
    before = model(streams, sigmas, text)
    for made in names:
        gradients = torch.autograd.grad(
            before[made].square().mean(), [parameters[name] for name in zero], retain_graph=True
        )
        assert all(gradient.abs().max() > 0 for gradient in gradients), made
    for name in zero:
        moved = torch.linspace(-0.5, 0.5, parameters[name].numel()).view_as(parameters[name])
        with torch.no_grad():
            parameters[name].add_(moved)
            after = model(streams, sigmas, text)
            parameters[name].zero_()
        assert all((after[made] - before[made]).abs().max() > 1e-5 for made in names), name


def test_the_released_switcher_is_one_vector_behind_the_input_layer(base: Any) -> None:
    model = trained(base, switcher="released")
    added = {name.split(".")[0] for name in model.added_parameters()}
    assert added == {"modality_embeddings", "input_experts", "output_experts"}
    assert set(model.modality_embeddings) == {"depth", "flow", "skeleton"}, "rgb has none"
    assert set(dict(model.blocks.named_parameters())) == set(dict(base.blocks.named_parameters()))
    streams, sigmas, text = inputs(FOUR[:3])
    vector = model.modality_embeddings["flow"].detach().clone()
    before = model(streams, sigmas, text)
    with torch.no_grad():
        model.modality_embeddings["flow"].zero_()
        model.input_experts["flow"].bias.add_(vector)
    after = model(streams, sigmas, text)
    for name in streams:
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)
    with pytest.raises(OpenUniError, match=r'switcher = "released-2"\..* Allowed: per_block, released'):
        UnityVideo(switcher="released-2")  # type: ignore[arg-type]


@pytest.mark.parametrize("switcher", ["per_block", "released"])
def test_checkpointing_and_bfloat16_work_with_both_switchers(base: Any, switcher: str) -> None:
    streams, sigmas, text = inputs(FOUR[:3])
    model = trained(base, switcher=switcher)
    check_checkpointing(model, (streams, sigmas, text), "depth")
    full = model(streams, sigmas, text)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(streams, sigmas, text)
    assert all((half[name].float() - full[name]).abs().max() < 0.1 * full[name].abs().max() for name in streams)


def test_the_switchers_modulation_is_float32_under_autocast(base: Any) -> None:
    model, seen = trained(base), []
    model.blocks[0].switcher.register_forward_hook(lambda _, given, out: seen.append((given[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        model(*inputs(FOUR[:2]))
    assert seen == [(torch.float32, torch.float32)]


# ---------------------------------------------------------------- given streams, order, batch


@pytest.mark.parametrize("switcher", ["per_block", "released"])
def test_given_tokens_are_clean_whatever_the_noise_of_the_others(base: Any, switcher: str) -> None:
    """Their tokens come from the clean latents, and everything that knows of noise is told 0 for them."""
    model = trained(base, switcher=switcher)
    given, names = ("rgb", "depth"), FOUR[:3]
    streams, sigmas, text = inputs(names, given=given)
    seen: list[tuple] = []
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    for level in (0.1, 0.9):
        model(streams, sigmas | {"flow": torch.full((2,), level)}, text)
    clean = model.embed_conditioning([torch.zeros(2)] * 3, [text[name] for name in names])
    for place in range(2):  # rgb and depth
        for tokens, _, table, switch, *_ in seen:
            assert torch.equal(tokens[:, place], seen[0][0][:, place])
            torch.testing.assert_close(table[:, place], clean.table[:, place], atol=1e-6, rtol=1e-6)
            if switch is not None:
                expected = torch.nn.functional.silu(model.modality_embeddings[names[place]] + clean.time[:, place])
                torch.testing.assert_close(switch[:, place], expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(seen[0][2][:, 2], seen[1][2][:, 2]), "the made stream's modulation follows its noise"


@pytest.mark.parametrize("switcher", ["per_block", "released"])
def test_order_of_keys_and_company_in_a_batch_do_not_matter(base: Any, switcher: str) -> None:
    model = trained(base, switcher=switcher)
    groups = inputs(FOUR, batch=3)
    before = model(*groups)
    reordered = [{name: group[name] for name in FOUR[::-1]} for group in groups]
    assert all(torch.equal(value, before[name]) for name, value in model(*reordered).items())
    other = built(base, modalities=FOUR[::-1], switcher=switcher)
    first = built(base, switcher=switcher)
    assert list(other.state_dict()) == list(first.state_dict())
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in other.state_dict().items())
    for item in range(3):
        alone = model(*({name: value[item : item + 1] for name, value in group.items()} for group in groups))
        for name in FOUR:
            torch.testing.assert_close(alone[name], before[name][item : item + 1], atol=1e-5, rtol=1e-5)
    turned = model(*({name: value.flip(0) for name, value in group.items()} for group in groups))
    for name in FOUR:
        torch.testing.assert_close(turned[name].flip(0), before[name], atol=1e-5, rtol=1e-5)


def test_streams_that_the_model_lacks_or_that_differ_are_named(base: Any) -> None:
    model = built(base, modalities=("rgb", "depth"))
    streams, sigmas, text = inputs(FOUR[:3])
    with pytest.raises(OpenUniError, match=r'stream "flow" is not known\. Known: depth, rgb'):
        model(streams, sigmas, text)
    with pytest.raises(
        OpenUniError, match=r"share one shape, got .*'rgb': \(2, 4, 3, 4, 6\), 'depth': \(1, 4, 3, 4, 6\)"
    ):
        model({"rgb": streams["rgb"], "depth": streams["depth"][:1]}, sigmas, text)
    with pytest.raises(OpenUniError, match="modalities must be distinct"):
        UnityVideo(modalities=("rgb", "depth", "depth"))
