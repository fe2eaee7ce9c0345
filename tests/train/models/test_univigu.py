"""The model with text tokens: bitwise the pretrained one without text, every addition wired, experts by modality."""

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from openuni.manifests.errors import OpenUniError
from openuni.training.models.univigu import UniVigu, UniViguTransformer
from openuni.training.run_record import empty_model
from openuni.training.tasks import Task
from tests.train.backbone.tiny_wan import SIZES, check_keys, tiny_base

TINY = UniVigu(vocabulary=11, **SIZES)


@pytest.fixture
def base() -> WanTransformer3DModel:
    return tiny_base()


@pytest.fixture(params=["tokens", "embeddings"])
def model(base: WanTransformer3DModel, request: pytest.FixtureRequest) -> UniViguTransformer:
    import dataclasses

    torch.manual_seed(1)
    model = dataclasses.replace(TINY, text_flow=request.param).load("cpu")
    model.load_base(iter([base.state_dict()]))
    return model


def inputs(batch: int = 2, words: int = 5) -> tuple[dict, dict, dict]:
    generator = torch.Generator().manual_seed(2)
    return (
        {
            "rgb": torch.randn(batch, 4, 3, 4, 6, generator=generator),
            "text": torch.randint(11, (batch, words), generator=generator),
        },
        {name: torch.rand(batch, generator=generator) for name in ("rgb", "text")},
        {"rgb": torch.randn(batch, 5, 8, generator=generator)},
    )


