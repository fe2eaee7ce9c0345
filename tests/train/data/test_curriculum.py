"""Curricula: every stage with its own tasks and clips, as a pure function of the step."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.data.curriculum import Curriculum, curriculum_stages, trained_tasks
from openuni.training.data.index import Index, open_index
from openuni.training.data.plan import Plan
from openuni.training.loop.setup import prepare
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.tasks import Task, TaskMix
from tests.train.corpora import random_clips, write_corpus

THREE = ("rgb", "depth", "skeleton")
STAGES = [
    {"from_step": 6, "tasks": {"estimate": 1.0}},
    {"from_step": 9, "tasks": {"rgb->skeleton": 3.0, "->rgb+depth+skeleton": 1.0}},
]


def recipe(curriculum: list[dict[str, Any]] = STAGES, **changes: Any) -> TrainingRecipe:
    return TrainingRecipe.from_dict(
        {
            "tasks": {"joint": 1.0},
            "modality_weights": {"skeleton": 0.0},
            "curriculum": curriculum,
            "model": {
                "name": "unityvideo",
                "num_layers": 1,
                "heads": 2,
                "head_dim": 12,
                "ffn_dim": 24,
                "freq_dim": 16,
                "switcher_dim": 8,
            },
            "data": {"text_length": 0, "validation_share": 0.0},
            "optimizer": {"steps": 12, "batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-3},
            "validation": {"every_steps": 0},
            "checkpoints": {"every_steps": 50},
            **changes,
        }
    )


def clips_with_gaps() -> list[dict[str, Any]]:
    """Twelve clips: four with everything, four without skeleton, four without depth."""
    clips = random_clips(12, THREE)
    for number in range(4):
        del clips[4 + number]["latents"]["skeleton"]
        del clips[8 + number]["latents"]["depth"]
    for number, clip in enumerate(clips):
        clip["collection"] = "single" if number % 4 < 2 else "general"
    return clips


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips_with_gaps())


@pytest.fixture(scope="module")
def index(corpus: Corpus) -> Index:
    return open_index(corpus, THREE, "", "", 0.0)


def curriculum_of(index: Index, settings: TrainingRecipe) -> Curriculum:
    stages = curriculum_stages(settings, THREE)
    return Curriculum.build(index, stages, settings.seed, settings.optimizer.batch_size)


def test_each_stage_draws_its_tasks_from_clips_that_have_the_streams(index: Index) -> None:
    plan = curriculum_of(index, recipe())
    present = index.present
    expected = [{"text->rgb+depth"}] * 6 + [{"rgb->depth", "rgb->skeleton"}] * 3
    expected += [{"rgb->skeleton", "text->rgb+depth+skeleton"}] * 300
    seen: list[Counter[str]] = [Counter(), Counter(), Counter()]
    clips: list[set[int]] = [set(), set(), set()]
    for step, allowed in enumerate(expected):
        for sample in plan.step(step):
            assert str(sample.task) in allowed
            assert set(sample.task.streams) <= index.streams(int(present[sample.clip]))
            stage = (step >= 6) + (step >= 9)
            seen[stage][str(sample.task)] += 1
            clips[stage].add(sample.clip)
    assert [len(found) for found in clips] == [8, 12, 8]  # without depth; all; without skeleton
    joint = sum(seen[2].values())
    # half of the clips have everything and are given each task by its weight, the others have one task
    assert seen[2]["rgb->skeleton"] / joint == pytest.approx(0.5 + 0.5 * 0.75, abs=0.04)


def test_until_the_first_border_nothing_is_changed(index: Index) -> None:
    with_stages, without = curriculum_of(index, recipe()), curriculum_of(index, recipe([]))
    assert [with_stages.step(step) for step in range(6)] == [without.step(step) for step in range(6)]
    mix = TaskMix.build({"joint": 1.0}, THREE, {"skeleton": 0.0})
    assert [without.step(step) for step in range(20)] == [Plan.build(index, mix, 0, 4).step(s) for s in range(20)]


def test_a_stage_is_a_pure_function_of_the_step_with_a_seed_of_its_own(index: Index) -> None:
    same = [{"from_step": 5, "tasks": {"joint": 1.0}, "modality_weights": {"skeleton": 0.0}}]
    plan = curriculum_of(index, recipe(same))
    order = [[sample.clip for sample in plan.step(step)] for step in range(12)]
    backwards = [[sample.clip for sample in plan.step(step)] for step in reversed(range(12))]
    assert order == backwards[::-1]
    assert order[:5] != order[5:10], "a stage does not repeat the order of the one before"
    for step in (0, 2, 5, 7, 9):  # eight clips, four a step: passes begin with the stage, each is whole
        assert len({*order[step], *order[step + 1]}) == 8
    assert len(plan.step(10**9)) == 4


def test_the_mix_of_all_stages_is_what_is_validated_and_known(index: Index) -> None:
    mixes = [stage.mix for stage in curriculum_stages(recipe(), THREE)]
    together = TaskMix.averaged(mixes)
    assert sum(weight for _, weight in together.weights) == pytest.approx(1.0)
    assert {str(task) for task in together.tasks} == {
        "text->rgb+depth",
        "rgb->depth",
        "rgb->skeleton",
        "text->rgb+depth+skeleton",
    }
    assert TaskMix.averaged(mixes[:1]) == mixes[0]


def test_a_stage_may_keep_to_collections(corpus: Corpus, index: Index) -> None:
    stages = [{"from_step": 5, "tasks": {"joint": 1.0}, "collections": ["general"]}]
    data = {"text_length": 0, "validation_share": 0.0, "collections": ["single"]}
    plan = curriculum_of(index, recipe(stages, data=data))
    for step in range(10):
        names = {index.collections[index.collection[sample.clip]] for sample in plan.step(step)}
        assert names == ({"single"} if step < 5 else {"general"})
    only = open_index(corpus, THREE, "", "", 0.0, ("single",))
    assert len(only.clip_ids) == 6 and set(only.clip_ids) < set(index.clip_ids)
    assert only.digest() != index.digest()
    with pytest.raises(OpenUniError, match=r'"singel" not found in the corpus. Did you mean "single".*general, single'):
        open_index(corpus, THREE, "", "", 0.0, ("singel",))


def test_a_corpus_without_collections_is_all_one(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, random_clips(3))
    index = open_index(corpus, ("rgb", "depth"), "", "", 0.0)
    assert index.collections == [""] and index.collection.tolist() == [0, 0, 0]
    with pytest.raises(OpenUniError, match="Collections of kept clips: none"):
        open_index(corpus, ("rgb", "depth"), "", "", 0.0, ("single",))


# ---------------------------------------------------------------- through the trainer


def test_training_crosses_borders_and_resumes_at_them(corpus: Corpus, tmp_path: Path) -> None:
    whole = train(recipe(), corpus, tmp_path / "whole")
    tasks = [set(row["task_loss"]) for row in whole.log if "task_loss" in row]
    assert all(found == {"text->rgb+depth"} for found in tasks[:6])
    assert all(found <= {"rgb->depth", "rgb->skeleton"} for found in tasks[6:9])
    assert all(found <= {"rgb->skeleton", "text->rgb+depth+skeleton"} for found in tasks[9:])
    for stop in (4, 6, 10):
        optimizer = recipe().to_dict()["optimizer"]
        train(recipe(optimizer=optimizer | {"steps": stop}), corpus, tmp_path / f"{stop}")
        train(recipe(), corpus, tmp_path / f"{stop}")
        ours, theirs = (
            list_checkpoints(run)[-1].tensors("model") for run in (tmp_path / f"{stop}", tmp_path / "whole")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    stages = whole.record["data"]["stages"]
    assert [(stage["from_step"], stage["clips"]) for stage in stages] == [(0, 8), (6, 12), (9, 8)]
    assert stages[1]["clips_by_task"] == {"rgb->depth": 8, "rgb->skeleton": 8}
    assert Task.parse("rgb->depth") in whole.tasks and len(Run.open(tmp_path / "whole").tasks) == 4
    with pytest.raises(OpenUniError, match=r"recipe\.curriculum"):
        train(recipe(STAGES[:1]), corpus, tmp_path / "whole")


def test_validation_covers_the_tasks_of_all_stages(tmp_path: Path) -> None:
    clips = clips_with_gaps()
    for clip in clips[::2]:
        clip["split"] = "validation"
    corpus = write_corpus(tmp_path / "corpus", clips)
    settings = recipe(
        validation={"every_steps": 1, "clips": 6, "quantiles": 1},
        optimizer={"steps": 1, "batch_size": 2, "warmup_steps": 0},
    )
    run = train(settings, corpus, tmp_path / "run")
    losses = next(row["validation_loss"] for row in run.log if "validation_loss" in row)
    assert {name for name in losses if " at " not in name} == {str(task) for task in trained_tasks(settings, THREE)}
    assert [str(task) for task in run.tasks] == ["text->rgb+depth"]  # one step is done, other stages have not begun


def test_the_debug_curriculum_runs(corpus: Corpus, tmp_path: Path) -> None:
    run = train("unityvideo_curriculum_debug", corpus, tmp_path)
    assert run.checkpoint.step == 10 and len(run.tasks) == 6


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"tasks": {"joint": 1.0}}], "curriculum: from_step = 0. Allowed: above 0"),
        ([{"from_step": 3}], "the stage from step 3 has no tasks"),
        ([{"from_step": 3, "task": {}}], 'curriculum 1 has no option "task". Did you mean "tasks"'),
        (
            [{"from_step": 3, "tasks": {"joint": "1"}}],
            "curriculum 1: tasks = {'joint': '1'}. Allowed: table of numbers",
        ),
        ([3], "curriculum 1 must be a table of options, got 3"),
        ({"from_step": 3}, "curriculum must be tables"),
        ([STAGES[1], STAGES[0]], r"each stage must begin after the one before; from_step: \[9, 6\]"),
        ([STAGES[0], STAGES[0]], r"each stage must begin after the one before; from_step: \[6, 6\]"),
    ],
)
def test_mistakes_in_stages_are_named(stages: Any, message: str) -> None:
    with pytest.raises(OpenUniError, match=message):
        recipe(stages)


def test_a_stage_that_nothing_can_be_done_in_is_refused_before_the_first_step(tmp_path: Path) -> None:
    clips = random_clips(4, ("rgb", "depth"))
    clips[0]["latents"]["skeleton"] = None
    corpus = write_corpus(tmp_path / "corpus", clips)
    with pytest.raises(OpenUniError, match=r"stage 3, from step 9: no training clips.*skeleton: 0"):
        prepare(recipe(), corpus, tmp_path / "run")
    unknown = [{"from_step": 3, "tasks": {"joint": 1.0}, "collections": ["general"]}]
    data = {"text_length": 0, "validation_share": 0.0, "collections": ["single"]}
    with pytest.raises(OpenUniError, match='collection "general" not found in the corpus'):
        prepare(recipe(unknown, data=data, modality_weights={}), corpus, tmp_path / "run")
    with pytest.raises(OpenUniError, match="needs flow; the model has rgb, depth, skeleton"):
        prepare(recipe([{"from_step": 3, "tasks": {"rgb->flow": 1.0}}]), corpus, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
