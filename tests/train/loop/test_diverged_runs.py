"""Runs whose loss, weights or validation become NaN or infinite: what is said, what is kept, how to go on."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.graceful_shutdown import Terminated
from openuni.training.loop.trainer import Trainer, train
from openuni.training.run import Run
from tests.command_line import cli
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop.test_trainer import MODEL, assert_same, recipe, state
from tests.train.small_runs import steps_saved, stop_at, write_recipe


def spoil(monkeypatch: pytest.MonkeyPatch, at_step: int, change: Callable[[Trainer], None]) -> None:
    """Let the update of the EMA of one step, the last thing that a step changes, spoil the trainer."""
    update = Trainer._update_ema

    def spoilt(self: Trainer) -> None:
        update(self)
        if self.step + 1 == at_step:
            with torch.no_grad():
                change(self)

    monkeypatch.setattr(Trainer, "_update_ema", spoilt)


def weights(trainer: Trainer) -> None:
    next(iter(trainer.model.parameters())).view(-1)[0] = torch.nan


def average(trainer: Trainer) -> None:
    next(iter(trainer.ema.average.values())).view(-1)[0] = torch.inf


def optimizer_state(trainer: Trainer) -> None:
    next(iter(trainer.optimizer.state.values()))["exp_avg_sq"].view(-1)[0] = torch.nan


@pytest.mark.parametrize("step", [1, 4, 6])
@pytest.mark.parametrize(
    ("change", "what"), [(weights, "weights"), (average, "EMA weights"), (optimizer_state, "optimizer state")]
)
def test_a_step_after_which_something_is_not_finite_is_named(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, change: Any, what: str, run: Run
) -> None:
    spoil(monkeypatch, step, change)
    kept = "There is no checkpoint" if step < 3 else "The checkpoint of step 3 is kept"
    with pytest.raises(
        OpenUniError, match=rf"^{what} not finite after step {step}, clips \w+, .* \(1 of .*learning_rate.*{kept}"
    ):
        train(recipe(), corpus, tmp_path)
    assert steps_saved(tmp_path) == ([] if step < 3 else [3])
    last = Run.open(tmp_path).log[-1]
    assert last["step"] == step - 1 and f"after step {step}" in last["error"]
    json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    monkeypatch.undo()
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))
    assert not any("error" in row for row in Run.open(tmp_path).log)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("step", [4, 6])
def test_a_gradient_that_is_not_finite_is_named_with_the_clips(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, value: float
) -> None:
    def spoil_gradients(trainer: Trainer) -> None:
        trainer.model.proj_out.weight.register_hook(lambda gradient: gradient + value)

    spoil(monkeypatch, step - 1, spoil_gradients)
    with pytest.raises(OpenUniError, match=rf"^gradient is not finite at step {step} \(clips \w+, .*step 3 is kept"):
        train(recipe(), corpus, tmp_path)
    assert steps_saved(tmp_path) == [3]


@pytest.mark.parametrize("step", [4, 6])
def test_a_loss_that_is_not_finite_is_named_with_the_clips(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    losses = Trainer._losses

    def spoilt(self: Trainer, *batch: Any) -> Any:
        found = losses(self, *batch)
        return found._replace(total=found.total + (torch.inf if self.step == step - 1 else 0))  # its gradient is finite

    monkeypatch.setattr(Trainer, "_losses", spoilt)
    with pytest.raises(OpenUniError, match=rf"^loss is not finite at step {step} \(clips \w+, .*step 3 is kept"):
        train(recipe(log_every_steps=4), corpus, tmp_path)
    last = Run.open(tmp_path).log[-1]
    assert last["step"] == step - 1 and "clips" in last["error"], "written also where no row is due"


def test_a_validation_after_the_last_step_names_its_clip_and_saves_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are finite, with which the held-out clips alone have no finite loss."""
    from openuni.training.loop import validation

    compute = validation.compute_losses
    calls: list[int] = []

    def infinite_at_the_end(*arguments: Any, **named: Any) -> Any:
        losses = compute(*arguments, **named)
        calls.append(1)
        return losses._replace(total=losses.total + torch.inf) if len(calls) == 5 else losses  # three tasks a time

    monkeypatch.setattr(validation, "compute_losses", infinite_at_the_end)
    with pytest.raises(
        OpenUniError, match=r'validation loss of task ".*" is not finite \(clip \w+\) at step 6.*step 3'
    ):
        train(recipe(), corpus, tmp_path)
    assert steps_saved(tmp_path) == [3]


