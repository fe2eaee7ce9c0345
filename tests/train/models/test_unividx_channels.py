"""UniVidX's streams on channels: the pretrained model for rgb at the start, one widened input and output layer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional

from openuni.manifests.errors import OpenUniError
from openuni.training.loop.trainer import train
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from tests.train.backbone.tiny_wan import SIZES, check_keys, inputs, tiny_base
from tests.train.corpora import random_clips, write_corpus
from tests.train.models.tiny_unividx import INTRINSIC, built


@pytest.fixture(scope="module")
def base() -> WanTransformer3DModel:
    return tiny_base()


def start(base: WanTransformer3DModel, **options: Any) -> Any:
    """A tiny model with all additions at their start."""
    return built(base, layout="channels", **options)


def moved(base: WanTransformer3DModel, **options: Any) -> Any:
    """The same with all that is zero at the start taken off zero."""
    model = start(base, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if model.is_added(name) and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_rgb_alone_is_the_base_model_bitwise(base: Any, precision: torch.dtype, checkpointing: bool) -> None:
    model = start(base, gradient_checkpointing=checkpointing)
    streams, sigmas, text = inputs(("rgb",))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        expected = base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample
        assert torch.equal(model(streams, sigmas, text)["rgb"], expected)
    streams, sigmas, text = inputs(INTRINSIC)  # with others: they are read by zeros, and made by zeros
    highest = torch.stack(list(sigmas.values())).amax(0)
    out = model(streams, sigmas, text)
    assert torch.equal(out["rgb"], base(streams["rgb"], highest * 1000, text["rgb"]).sample)
    assert not any(out[name].any() for name in INTRINSIC[1:])
    off_zero = moved(base)(streams, sigmas, text)
    assert all((off_zero[name] - out[name]).abs().max() > 1e-3 for name in INTRINSIC)


def test_additions_are_named_and_the_base_is_kept(base: Any) -> None:
    model = start(base)
    check_keys(model, base)
    assert {name.rpartition(".")[2] for name in model.state_dict() if ".lora_" in name} == {"shared"}
    assert [name for name, p in model.named_parameters() if p.requires_grad] == model.added_parameters()
    assert all(p.requires_grad for p in start(base, train_base=True).parameters())


def test_input_and_output_are_one_layer_over_concatenated_channels(base: Any) -> None:
    """Input: channels of all streams, and a constant one per stream, 1 - sigma. Output: the same streams' channels."""
    model = moved(base)
    names = ("rgb", "albedo", "normal")
    streams, sigmas, text = inputs(names, given=("normal",))
    patch = model.patch_embedding.weight
    shares = {name: (1 - sigmas[name])[:, None, None, None, None].expand(-1, 1, 3, 4, 6) for name in names}
    weights = [patch, model.channels_in["albedo"].weight, model.channels_in["normal"].weight]
    per_pixel = patch[0, 0].numel()  # the constant channel counts once per token, not per pixel of it
    weights += [model.signal[name][:, None, None, None, None].expand(-1, 1, 1, 2, 2) / per_pixel for name in names]
    together = torch.cat([*streams.values(), *shares.values()], dim=1)
    expected = functional.conv3d(together, torch.cat(weights, dim=1), model.patch_embedding.bias, stride=model.patch)
    tokens = model.joint_tokens(streams, sigmas, names)
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert tokens.shape == (2, 3 * 2 * 3, 24)  # as many as of one stream

    seen = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in _heads(model, names)]
    out = model(streams, sigmas, text)
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])  # the same normed tokens
    layers = _heads(model, names)
    wide = functional.linear(seen[0], torch.cat([x.weight for x in layers]), torch.cat([x.bias for x in layers]))
    patches = wide.unflatten(1, (3, 2, 3)).unflatten(-1, (3, 1, 2, 2, 4))  # stream, patch, channel
    for place, name in enumerate(names):
        made = patches[..., place, :, :, :, :].permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(2, 4, 3, 4, 6)
        torch.testing.assert_close(out[name], made, atol=1e-5, rtol=1e-5)


def _heads(model: Any, names: tuple[str, ...]) -> list[Any]:
    return [model.proj_out if name == "rgb" else model.channels_out[name] for name in names]


def test_absent_streams_are_zeros(base: Any) -> None:
    """Leaving a stream out is what zeros at sigma 1, where nothing is known of it, would give."""
    model = moved(base)
    streams, sigmas, text = inputs(("rgb", "albedo", "normal"))
    sigmas["normal"] = torch.ones(2)
    sigmas["rgb"] = torch.ones(2)  # so that the highest sigma is the same
    with_zeros = model(streams | {"normal": torch.zeros_like(streams["rgb"])}, sigmas, text)
    two = ({name: group[name] for name in ("rgb", "albedo")} for group in (streams, sigmas, text))
    without = model(*two)
    assert list(without) == ["rgb", "albedo"]
    for name in without:
        torch.testing.assert_close(without[name], with_zeros[name], atol=1e-5, rtol=1e-5)
    no_rgb = model(*({"albedo": group["albedo"]} for group in (streams, sigmas, text)))
    assert list(no_rgb) == ["albedo"] and no_rgb["albedo"].isfinite().all()


