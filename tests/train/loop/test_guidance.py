"""Guidance by the caption and by given streams: which passes it takes, what they see, and how runs learn it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.data.batches import Loader
from openuni.training.data.plan import Plan, Sample
from openuni.training.loop.setup import prepare
from openuni.training.loop.trainer import train
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX
from openuni.training.randomness import normal
from openuni.training.recipe import TrainingRecipe
from openuni.training.sampler import SamplerInputs, SamplingOptions, sample
from openuni.training.tasks import Task

SIZES: dict[str, Any] = {"num_layers": 1, "heads": 2, "head_dim": 12, "ffn_dim": 32, "freq_dim": 16}
SHAPE = (2, 4, 2, 2, 2)


@pytest.fixture
def model() -> Iterator[Any]:
    torch.manual_seed(0)
    yield UnityVideo(modalities=("rgb", "depth"), channels=4, text_dim=8, switcher_dim=8, **SIZES).load("cpu").eval()


def conditions_of(task: Task, captioned: tuple[str, ...] = ("rgb",)) -> SamplerInputs:
    generator = torch.Generator().manual_seed(1)
    given = {name: torch.randn(SHAPE, generator=generator) for name in task.conditions}
    text = {name: torch.randn(SHAPE[0], 5, 8, generator=generator) for name in task.streams}
    return SamplerInputs(given, text, torch.zeros(5, 8), captioned)


def calls_of(
    model: Any, task: Task, conditions: SamplerInputs, sampling: SamplingOptions
) -> list[tuple[dict, dict, dict]]:
    """The arguments of every forward pass of one sampling."""
    calls: list[tuple[dict, dict, dict]] = []
    handle = model.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    sample(model, task, conditions, SHAPE, sampling)
    handle.remove()
    return calls


@pytest.mark.parametrize(
    ("task", "captioned", "text_scale", "given_scale", "passes"),
    [
        ("rgb->depth", ("rgb",), 1.0, 1.0, 1),
        ("rgb->depth", ("rgb",), 2.0, 1.0, 2),
        ("rgb->depth", ("rgb",), 1.0, 2.0, 3),
        ("rgb->depth", ("rgb",), 3.0, 2.0, 3),
        ("rgb->depth", ("rgb",), 2.0, 2.0, 2),  # nothing of "without the caption, with what is given" is left
        ("rgb->depth", ("rgb",), 0.0, 0.0, 1),
        ("rgb->depth", (), 5.0, 2.0, 2),  # no caption to take away
        ("rgb->depth", (), 5.0, 1.0, 1),
        ("->rgb+depth", ("rgb",), 2.0, 7.0, 2),  # nothing given to take away
        ("->rgb+depth", ("rgb",), 1.0, 7.0, 1),
    ],
)
def test_no_pass_without_need(
    model: Any, task: str, captioned: tuple[str, ...], text_scale: float, given_scale: float, passes: int
) -> None:
    sampling = SamplingOptions(1, 1.0, guidance_scale=text_scale, condition_guidance_scale=given_scale)
    calls = calls_of(model, Task.parse(task), conditions_of(Task.parse(task), captioned), sampling)
    assert len(calls) == passes


def test_a_step_is_the_published_formula(model: Any) -> None:
    task = Task.parse("rgb->depth")
    conditions = conditions_of(task)
    made = sample(
        model,
        task,
        conditions,
        SHAPE,
        SamplingOptions(1, 1.0, guidance_scale=3.0, condition_guidance_scale=2.0, seed=4),
    )

    def noise(purpose: str, name: str) -> torch.Tensor:
        return torch.stack([normal(SHAPE[1:], 4, purpose, name, item) for item in range(SHAPE[0])])

    start, ones, zeros = noise("sample", "depth"), torch.ones(2), torch.zeros(2)
    empty = conditions.text | {"rgb": torch.zeros(2, 5, 8)}

    def depth(rgb: torch.Tensor, sigma: torch.Tensor, text: dict[str, torch.Tensor]) -> torch.Tensor:
        streams = {"rgb": rgb, "depth": start}
        predicted: torch.Tensor = model(streams, {"rgb": sigma, "depth": ones}, text)["depth"]
        return predicted.detach()

    full = depth(conditions.conditions["rgb"], zeros, conditions.text)
    without_text = depth(conditions.conditions["rgb"], zeros, empty)
    without_both = depth(noise("dropped", "rgb"), ones, empty)
    expected = start - (without_both + 2.0 * (without_text - without_both) + 3.0 * (full - without_text))
    torch.testing.assert_close(made["depth"], expected, atol=1e-6, rtol=1e-5)


def test_given_streams_are_clean_or_the_same_noise_in_every_step(model: Any) -> None:
    task = Task.parse("rgb->depth")
    conditions = conditions_of(task)
    calls = calls_of(model, task, conditions, SamplingOptions(3, 1.0, guidance_scale=3.0, condition_guidance_scale=2.0))
    assert len(calls) == 9
    for streams, sigmas, text in calls:
        dropped = bool(sigmas["rgb"].eq(1).all())
        assert dropped or (sigmas["rgb"].eq(0).all() and torch.equal(streams["rgb"], conditions.conditions["rgb"]))
        assert not dropped or not text["rgb"].any(), "where the given streams are taken away, so is the caption"
        assert torch.equal(text["depth"], conditions.text["depth"]), "the modality's prompt stays"
    noises = [streams["rgb"] for streams, sigmas, _ in calls if sigmas["rgb"].eq(1).all()]
    assert len(noises) == 3 and all(torch.equal(noise, noises[0]) for noise in noises)


def test_what_is_made_without_the_given_streams_does_not_know_them(model: Any) -> None:
    task = Task.parse("rgb->depth")
    first = conditions_of(task)
    second = first._replace(conditions={"rgb": first.conditions["rgb"] + 1})

    def made(conditions: SamplerInputs, scale: float) -> torch.Tensor:
        return sample(
            model,
            task,
            conditions,
            SHAPE,
            SamplingOptions(2, 1.0, guidance_scale=scale, condition_guidance_scale=scale),
        )["depth"]

    assert torch.equal(made(first, 0.0), made(second, 0.0))
    assert not torch.equal(made(first, 1.0), made(second, 1.0))


@pytest.mark.parametrize("condition_noise", [0.0, 0.005])
def test_rows_of_dropped_streams_count_as_made(condition_noise: float) -> None:
    """UniVidX: noise is what a row of a made stream is at the start, so its LoRA is at work."""
    torch.manual_seed(0)
    model = UniVidX(
        modalities=("rgb", "normal"), rank=2, condition_noise=condition_noise, channels=4, text_dim=8, **SIZES
    ).load("cpu")
    task = Task.parse("rgb->normal")
    calls = calls_of(model, task, conditions_of(task, ()), SamplingOptions(1, 1.0, condition_guidance_scale=2.0))
    gates = [model.rows(("rgb", "normal"), sigmas).gate.flatten().tolist() for _, sigmas, _ in calls]
    assert gates == [[0, 1, 0, 1], [1, 1, 1, 1]]


# ---------------------------------------------------------------- training what guidance asks for


def recipe(**data: Any) -> TrainingRecipe:
    return TrainingRecipe.from_dict(
        {
            "model": {"name": "unityvideo", "switcher_dim": 8, **SIZES},
            "data": {"text_length": 0, "validation_share": 0.0, **data},
            "optimizer": {"steps": 2, "batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-3},
        }
    )


def loader_of(settings: TrainingRecipe, corpus: Corpus, folder: Path) -> tuple[Loader, Plan]:
    setup = prepare(settings, corpus, folder)
    plan = Plan.build(setup.index, setup.mix, settings.seed, settings.optimizer.batch_size)
    return Loader(corpus, setup.index, setup.texts, settings, setup.model), plan


def test_dropped_samples_are_told_nothing(corpus: Corpus, tmp_path: Path) -> None:
    loader, plan = loader_of(recipe(given_dropout=0.3, caption_dropout=0.0), corpus, tmp_path / "a")
    plain, _ = loader_of(recipe(given_dropout=0.0, caption_dropout=0.0), corpus, tmp_path / "b")
    dropped = given = 0
    for step in range(60):
        pairs = zip(loader.step(plan, step)[0], plain.step(plan, step)[0], strict=True)
        for batch, before in pairs:
            noisy = batch.noisy()
            assert all(torch.equal(batch.targets[name], before.targets[name]) for name in batch.targets)
            for slot, task in enumerate(batch.tasks):
                for name in task.targets:
                    assert batch.sigmas[name][slot] == before.sigmas[name][slot]
                given += bool(task.conditions)
                levels = {float(batch.sigmas[name][slot]) for name in task.conditions}
                if levels == {1.0}:
                    dropped += 1
                    assert all(torch.equal(noisy[name][slot], batch.noise[name][slot]) for name in task.conditions)
                    assert torch.equal(batch.text["rgb"][slot], loader.texts.empty)
                else:
                    assert levels <= {0.0} and not torch.equal(batch.text["rgb"][slot], loader.texts.empty)
    assert 0.2 < dropped / given < 0.4


def test_validation_drops_nothing(corpus: Corpus, tmp_path: Path) -> None:
    loader, _ = loader_of(recipe(given_dropout=1.0), corpus, tmp_path)
    batch = loader.batch([Sample(0, Task.parse("rgb->depth"))], [{"depth": 0.5}], [("validation", "a")])
    assert batch.sigmas["rgb"].tolist() == [0.0] and not torch.equal(batch.text["rgb"][0], loader.texts.empty)


def test_runs_that_have_not_learnt_it_refuse(corpus: Corpus, tmp_path: Path) -> None:
    given = {"rgb": torch.randn(1, *SHAPE[1:])}
    guided = SamplingOptions(1, 1.0, condition_guidance_scale=2.0)
    plain = train(recipe(), corpus, tmp_path / "plain")
    with pytest.raises(
        OpenUniError, match=r'trained on "rgb->depth" with condition dropout.*data\.condition_dropout = 0\.1'
    ):
        plain.sample("rgb->depth", given, ["a cube"], sampling=guided)
    plain.sample("->rgb+depth", {}, ["a cube"], SHAPE[1:], sampling=guided)  # nothing given, nothing to guide by
    learnt = train(recipe(given_dropout=0.5), corpus, tmp_path / "learnt")
    one, two = (
        learnt.sample(
            "rgb->depth", given, ["a cube"], sampling=SamplingOptions(1, 1.0, condition_guidance_scale=scale)
        )["depth"]
        for scale in (1.0, 2.0)
    )
    assert not torch.equal(one, two)
    apart = TrainingRecipe.from_dict(recipe().to_dict() | {"flow": {"shared_sigma": False}})
    train(apart, corpus, tmp_path / "apart").sample("rgb->depth", given, ["a cube"], sampling=guided)


@pytest.mark.parametrize("name", ["condition_dropout", "caption_dropout"])
def test_shares_are_checked(name: str) -> None:
    with pytest.raises(OpenUniError, match=rf"recipe: data: {name} = 1\.5\. Allowed: 0 to 1"):
        recipe(**{name: 1.5})


def test_a_run_from_before_the_option_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    import json

    train(recipe(), corpus, tmp_path)
    path = tmp_path / "run.json"
    record = json.loads(path.read_text())
    del record["recipe"]["data"]["given_dropout"], record["checksum"]
    path.write_text(json.dumps(record))
    train(recipe(), corpus, tmp_path)
    with pytest.raises(OpenUniError, match=r"given_dropout: 0\.0 -> 0\.1"):
        train(recipe(given_dropout=0.1), corpus, tmp_path)