@pytest.mark.parametrize("options", [{"offload_state": True}, {"kind": "adamw_8bit"}])
def test_the_state_of_other_optimizers_is_checked_too(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    from openuni.training.optimizers import low_memory_adamw

    step = low_memory_adamw.adamw

    def infinite(parameters: Any, gradients: Any, averages: Any, squares: Any, *rest: Any, **named: Any) -> None:
        step(parameters, gradients, averages, squares, *rest, **named)
        if named["weight_decay"] and int(rest[1][0]) == 4:
            squares[0].view(-1)[0] = torch.inf

    monkeypatch.setattr(low_memory_adamw, "adamw", infinite)
    with pytest.raises(OpenUniError, match=r"^optimizer state not finite after step 4, clips \w+, .*step 3 is kept"):
        train(recipe(optimizer=options), corpus, tmp_path)


@pytest.mark.parametrize("rate", [1e6, 1e20, 1e38])
@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("steps", [1, 6])
def test_a_learning_rate_that_is_too_large_never_ends_as_trained(
    corpus: Corpus, tmp_path: Path, rate: float, validated: bool, steps: int
) -> None:
    """Also if the weights of the last step are finite, but the outputs of the model are not."""
    optimizer = {"learning_rate": rate, "warmup_steps": 0, "steps": steps}
    path = write_recipe(tmp_path, MODEL, optimizer=optimizer, validation={"every_steps": 3 * validated})
    done = cli("train", path, "--corpus", corpus.store.local(""), "--out", tmp_path / "run")
    saved = steps_saved(tmp_path / "run")
    if done.returncode == 0:  # the outputs are finite, however poor
        assert rate == 1e6 and steps == 1
        made = Run.open(tmp_path / "run").generate("a cube", ["rgb", "depth"])
        assert all(np.isfinite(signal.array).all() for signal in made.values())
        return
    assert done.returncode == 2 and "trained" not in done.stdout + done.stderr.replace("trained with", "")
    assert "not finite" in done.stderr and f"step {1 if steps == 1 else ''}" in done.stderr
    assert ("There is no checkpoint to resume from" in done.stderr) == (not saved)
    assert ("is kept" in done.stderr) == bool(saved)
    assert "error" in Run.open(tmp_path / "run").log[-1]


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("held_out", [True, False])
def test_latents_that_are_not_finite_are_named_with_their_clip(tmp_path: Path, value: float, held_out: bool) -> None:
    clips = [clip | {"split": "validation" if number == 0 else "train"} for number, clip in enumerate(random_clips(4))]
    clips[0 if held_out else 2]["latents"]["depth"][0, 0, 0, 0] = value
    corpus = write_corpus(tmp_path / "corpus", clips)
    message = rf"training stopped after {3 if held_out else 0} steps: clip \w+: depth latents in .*safetensors have NaN"
    with pytest.raises(OpenUniError, match=message):
        train(recipe(), corpus, tmp_path / "run")
    assert steps_saved(tmp_path / "run") == ([3] if held_out else [])  # finished steps are sound


def test_a_validation_that_is_not_finite_is_named_and_its_checkpoint_is_not_used(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    from openuni.training.loop import validation

    compute = validation.compute_losses

    def nan(*arguments: Any, **named: Any) -> Any:
        losses = compute(*arguments, **named)
        return losses._replace(total=losses.total * torch.nan)

    monkeypatch.setattr(validation, "compute_losses", nan)
    with pytest.raises(OpenUniError, match=r'validation loss of task ".*" is not finite \(clip \w+\) at step 3'):
        train(recipe(), corpus, tmp_path)
    assert steps_saved(tmp_path) == []
    with pytest.raises(Terminated):  # saved before its validation, which is made up for
        train(recipe(), corpus, tmp_path, stop_at(3, signal.SIGTERM))
    assert steps_saved(tmp_path) == [3]
    with pytest.raises(OpenUniError, match="at step 3"):
        train(recipe(), corpus, tmp_path)
    assert steps_saved(tmp_path) == []
    monkeypatch.undo()
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))


def test_generating_from_a_run_that_diverged_says_which_checkpoint_is_used(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, 5, weights)
    with pytest.raises(OpenUniError, match="not finite after step 5"):
        train(recipe(), corpus, tmp_path)
    assert Run.open(tmp_path).model is not None
    said = [record.getMessage() for record in caplog.records]
    assert any(
        "the training stopped: weights not finite after step 5" in text and "step 3 is used" in text for text in said
    )
