"""UnityVideo from recipe to samples: any streams to any others, both switchers, and what a recipe must not say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints, load_model
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from openuni.training.tasks import Task
from tests.train.corpora import random_clips, write_corpus

FOUR = ("rgb", "depth", "flow", "skeleton")
TASKS = {
    "joint": 1.0,
    "rgb+depth->flow": 1.0,
    "rgb->depth+flow": 1.0,
    "->rgb+depth+flow": 1.0,
    "depth+skeleton->rgb+flow": 1.0,
}
SHAPE = (4, 2, 2, 2)
QUICK = SamplingOptions(steps=2, shift=1.0)


def recipe(tasks: dict[str, float] = TASKS, model: dict[str, Any] | None = None, **changes: Any) -> TrainingRecipe:
    sizes = {"num_layers": 1, "heads": 2, "head_dim": 12, "ffn_dim": 24, "freq_dim": 16, "switcher_dim": 8}
    optimizer = {"steps": 6, "batch_size": 6, "warmup_steps": 0, "learning_rate": 3e-3, "added_rate_factor": 1.0}
    return TrainingRecipe.from_dict(
        {
            "tasks": tasks,
            "model": {"name": "unityvideo", **sizes, **(model or {})},
            "data": {"text_length": 0, "validation_share": 0.0},
            "optimizer": optimizer,
            "validation": {"every_steps": 0},
        }
        | changes
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(6, FOUR))


@pytest.fixture(scope="module", params=["per_block", "released"])
def run(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe(model={"switcher": request.param}), corpus, tmp_path_factory.mktemp("run"))


def test_all_tasks_are_trained_and_every_addition_learns(run: Run) -> None:
    seen = {task for row in run.log for task in row.get("task_loss", {})}
    assert seen == {str(task) for task in run.tasks} and len(seen) == 3 + 4
    state = list_checkpoints(run.folder)[-1].tensors("optimizer")
    still = [name for name in run.model.added_parameters() if not state[f"exp_avg_sq/{name}"].any()]
    assert still == []
    released = run.record["model"]["options"]["switcher"] == "released"
    assert any(".switcher." in name for name in run.model.added_parameters()) != released


@pytest.mark.parametrize("task", list(TASKS)[1:])
def test_any_streams_make_any_others(run: Run, task: str) -> None:
    parsed = Task.parse(task)
    given = {name: torch.randn(2, *SHAPE) for name in parsed.conditions}
    kept = {name: latents.clone() for name, latents in given.items()}
    seen: list[tuple] = []
    handle = run.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    made = run.sample(task, given, ["a cube", "a ball"], SHAPE, QUICK)
    handle.remove()
    assert set(made) == set(parsed.targets) and all(latents.shape == (2, *SHAPE) for latents in made.values())
    assert len(seen) == 2
    for streams, sigmas, _ in seen:
        assert set(streams) == set(parsed.streams)
        for name in parsed.conditions:  # what goes in is what was given, bit for bit and at noise 0, in every step
            assert torch.equal(streams[name], kept[name]) and not sigmas[name].any()
            assert torch.equal(given[name], kept[name])
        assert all(bool((sigmas[name] > 0).all()) for name in parsed.targets)
    for name in parsed.conditions:
        other = run.sample(task, given | {name: given[name] + 1}, ["a cube", "a ball"], SHAPE, QUICK)
        assert all(not torch.equal(other[stream], made[stream]) for stream in made), name
    alone = run.sample(task, {name: one[:1] for name, one in given.items()}, ["a cube"], SHAPE, QUICK)
    for name in made:  # company in a batch does not matter
        torch.testing.assert_close(alone[name], made[name][:1], atol=1e-5, rtol=1e-4)


def test_the_order_of_modalities_and_tasks_in_a_recipe_does_not_matter(corpus: Corpus, tmp_path: Path) -> None:
    one = train(recipe(model={"modalities": list(FOUR)}), corpus, tmp_path / "one")
    turned = dict(reversed(TASKS.items()))
    two = train(recipe(turned, model={"modalities": list(FOUR[::-1])}), corpus, tmp_path / "two")
    ours, theirs = (list_checkpoints(run.folder)[-1].tensors("model") for run in (one, two))
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_released_and_published_checkpoints_are_not_mixed_up(run: Run) -> None:
    other = "released" if run.record["model"]["options"]["switcher"] == "per_block" else "per_block"
    options = run.record["model"]["options"] | {"switcher": other}
    model = Run(run.folder, run.record | {"model": {"name": "unityvideo", "options": options}}, "cpu")
    with pytest.raises(
        OpenUniError, match=r"does not match the model; differing keys: .*(switcher|modality_embeddings)"
    ):
        _ = model.model
    weights = run.checkpoint.tensors("ema")
    del weights["proj_out.weight"]
    with pytest.raises(OpenUniError, match=r"differing keys: proj_out\.weight"):
        load_model(run.model, weights, run.checkpoint.path)
    with pytest.raises(OpenUniError, match=r"differing keys: foreign"):
        load_model(run.model, run.checkpoint.tensors("ema") | {"foreign": torch.zeros(1)}, run.checkpoint.path)


def test_what_a_recipe_or_a_sample_must_not_say(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        OpenUniError, match=r'not trained for "rgb\+flow->depth"; it was trained for: .*rgb\+depth->flow'
    ):
        run.sample("rgb+flow->depth", {}, ["a cube"], SHAPE)
    with pytest.raises(OpenUniError, match=r"condition latents must be \[1, 4, 2, 2, 2\] for 1 captions, got .*depth"):
        given = {"rgb": torch.zeros(1, *SHAPE), "depth": torch.zeros(1, 4, 1, 2, 2)}
        run.sample("rgb+depth->flow", given, ["a cube"], SHAPE)
    with pytest.raises(OpenUniError, match=r"condition streams must be \['rgb', 'depth'\], got latents of \['rgb'\]"):
        run.sample("rgb+depth->flow", {"rgb": torch.zeros(1, *SHAPE)}, ["a cube"], SHAPE)
    with pytest.raises(OpenUniError, match=r"frames must be 4k \+ 1"):
        run.generate("a cube", ["rgb", "depth", "flow"], size=(6, 16, 16))
    for modalities, message in ((["rgb", "dept"], '"dept" is not a modality|dept'), (["rgb", "rgb"], "rgb")):
        with pytest.raises(OpenUniError, match=message):
            train(recipe({"text->rgb": 1.0}, model={"modalities": modalities}), corpus, tmp_path)
    with pytest.raises(OpenUniError, match=r'task "rgb->normal" needs normal; the model has'):
        train(recipe({"rgb->normal": 1.0}), corpus, tmp_path)
    with pytest.raises(OpenUniError, match=r'switcher = "off"\. Allowed: per_block, released, none\.'):
        train(recipe(model={"switcher": "off"}), corpus, tmp_path)
    assert not (tmp_path / "run.json").exists()
