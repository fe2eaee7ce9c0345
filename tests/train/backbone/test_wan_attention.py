"""What all models on Wan share: loading without a second copy, named sizes, precision, attention, compiled blocks."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.training.backbone import attention
from openuni.training.backbone.attention import WanProcessor, check_attention
from openuni.training.backbone.compilation import Compiler
from openuni.training.loop.weights import Ema, Weights
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX
from openuni.training.parity.subject import plain_model
from tests.train.backbone.tiny_wan import inputs as rows
from tests.train.backbone.wan_components import NAMES, SMALL, components, inputs
from tests.train.models.tiny_unividx import trained

# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("name", components())
@pytest.mark.parametrize("kernels", ["sdpa", "sdpa_math"])
def test_attention_backends_are_the_same_function(folder: Path, name: str, kernels: str) -> None:
    component = components(pretrained=str(folder))[name]
    torch.manual_seed(1)
    plain = component.load("cpu")
    torch.manual_seed(1)
    model = dataclasses.replace(component, attention=kernels).load("cpu")
    used = {module.processor._attention_backend for module in model.modules() if hasattr(module, "processor")}
    assert used == {attention.BACKENDS[kernels].name}
    expected = plain(*inputs(name))
    for key, value in model(*inputs(name)).items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-5)
    assert {m.processor._attention_backend for m in plain.modules() if hasattr(m, "processor")} == {None}


@pytest.mark.parametrize("autocast", [False, True])
def test_our_processor_is_that_of_diffusers(folder: Path, monkeypatch: pytest.MonkeyPatch, autocast: bool) -> None:
    """Outputs and gradients bit for bit; kernels, which may be of other packages, get one dtype."""
    seen = []
    dispatch = attention.dispatch_attention_fn

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append({query.dtype, key.dtype, value.dtype})
        return dispatch(query, key, value, *rest, **named)

    monkeypatch.setattr(attention, "dispatch_attention_fn", watched)
    model = UnityVideo(modalities=NAMES, switcher_dim=8, pretrained=str(folder)).load("cpu")

    def computed() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = model(*rows(NAMES))
        torch.stack([value.float().square().mean() for value in found.values()]).sum().backward()
        return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    ours = computed()
    assert len(seen) == 4 and all(dtypes == {torch.bfloat16 if autocast else torch.float32} for dtypes in seen)
    for module in model.modules():
        if hasattr(module, "processor"):
            assert isinstance(module.processor, WanProcessor)
            module.set_processor(WanAttnProcessor())
    theirs = computed()
    assert len(seen) == 4
    for found, expected in zip(ours, theirs, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_attention_that_cannot_run_is_refused_before_loading() -> None:
    with pytest.raises(OpenUniError, match=r'attention = "flsh"\. Did you mean "flash".* Allowed: auto, sdpa'):
        UnityVideo(attention="flsh")
    with pytest.raises(OpenUniError, match='"sdpa_cudnn" requires CUDA, but the device is cpu'):
        UnityVideo(attention="sdpa_cudnn", **SMALL).load("cpu")
    with pytest.raises(MissingRequirement, match="pip install flash-attn"):
        check_attention("flash", "cuda")
    with pytest.raises(OpenUniError, match="Allowed: auto, sdpa, sdpa_flash"):
        parse_options(UnityVideo, {"attention": "sage"}, "unityvideo")
    model = UnityVideo(modalities=NAMES, switcher_dim=8, **SMALL).load("cpu")
    model.attention = "flash"
    with pytest.raises(OpenUniError, match="requires bfloat16, but precision is float32"):
        model(*rows(NAMES))


def test_a_run_does_not_record_what_is_of_the_machine() -> None:
    component = UniVidX(attention="flash", compile="inductor", gradient_checkpointing=True, rank=5)
    assert component.machine_independent() == UniVidX(rank=5)


# ---------------------------------------------------------------- compiled blocks


SLOW = [(name, on) for name in components() for on in (False, True) if (name, on) != ("unividx", True)]


def plain_and_compiled(folder: Path, name: str, checkpointing: bool, compiler: Compiler, close: float) -> list[Any]:
    """The model as it is and with compiled blocks, which have the same gradients."""
    torch._dynamo.reset()
    component = components(pretrained=str(folder), gradient_checkpointing=checkpointing)[name]
    models = []
    for kind in ("none", compiler):
        torch.manual_seed(1)
        models.append(dataclasses.replace(component, compile=kind).load("cpu"))
    for model in models:
        sum(v.float().square().mean() for v in model(*inputs(name)).values()).backward()
    plain, compiled = ({key: p.grad for key, p in model.named_parameters()} for model in models)
    assert list(plain) == list(compiled)
    reached = [key for key, gradient in plain.items() if gradient is not None]
    assert reached == [key for key, gradient in compiled.items() if gradient is not None] and len(reached) > 4
    for key in reached:
        torch.testing.assert_close(compiled[key], plain[key], atol=close, rtol=close)
    return models


@pytest.mark.parametrize(
    ("name", "checkpointing"), [("unividx", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_compiled_blocks_are_the_same_function(folder: Path, name: str, checkpointing: bool) -> None:
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    plain, model = plain_and_compiled(folder, name, checkpointing, "aot_eager", 1e-5)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs in (1, 2)  # one for all blocks
    expected = plain(*inputs(name))
    for key, value in model(*inputs(name)).items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-5)
    ema = Ema(Weights(model))  # other weights than those that the compiled blocks were made with
    with torch.no_grad():
        for tensor in ema.average.values():
            tensor.add_(0.2)
    with ema.applied() as average:
        moved = average(*inputs(name))
    assert all((moved[key] - value).abs().max() > 1e-4 for key, value in expected.items() if value.any())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unividx"])
def test_blocks_compiled_by_inductor_are_the_same_function(folder: Path, name: str) -> None:
    plain_and_compiled(folder, name, True, "inductor", 1e-4)


def test_trained_model_on_a_wide_base_keeps_its_start(folder: Path) -> None:
    """`load_base` into a model that has its weights copies: the given tensors are not changed by training."""
    base = plain_model(folder)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = trained(base, modalities=NAMES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
