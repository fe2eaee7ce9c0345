"""The model: bitwise the pretrained one at the start, every addition wired and able to learn, both RoPE layouts."""

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from openuni.manifests.errors import OpenUniError
from openuni.training.models.unityvideo import UnityVideo, UnityVideoTransformer
from tests.train.backbone.tiny_wan import BASE, SIZES, check_keys, tiny_base

TINY = UnityVideo(modalities=("rgb", "depth", "flow"), switcher_dim=8, **SIZES)


@pytest.fixture
def base() -> WanTransformer3DModel:
    return tiny_base()


@pytest.fixture
def model(base: WanTransformer3DModel) -> UnityVideoTransformer:
    torch.manual_seed(1)
    model = TINY.load("cpu")
    model.load_base(iter([base.state_dict()]))
    return model


def inputs(names: tuple[str, ...], batch: int = 2, width: int = 6) -> tuple[dict, dict, dict]:
    generator = torch.Generator().manual_seed(2)
    return (
        {name: torch.randn(batch, 4, 3, 4, width, generator=generator) for name in names},
        {name: torch.rand(batch, generator=generator) for name in names},
        {name: torch.randn(batch, 5, 8, generator=generator) for name in names},
    )


@pytest.mark.parametrize("rope", ["continued", "per_segment"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_single_rgb_stream_is_the_base_model_bitwise(
    base: WanTransformer3DModel, model: UnityVideoTransformer, rope: str, checkpointing: bool
) -> None:
    model.register_to_config(rope_layout=rope)
    if checkpointing:
        model.enable_gradient_checkpointing()
    streams, sigmas, text = inputs(("rgb",))
    expected = base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample
    assert torch.equal(model(streams, sigmas, text)["rgb"], expected)
    with torch.autocast("cpu", torch.bfloat16):
        expected = base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample
        assert torch.equal(model(streams, sigmas, text)["rgb"], expected)


def test_single_rgb_stream_has_the_base_models_gradients(
    base: WanTransformer3DModel, model: UnityVideoTransformer
) -> None:
    streams, sigmas, text = inputs(("rgb",))
    base(streams["rgb"], sigmas["rgb"] * 1000, text["rgb"]).sample.square().mean().backward()
    model(streams, sigmas, text)["rgb"].square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in base.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-7, rtol=1e-5)


def test_base_keys_are_kept_and_additions_are_the_rest(
    base: WanTransformer3DModel, model: UnityVideoTransformer
) -> None:
    check_keys(model, base)
    with pytest.raises(OpenUniError, match="differing keys"):
        model.load_base(iter([{"foreign": torch.zeros(1)}]))


def test_every_addition_is_wired_and_can_learn(model: UnityVideoTransformer) -> None:
    streams, sigmas, text = inputs(("rgb", "depth", "flow"))
    before = model(streams, sigmas, text)
    sum(value.square().mean() for value in before.values()).backward()
    zero = [name for name, p in model.named_parameters() if not p.detach().any() and "switcher" in name]
    assert len(zero) == 2 * 2  # weight and bias of one layer per block
    gradients = dict(model.named_parameters())
    assert all(gradients[name].grad.abs().max() > 0 for name in zero)  # no dead end of zero times zero
    with torch.no_grad():
        for name in zero:
            gradients[name].normal_(std=0.1)
    after = model(streams, sigmas, text)
    assert all((after[name] - before[name]).abs().max() > 1e-4 for name in streams)
    sum(value.square().mean() for value in after.values()).backward()
    dead = [name for name in model.added_parameters() if not gradients[name].grad.abs().max() > 0]
    assert dead == []


def test_experts_begin_as_copies_of_the_rgb_layers(model: UnityVideoTransformer) -> None:
    streams, sigmas, text = inputs(("rgb",))
    as_depth = model({"depth": streams["rgb"]}, {"depth": sigmas["rgb"]}, {"depth": text["rgb"]})["depth"]
    assert torch.equal(as_depth, model(streams, sigmas, text)["rgb"])


def test_rope_layouts(base: WanTransformer3DModel, model: UnityVideoTransformer) -> None:
    wide = base.rope(torch.empty(1, 4, 3, 4, 12))[0].view(3, 2, 6, 12)  # frames, rows, columns of both streams
    continued, _ = model.rotary((3, 2, 3), 2, model.config.rope_layout == "continued")
    torch.testing.assert_close(continued.view(2, 3, 2, 3, 12)[1], wide[:, :, 3:], atol=0, rtol=0)
    torch.testing.assert_close(continued.view(2, 3, 2, 3, 12)[0], wide[:, :, :3], atol=0, rtol=0)
    model.register_to_config(rope_layout="per_segment")
    anew, _ = model.rotary((3, 2, 3), 2, model.config.rope_layout == "continued")
    torch.testing.assert_close(anew.view(2, 3, 2, 3, 12)[1], wide[:, :, :3], atol=0, rtol=0)
    assert continued.dtype == torch.float32


def test_streams_share_attention_but_not_text_or_sigma(model: UnityVideoTransformer) -> None:
    streams, sigmas, text = inputs(("rgb", "depth"))
    before = model(streams, sigmas, text)
    for change in (
        (streams | {"depth": streams["depth"] + 1}, sigmas, text),
        (streams, sigmas | {"depth": sigmas["depth"] * 0}, text),
        (streams, sigmas, text | {"depth": text["depth"] + 1}),
    ):
        after = model(*change)
        assert (after["rgb"] - before["rgb"]).abs().max() > 1e-6  # through joint attention
        assert (after["depth"] - before["depth"]).abs().max() > (after["rgb"] - before["rgb"]).abs().max()
    reordered = {name: streams[name] for name in ("depth", "rgb")}
    assert torch.equal(model(reordered, sigmas, text)["rgb"], before["rgb"])


def test_samples_do_not_see_one_another(model: UnityVideoTransformer) -> None:
    streams, sigmas, text = inputs(("rgb", "depth"))
    both = model(streams, sigmas, text)
    one = model(*({name: value[:1] for name, value in group.items()} for group in (streams, sigmas, text)))
    torch.testing.assert_close(both["depth"][:1], one["depth"], atol=1e-5, rtol=1e-5)


def test_pretrained_folder_gives_sizes_and_weights(base: WanTransformer3DModel, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "transformer")
    component = UnityVideo(modalities=("rgb", "depth"), pretrained=str(tmp_path), switcher_dim=8)
    model = component.load("cpu")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in base.state_dict().items())
    resolved = component.resolved()
    assert (resolved.pretrained, resolved.num_layers, resolved.channels, resolved.text_dim) == ("", 2, 4, 8)
    assert set(resolved.load("cpu").state_dict()) == set(model.state_dict())
    assert torch.equal(model.input_experts["depth"].weight, base.patch_embedding.weight)
    assert torch.equal(model.output_experts["depth"].scale_shift_table, base.scale_shift_table)


def test_image_to_video_base_is_refused(tmp_path: Path) -> None:
    WanTransformer3DModel(**BASE, image_dim=8, added_kv_proj_dim=24).save_pretrained(tmp_path)
    with pytest.raises(OpenUniError, match="text-to-video"):
        UnityVideo(pretrained=str(tmp_path)).load("cpu")


def test_wrong_input_is_named(model: UnityVideoTransformer) -> None:
    streams, sigmas, text = inputs(("rgb", "depth"))
    with pytest.raises(OpenUniError, match=r'"dept" is not known\. Did you mean "depth"'):
        model({"dept": streams["depth"]}, sigmas, text)
    with pytest.raises(OpenUniError, match="share one shape"):
        model(streams | {"depth": streams["depth"][:, :, :2]}, sigmas, text)
    with pytest.raises(OpenUniError, match="patches"):
        model({"rgb": streams["rgb"][..., :5]}, sigmas, text)
    with pytest.raises(OpenUniError, match="RoPE"):
        model.to(torch.bfloat16)(streams, sigmas, text)