def moved_heads(model: UniViguTransformer) -> None:
    """Take the heads off zero, so that what lies behind them shows."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if name in ("text_head.proj_out.weight", "text_velocity.proj_out.weight"):
            torch.nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_text_it_is_the_base_model_bitwise(
    base: WanTransformer3DModel, model: UniViguTransformer, checkpointing: bool
) -> None:
    if checkpointing:
        model.enable_gradient_checkpointing()
    streams, sigmas, text = inputs()
    del streams["text"]
    expected = base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample
    assert torch.equal(model(streams, sigmas, text)["rgb"], expected)
    with torch.autocast("cpu", torch.bfloat16):
        expected = base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample
        assert torch.equal(model(streams, sigmas, text)["rgb"], expected)


def test_with_text_logits_begin_at_zero_and_the_video_has_moved(
    base: WanTransformer3DModel, model: UniViguTransformer
) -> None:
    streams, sigmas, text = inputs()
    out = model(streams, sigmas, text)
    assert out["text"].shape == (2, 5, 11) and not out["text"].any()
    assert out["rgb"].shape == streams["rgb"].shape
    expected = base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample
    assert (out["rgb"] - expected).abs().max() > 1e-4  # the video attends to tokens that the base model never had


def test_the_text_head_normalizes_as_released() -> None:
    """eps 1e-5, which shows for tokens of small variance; runs of before the option keep Wan's 1e-6."""
    torch.manual_seed(4)
    head = TINY.load("cpu").text_head
    torch.nn.init.normal_(head.proj_out.weight)
    tokens = torch.randn(1, 3, head.norm.normalized_shape[0]) * 1e-3
    shift, scale = head.scale_shift_table.chunk(2, dim=1)

    def expected(eps: float) -> torch.Tensor:
        normed = (tokens - tokens.mean(-1, True)) / (tokens.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return head.proj_out(normed * head.norm.weight * (1 + scale) + shift)

    out = head(tokens, torch.zeros(1, tokens.shape[-1]))
    torch.testing.assert_close(out, expected(1e-5), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, expected(1e-6), rtol=1e-2)


def test_a_record_of_before_the_option_has_the_former_epsilon() -> None:
    options = TINY.resolved().options_dict()
    assert empty_model({"model": {"name": "univigu", "options": options}}).text_head_eps == 1e-5
    del options["text_head_eps"]
    before = empty_model({"model": {"name": "univigu", "options": options}})
    assert before.text_head_eps == 1e-6 and before.load("cpu").text_head.norm.eps == 1e-6


def test_additions_are_named_and_begin_as_copies(base: WanTransformer3DModel, model: UniViguTransformer) -> None:
    check_keys(model, base)
    ours, theirs = model.state_dict(), base.state_dict()
    for name, tensor in theirs.items():
        if ".ffn." in name:
            assert torch.equal(ours[name.replace(".ffn.", ".ffn_text.")], tensor)
        if "time_embedder" in name:
            assert torch.equal(ours[name.replace("condition_embedder.time", "text_time")], tensor)
    assert torch.equal(ours["text_head.scale_shift_table"], theirs["scale_shift_table"])


def test_every_addition_can_learn(model: UniViguTransformer) -> None:
    streams, sigmas, text = inputs()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        out = model(streams, sigmas, text)
        loss = torch.nn.functional.cross_entropy(out["text"].flatten(0, 1), streams["text"].flatten())
        loss = loss + out["rgb"].square().mean()
        if "text_velocity" in out:
            loss = loss + (out["text_velocity"] - 1).square().mean()
        loss.backward()
        return {n: p.grad for n, p in model.named_parameters()}

    first = gradients()
    zeros = [name for name, p in model.named_parameters() if not p.detach().any() and name.startswith("text_")]
    assert {"text_head.proj_out.weight", "text_head.proj_out.bias"} <= set(zeros)
    assert all(first[name] is not None and first[name].abs().max() > 0 for name in zeros)  # no dead end of zeros
    moved_heads(model)
    after = gradients()
    assert [name for name in after if after[name] is None or not after[name].abs().max() > 0] == []


def test_experts_are_by_modality(model: UniViguTransformer) -> None:
    """In the last block the text's FFN moves the text alone, and the video's the video alone."""
    moved_heads(model)
    streams, sigmas, text = inputs()
    before = model(streams, sigmas, text)
    last = model.blocks[-1]
    for expert, mine, other in ((last.ffn_text, "text", "rgb"), (last.ffn, "rgb", "text")):
        kept = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
        with torch.no_grad():
            expert.net[2].bias.add_(0.5 * torch.randn(24, generator=torch.Generator().manual_seed(0)))
        after = model(streams, sigmas, text)
        assert (after[mine] - before[mine]).abs().max() > 1e-3
        assert torch.equal(after[other], before[other])
        expert.load_state_dict(kept)


def test_both_segments_see_one_another_and_the_condition(model: UniViguTransformer) -> None:
    moved_heads(model)
    streams, sigmas, text = inputs()
    before = model(streams, sigmas, text)
    changes = (
        (streams | {"rgb": streams["rgb"] + 1}, sigmas, text),
        (streams | {"text": (streams["text"] + 1) % 11}, sigmas, text),
        (streams, sigmas | {"rgb": sigmas["rgb"] * 0}, text),
        (streams, sigmas | {"text": sigmas["text"] * 0}, text),
        (streams, sigmas, {"rgb": text["rgb"] + 1}),
    )
    for change in changes:
        after = model(*change)
        assert all((after[name] - before[name]).abs().max() > 1e-6 for name in ("rgb", "text"))


def test_text_knows_its_order_and_nothing_else_does(model: UniViguTransformer) -> None:
    moved_heads(model)
    streams, sigmas, text = inputs()
    reordered = {name: streams[name] for name in ("text", "rgb")}
    assert torch.equal(model(reordered, sigmas, text)["text"], model(streams, sigmas, text)["text"])
    flipped = model(streams | {"text": streams["text"].flip(1)}, sigmas, text)["text"].flip(1)
    assert (flipped - model(streams, sigmas, text)["text"]).abs().max() > 1e-5


def test_text_rotary_is_relative_from_zero(model: UniViguTransformer) -> None:
    cosines, sines = model.text_rotary(7)
    assert cosines.shape == (1, 7, 1, 12) and cosines.dtype == torch.float32
    assert (cosines[0, 0] == 1).all() and not sines[0, 0].any()
    angle = torch.tensor([p / 10000 ** (2 * pair / 12) for p in range(7) for pair in range(6)]).view(7, 6)
    torch.testing.assert_close(sines[0, :, 0, ::2], angle.sin(), atol=1e-6, rtol=0)
    assert torch.equal(sines[..., ::2], sines[..., 1::2])


def test_samples_do_not_see_one_another(model: UniViguTransformer) -> None:
    moved_heads(model)
    streams, sigmas, text = inputs()
    both = model(streams, sigmas, text)
    one = model(*({name: value[:1] for name, value in group.items()} for group in (streams, sigmas, text)))
    for name in both:
        torch.testing.assert_close(both[name][:1], one[name], atol=1e-5, rtol=1e-5)


def test_embeddings_are_of_one_scale_and_follow_the_flow(base: WanTransformer3DModel) -> None:
    import dataclasses

    model = dataclasses.replace(TINY, text_flow="embeddings").load("cpu")
    moved_heads(model)
    streams, sigmas, text = inputs()
    clean = model.embedded(streams["text"])
    torch.testing.assert_close(clean.square().mean(-1), torch.ones(2, 5))
    as_values = model(streams, sigmas, text)
    as_embeddings = model(streams | {"text": clean}, sigmas, text)
    assert all(torch.equal(as_values[name], as_embeddings[name]) for name in as_values)
    assert as_values["text_velocity"].shape == clean.shape
    at_zero = model(streams | {"text": clean}, sigmas | {"text": torch.zeros(2)}, text)
    words = model.text_head  # at sigma 0 the head reads the given embeddings themselves
    time, _ = model._text_time(torch.zeros(2))
    torch.testing.assert_close(at_zero["text"], words(clean, time))


def test_condition_is_the_caption_unless_a_video_is_described() -> None:
    assert TINY.text_condition(Task.parse("t2v"), "rgb") == "caption"
    assert TINY.text_condition(Task.parse("v2t"), "rgb") == "nothing"
    assert TINY.text_condition(Task.parse("t2vt"), "rgb") == "caption"


def test_pretrained_folder_gives_sizes_and_weights(base: WanTransformer3DModel, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "transformer")
    component = UniVigu(pretrained=str(tmp_path), vocabulary=11)
    model = component.load("cpu")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in base.state_dict().items())
    resolved = component.resolved()
    assert (resolved.pretrained, resolved.num_layers, resolved.vocabulary) == ("", 2, 11)
    assert set(resolved.load("cpu").state_dict()) == set(model.state_dict())


def test_wrong_input_is_named(model: UniViguTransformer) -> None:
    streams, sigmas, text = inputs()
    with pytest.raises(OpenUniError, match=r"one stream of latents, rgb; got \['rgb', 'depth'\]"):
        UniVigu(modalities=("rgb", "depth"))
    with pytest.raises(OpenUniError, match=r"in 0\.\.10"):
        model(streams | {"text": streams["text"] + 11}, sigmas, text)
    with pytest.raises(OpenUniError, match="token values"):
        model(streams | {"text": torch.zeros(2, 5, 7)}, sigmas, text)
    with pytest.raises(OpenUniError, match=r'"depth" is not known'):
        model({"depth": streams["rgb"]}, sigmas, text)
    with pytest.raises(OpenUniError, match="rgb"):
        model({"text": streams["text"]}, sigmas, text)
