"""Ablations of the published models are options: recorded, with fewer parameters, equal to the base at the start."""

from pathlib import Path
from typing import Any

import pytest
import torch

from openuni.training.loop.trainer import train
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX
from openuni.training.parity.checks import run_parity_checks
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from openuni.training.tasks import Task
from tests.train.backbone.tiny_wan import SIZES, inputs, tiny_base
from tests.train.corpora import random_clips, write_corpus

NAMES = ("rgb", "depth", "flow")
UNITYVIDEO: list[dict[str, Any]] = [
    {"in_context": False},
    {"switcher": "none"},
    {"input_layers": "shared"},
    {"output_layers": "shared"},
    {"switcher": "none", "input_layers": "shared", "output_layers": "shared"},
]
UNIVIDX: list[dict[str, Any]] = [
    {"gated": False},
    {"lora": "shared"},
    {"cross_modal": False},
    {"layout": "channels"},
]
ALL = [(UnityVideo, options) for options in UNITYVIDEO] + [(UniVidX, options) for options in UNIVIDX]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wan")
    tiny_base().save_pretrained(folder / "transformer")
    return str(folder)


def built(kind: Any, base: str = "", **options: Any) -> Any:
    torch.manual_seed(1)
    sizes = {"pretrained": base} if base else SIZES
    own = {"switcher_dim": 8} if kind is UnityVideo else {"rank": 2}
    return kind(modalities=NAMES, **sizes, **own | options).load("cpu")


@pytest.mark.parametrize(("kind", "options"), ALL, ids=str)
def test_parity_holds_at_the_start(base: str, kind: Any, options: dict[str, Any]) -> None:
    own = {"switcher_dim": 8} if kind is UnityVideo else {"rank": 2}
    component = kind(modalities=NAMES, pretrained=base, **own, **options)
    found = {result.name: result for result in run_parity_checks(component)}
    if options.get("layout") == "channels":  # modalities other than rgb have zero-initialized layers of their own
        assert found.pop("bitwise").verdict == "failed"
    odd = {name: result for name, result in found.items() if result.verdict not in ("passed", "does not apply")}
    assert not odd
    assert "bitwise" not in found or found["bitwise"].figure == 0.0


@pytest.mark.parametrize(
    ("kind", "options", "gone"),
    [
        (UnityVideo, {"in_context": False}, ()),
        (UnityVideo, {"switcher": "none"}, ("modality_embeddings.", ".switcher.")),
        (UnityVideo, {"input_layers": "shared"}, ("input_experts.",)),
        (UnityVideo, {"output_layers": "shared"}, ("output_experts.",)),
        (UniVidX, {"gated": False}, ()),
        (UniVidX, {"lora": "shared"}, (".rgb", ".depth", ".flow")),
        (UniVidX, {"cross_modal": False}, ()),
        (UniVidX, {"layout": "channels"}, (".rgb", ".depth", ".flow")),
    ],
    ids=str,
)
def test_parameters_vanish_and_no_others(kind: Any, options: dict[str, Any], gone: tuple[str, ...]) -> None:
    whole = {name for name, _ in built(kind).named_parameters()}
    ablated = {name for name, _ in built(kind, **options).named_parameters()}
    loras = {name for name in whole if ".lora_" in name}
    parts = {name for name in whole if any(part in name for part in gone)}
    assert whole - ablated == (parts if kind is UnityVideo else parts & loras)
    added = ablated - whole
    assert all(".shared" in name or name.startswith(("channels_", "signal.")) for name in added)


@pytest.mark.parametrize("options", UNITYVIDEO[1:4], ids=str)
def test_an_ablated_part_no_longer_tells_streams_apart(options: dict[str, Any]) -> None:
    """Of equal latents and texts, depth and flow differ by what is left; without all three parts they are equal."""
    group = [group | {"flow": group["depth"]} for group in inputs(NAMES)]

    def spread(**ablated: Any) -> float:
        model = built(UnityVideo, rope="per_segment", **ablated)
        with torch.no_grad():  # as training would leave the additions
            for name in model.added_parameters():
                parameter = model.get_parameter(name)
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
        found = model(*group)
        return float((found["depth"] - found["flow"]).detach().abs().max())

    assert spread() > 1e-3 and spread(**options) > 1e-3
    assert spread(**UNITYVIDEO[4]) < 1e-6
    assert spread() != spread(**options)


def test_without_in_context_learning_every_stream_has_the_caption(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_clips(4))
    settings: dict[str, Any] = {
        "model": {"name": "unityvideo", "switcher_dim": 8, "in_context": False} | SIZES,
        "data": {"text_length": 0, "validation_share": 0.0},
        "optimizer": {"steps": 1, "batch_size": 4, "warmup_steps": 0},
    }
    run = train(TrainingRecipe.from_dict(settings), corpus, tmp_path / "run")
    assert run.record["model"]["options"]["in_context"] is False
    opened = Run.open(tmp_path / "run")
    assert opened.caption_streams(Task.parse("rgb->depth")) == ("rgb", "depth")
    given = {"rgb": torch.zeros(1, *run.record["latent_shape"])}
    texts: list[dict[str, torch.Tensor]] = []
    opened.model.register_forward_pre_hook(lambda _, arguments: texts.append(arguments[2]))
    opened.sample("rgb->depth", given, ["a cube"], sampling=SamplingOptions(1, 1.0))
    assert torch.equal(texts[0]["rgb"], texts[0]["depth"])


@pytest.mark.parametrize(("kind", "options"), ALL, ids=str)
def test_options_are_recorded_and_defaults_are_not(kind: Any, options: dict[str, Any]) -> None:
    """A run that is opened again has the same ablation; records from before the options stay what they were."""
    model = kind(modalities=NAMES, **SIZES, **options)
    record = model.resolved().machine_independent().options_dict()
    assert {name: record[name] for name in options} == options
    plain = kind(modalities=NAMES, **SIZES).options_dict()
    assert not {"in_context", "input_layers", "output_layers", "captions"} & set(plain)
