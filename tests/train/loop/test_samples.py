"""Samples during training: what is written, that it is the same on several ranks, and that the training is too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.probe import make_clip, probe
from openuni.training.loop.trainer import train
from openuni.training.run import Run
from tests.train.loop.rank_jobs import trainings
from tests.train.loop.rank_processes import run_ranks
from tests.train.loop.test_trainer import assert_same, recipe, state

SAMPLES: dict[str, Any] = {"every_steps": 4, "prompts": ["a red cube", "two cubes"], "clips": 1, "solver_steps": 2}


@pytest.fixture(scope="module")
def sampled(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe(samples=SAMPLES), corpus, tmp_path_factory.mktemp("sampled"))


def names(run: Path) -> list[str]:
    return sorted(path.relative_to(run / "samples").as_posix() for path in (run / "samples").rglob("*.mp4"))


def frames(path: Path) -> np.ndarray:
    return decode(make_clip(str(path), probe(str(path)))).frames


def test_every_task_has_videos_and_the_training_is_the_same(sampled: Run, run: Run, corpus: Corpus):
    held_out = next(name for name in names(sampled.folder) if "rgb-to-depth" in name).split(".")[0].split("_")[-1]
    step = [
        f"depth-to-rgb_{held_out}.rgb.mp4",
        f"rgb-to-depth_{held_out}.depth.mp4",
        *(
            f"text-to-rgb+depth_{what}.{modality}.mp4"
            for what in (held_out, "prompt-0", "prompt-1")
            for modality in ("rgb", "depth")
        ),
    ]
    assert names(sampled.folder) == sorted(f"step-{number:06d}/{name}" for number in (4, 6) for name in step)
    assert frames(sampled.folder / "samples" / "step-000006" / step[0]).shape == (5, 16, 16, 3)
    assert_same(state(sampled.folder), state(run.folder))
    losses = [[row.get("loss") for row in one.log] for one in (sampled, run)]
    assert losses[0] == losses[1]


def test_prompts_differ_and_repeat(sampled: Run, corpus: Corpus, tmp_path: Path):
    """A run that is stopped and resumed writes the same videos as one that is not."""
    train(recipe(samples=SAMPLES, optimizer={"steps": 3}), corpus, tmp_path)
    train(recipe(samples=SAMPLES), corpus, tmp_path)
    folder = sampled.folder / "samples" / "step-000006"
    for name in names(tmp_path):
        if name.startswith("step-000006"):
            np.testing.assert_array_equal(
                frames(tmp_path / "samples" / name), frames(sampled.folder / "samples" / name)
            )
    first, second = (frames(folder / f"text-to-rgb+depth_prompt-{number}.rgb.mp4") for number in (0, 1))
    assert (first != second).any()


def test_tensorboard_shows_them(sampled: Run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(sampled.folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()["images"]
    assert "samples/text->rgb+depth/prompt-0/rgb" in tags and len(tags) == 8
    (first, last) = events.Images(tags[0])
    assert (first.step, last.step, last.width, last.encoded_image_string[:4]) == (4, 6, 16, b"GIF8")


@pytest.mark.slow
def test_several_ranks_write_the_same_videos(sampled: Run, corpus: Corpus, tmp_path: Path):
    job = {"recipe": recipe(samples=SAMPLES).to_dict(), "corpus": corpus.store.url, "out": str(tmp_path / "run")}
    assert run_ranks(2, tmp_path / "ranks", trainings, [job]) == [[""], [""]]
    assert names(tmp_path / "run") == names(sampled.folder)
    for name in names(tmp_path / "run"):
        ours, theirs = (frames(folder / "samples" / name).astype(int) for folder in (tmp_path / "run", sampled.folder))
        assert np.abs(ours - theirs).max() <= 8, name


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"samples": {"every_steps": 1, "tasks": ["rgb->flow"]}}, '"rgb->flow" is not among the tasks'),
        (
            {"samples": {"every_steps": 1, "prompts": ["a cube"]}, "tasks": {"estimate": 1.0}},
            "no task of this run makes video from a prompt",
        ),
    ],
)
def test_samples_that_cannot_be_made_are_refused_before_the_first_step(
    tables: dict[str, Any], message: str, corpus: Corpus, tmp_path: Path
):
    rows: list[Any] = []
    with pytest.raises(OpenUniError, match=message):
        train(recipe(**tables), corpus, tmp_path, progress=rows.append)
    assert rows == []