def test_order_company_and_level(base: Any) -> None:
    model = moved(base)
    streams, sigmas, text = inputs(INTRINSIC, batch=3)
    sigmas["albedo"][1] = 0.0
    whole = model(streams, sigmas, text)
    turned = [dict(reversed(list(group.items()))) for group in (streams, sigmas, text)]
    assert all(torch.equal(value, whole[name]) for name, value in model(*turned).items())
    for item in range(3):
        alone = model(*({n: v[item : item + 1] for n, v in group.items()} for group in (streams, sigmas, text)))
        for name in INTRINSIC:
            torch.testing.assert_close(alone[name], whole[name][item : item + 1], atol=1e-5, rtol=1e-5)
    lowest = min(INTRINSIC, key=lambda name: float(sigmas[name][0]))
    changed = model(streams, sigmas | {lowest: sigmas[lowest] * 0.5}, text)  # not the highest, yet it is heard
    assert all((changed[name] - whole[name]).abs().max() > 1e-5 for name in INTRINSIC)


def test_gradients_reach_exactly_the_additions(base: Any) -> None:
    model = start(base)
    streams, sigmas, text = inputs(INTRINSIC[:3], given=("albedo",))

    def reached() -> set[str]:
        model.zero_grad()
        out = model(streams, sigmas, text)
        sum((out[name] - 1).square().mean() for name in ("rgb", "irradiance")).backward()
        return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}

    zero = {name for name, p in model.named_parameters() if model.is_added(name) and not p.detach().any()}
    assert len(zero) == 2 * 6 + 3 + 2 * 3 + 4  # B; inputs; outputs' weights and biases; levels
    mine = {name for name in zero if "normal" not in name}
    assert reached() == mine - {"channels_out.albedo.weight", "channels_out.albedo.bias"}  # nothing dead at the start
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in zero:
                parameter.add_(0.1)
    every = {name for name in model.added_parameters() if "normal" not in name}
    assert reached() == every - {"channels_out.albedo.weight", "channels_out.albedo.bias"}


def test_wrong_input_is_named(base: Any) -> None:
    model = start(base)
    streams, sigmas, text = inputs(("rgb", "normal"))
    with pytest.raises(OpenUniError, match=r'"normals" is not known\. Did you mean "normal"'):
        model({"normals": streams["normal"]}, sigmas, text)
    with pytest.raises(OpenUniError, match="share one shape"):
        model(streams | {"normal": streams["normal"][:, :, :2]}, sigmas, text)
    with pytest.raises(OpenUniError, match=r"layout = \"columns\"\. Allowed: rows, channels"):
        built(base, layout="columns")


# ---------------------------------------------------------------- training and sampling


def recipe(steps: int, **model: Any) -> TrainingRecipe:
    names = ["rgb", "albedo", "normal"]
    options = {name: value for name, value in SIZES.items() if name not in ("channels", "text_dim")}
    return TrainingRecipe.from_dict(
        {
            "model": {"name": "unividx", "layout": "channels", "modalities": names, "rank": 4} | options | model,
            "tasks": {"partitions": 1.0},
            "data": {"text_length": 0, "validation_share": 0.0, "caption_dropout": 0.0},
            "flow": {"shift": 3.0, "density": "uniform"},
            "optimizer": {
                "steps": steps,
                "batch_size": 8,
                "learning_rate": 5e-3,
                "added_rate_factor": 1.0,
                "warmup_steps": 0,
            },
            "ema": {"decay": 0.9},
            "checkpoints": {"every_steps": steps},
        }
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(6, ("rgb", "albedo", "normal")))


@pytest.mark.slow
def test_it_learns_all_partitions_of_random_clips(corpus: Any, tmp_path: Path) -> None:
    settings = recipe(150, train_base=True, heads=4, num_layers=1)
    losses = [row["loss"] for row in train(settings, corpus, tmp_path).log if "loss" in row]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])


def test_a_run_on_a_frozen_base_saves_the_additions_alone(base: Any, corpus: Any, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "wan")
    run = train(recipe(2, pretrained=str(tmp_path / "wan")), corpus, tmp_path / "run")
    saved = run.checkpoint.tensors("ema")
    assert set(saved) == set(run.model.added_parameters())
    assert saved["channels_out.albedo.weight"].any() and saved["signal.rgb"].any()
    opened = Run.open(tmp_path / "run", "cpu")
    assert opened.model.config["rank"] == 4 and type(opened.model).__name__ == "ChannelsTransformer"
    assert all(torch.equal(opened.model.state_dict()[name], tensor) for name, tensor in base.state_dict().items())
    given = torch.randn(2, 4, 2, 2, 2)
    made = opened.sample("rgb->albedo+normal", {"rgb": given}, ["", ""], sampling=SamplingOptions(2, 3.0))
    assert set(made) == {"albedo", "normal"} and made["albedo"].shape == given.shape
