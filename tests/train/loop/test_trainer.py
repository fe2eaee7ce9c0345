"""Training for real on a tiny corpus: it learns, resumes bit for bit, saves on Ctrl-C, refuses what does not fit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openuni.cli.models import _generate_command
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.loop.guards import watchdog
from openuni.training.loop.trainer import lr_factor, train
from openuni.training.loop.training_checkpoint import list_checkpoints, save
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from tests.train.corpora import random_clips, write_corpus
from tests.train.small_runs import small_recipe

ROOT = Path(__file__).parents[3]
MODEL: dict[str, Any] = {
    "name": "unityvideo",
    "num_layers": 1,
    "heads": 2,
    "head_dim": 12,
    "ffn_dim": 48,
    "freq_dim": 16,
    "switcher_dim": 8,
}


def recipe(**changes: Any) -> TrainingRecipe:
    """A small one with tables merged: recipe(optimizer={"steps": 3})."""
    return small_recipe({"model": MODEL}, changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    clips = random_clips(12)
    del clips[3]["latents"]["depth"]
    clips[5]["caption"] = None
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips)


def state(run: Path) -> dict[str, torch.Tensor]:
    latest = list_checkpoints(run)[-1]
    parts = {name: latest.tensors(name) for name in ("model", "ema", "optimizer")}
    return {f"{name}/{key}": tensor for name, part in parts.items() for key, tensor in part.items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


# ---------------------------------------------------------------- the loop


def test_a_run_is_logged_and_saved(run: Run) -> None:
    assert [checkpoint.step for checkpoint in list_checkpoints(run.folder)] == [3, 6]
    steps = [row for row in run.log if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert {"task_loss", "grad_norm", "learning_rate", "samples_per_s", "data_wait_share"} <= set(steps[0])
    assert steps[0]["learning_rate"] == pytest.approx(1.5e-3) and steps[1]["learning_rate"] == pytest.approx(3e-3)
    usable = {"text->rgb+depth": 9, "rgb->depth": 9, "depth->rgb": 9}  # of 12: one lacks depth, two are held out
    assert run.log[0] == {"step": 0, "clips_by_task": usable}
    validated = [row for row in run.log if "validation_loss" in row]
    assert [row["step"] for row in validated] == [3, 6]
    assert {"text->rgb+depth", "rgb->depth", "depth->rgb"} <= set(validated[0]["validation_loss"])
    assert list((run.folder / "tensorboard").iterdir())
    assert not list(run.folder.glob(".step-*"))


def test_it_learns_a_linear_map(corpus: Corpus, tmp_path: Path) -> None:
    settings = recipe(
        tasks={"estimate": 1.0},
        model={"heads": 4, "rope": "per_segment"},
        optimizer={"steps": 120, "batch_size": 8, "learning_rate": 5e-3},
        validation={"every_steps": 0},
        checkpoints={"every_steps": 120},
    )
    losses = [row["loss"] for row in train(settings, corpus, tmp_path).log if "loss" in row]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])


def test_resuming_is_bitwise_the_same(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    train(recipe(optimizer={"steps": 3}), corpus, tmp_path)
    assert list_checkpoints(tmp_path)[-1].step == 3
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))
    values = [{k: v for k, v in row.items() if k in ("step", "loss", "grad_norm")} for row in Run.open(tmp_path).log]
    assert values == [{k: v for k, v in row.items() if k in ("step", "loss", "grad_norm")} for row in run.log]


def test_accumulation_gives_the_same_gradients(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    train(recipe(optimizer={"accumulate": 2}), corpus, tmp_path)
    ours, theirs = state(tmp_path), state(run.folder)
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=2e-4, rtol=1e-2)


def test_a_finished_run_does_nothing_more(corpus: Corpus, run: Run) -> None:
    before = state(run.folder)
    train(recipe(), corpus, run.folder)
    assert_same(state(run.folder), before)


def test_another_seed_is_another_run(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    train(recipe(seed=1), corpus, tmp_path)
    assert any(not torch.equal(value, state(run.folder)[key]) for key, value in state(tmp_path).items())


def test_ctrl_c_saves_and_the_run_goes_on(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), corpus, tmp_path, interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert list_checkpoints(tmp_path)[-1].step == 2
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))


def test_validation_that_ctrl_c_came_before_is_made_up_for(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(recipe(), corpus, tmp_path, interrupt)
    finally:
        signal.signal(signal.SIGINT, before)

    def validated(of: Run) -> list[dict[str, Any]]:
        return [row for row in of.log if "validation_loss" in row]

    assert not validated(Run.open(tmp_path))
    assert validated(train(recipe(), corpus, tmp_path)) == validated(run) and len(validated(run)) == 2


def test_a_crashed_run_goes_on_from_its_last_checkpoint(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    def crash(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(recipe(), corpus, tmp_path, crash)
    assert list_checkpoints(tmp_path)[-1].step == 3
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))
    assert [row["step"] for row in Run.open(tmp_path).log if "loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(recipe().to_dict()))
    code = (
        "import json, os, sys\n"
        "from openuni.training.recipe import TrainingRecipe; from openuni.training.loop.trainer import train\n"
        "def kill(row):\n    if row['step'] == 5: os.kill(os.getpid(), 9)\n"
        "train(TrainingRecipe.from_dict(json.load(open(sys.argv[1]))), sys.argv[2], sys.argv[3], kill)\n"
    )
    arguments = [str(tmp_path / "recipe.json"), str(corpus.store.local("")), str(tmp_path / "run")]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, timeout=280)
    assert killed.returncode == -9, killed.stderr.decode()
    assert list_checkpoints(tmp_path / "run")[-1].step == 3
    train(recipe(), corpus, tmp_path / "run")
    assert_same(state(tmp_path / "run"), state(run.folder))
    assert [row["step"] for row in Run.open(tmp_path / "run").log if "loss" in row] == [1, 2, 3, 4, 5, 6]


def test_validation_does_not_touch_training(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    train(recipe(validation={"every_steps": 0}), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))


def test_start_from_takes_the_averaged_weights(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    settings = recipe(start_from=str(run.folder), optimizer={"steps": 1, "learning_rate": 0.0, "weight_decay": 0.0})
    train(settings, corpus, tmp_path)
    ours, theirs = list_checkpoints(tmp_path)[-1].tensors("model"), list_checkpoints(run.folder)[-1].tensors("ema")
    assert_same(ours, theirs)
    with pytest.raises(OpenUniError, match="of a different model"):
        train(recipe(start_from=str(run.folder), model={"num_layers": 2}), corpus, tmp_path / "other")


def test_rate() -> None:
    options = dataclasses.replace(recipe().optimizer, steps=10, warmup_steps=4, decay_steps=2)
    assert [lr_factor(options, step) for step in (0, 3, 7, 8, 9)] == [0.25, 1.0, 1.0, 1.0, 0.5]


def test_cosine_decay_ends_at_its_final_rate() -> None:
    options = dataclasses.replace(recipe().optimizer, steps=8, warmup_steps=0, decay_steps=4, decay="cosine")
    assert [lr_factor(options, step) for step in (0, 4)] == [1.0, 1.0]
    assert lr_factor(options, 6) == pytest.approx(0.5) and lr_factor(options, 7) < 0.25  # linear: 0.25
    kept = dataclasses.replace(options, final_lr_scale=0.1)
    assert lr_factor(kept, 6) == pytest.approx(0.55) and lr_factor(kept, 8) == pytest.approx(0.1)


def test_every_nth_step_is_logged_and_the_last(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    logged = [row["step"] for row in train(recipe(log_every_steps=4), corpus, tmp_path).log if "loss" in row]
    assert logged == [4, 6]
    assert_same(state(tmp_path), state(run.folder))


def test_the_stacks_of_a_step_that_hangs_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with watchdog(30.0):
        pass
    with watchdog(0.2):
        time.sleep(0.5)
    printed = capfd.readouterr().err
    assert "Timeout (0:00:00.2" in printed and "test_the_stacks_of_a_step_that_hangs_are_printed" in printed


# ---------------------------------------------------------------- refusals


def test_changed_settings_are_shown_and_refused(corpus: Corpus, run: Run) -> None:
    with pytest.raises(OpenUniError, match=r"learning_rate: 0\.003 -> 0\.1\n.*another --out") as error:
        train(recipe(optimizer={"learning_rate": 0.1}), corpus, run.folder)
    assert "steps" not in str(error.value)


def test_changed_data_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(OpenUniError, match=r"data\.digest"):
        train(recipe(), write_corpus(tmp_path / "corpus", random_clips(8)), run.folder)


def test_text_is_refused_for_models_that_make_none(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        OpenUniError, match=r"tasks ->rgb\+text, rgb->text generate text, which unityvideo does not support"
    ):
        train(recipe(tasks={"v2t": 1.0, "t2vt": 1.0, "rgb->depth": 1.0}), corpus, tmp_path)
    with pytest.raises(OpenUniError, match=r"a \[text\] section, but unityvideo does not generate text"):
        train(recipe(text={"length": 64}), corpus, tmp_path)


def test_model_that_does_not_fit_the_latents_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match=r"channels = 16, but the corpus's latents have 4"):
        train(recipe(model={"channels": 16}), corpus, tmp_path)
    with pytest.raises(OpenUniError, match=r"must be multiples of the model's patch \[1, 3, 2\]"):
        train(recipe(model={"patch": [1, 3, 2]}), corpus, tmp_path)
    with pytest.raises(OpenUniError, match=r"text_length is 4, but the longest text has"):
        train(recipe(data={"text_length": 4}), corpus, tmp_path)
    for given, message in {
        "rgb": r"must be a list of names such as \[\"rgb\", \"depth\"\], got 'rgb'",
        "dpeth": 'modality "dpeth" is not known. Did you mean "depth"',
    }.items():
        with pytest.raises(OpenUniError, match=message):
            train(recipe(model={"modalities": [given] if given == "dpeth" else given}), corpus, tmp_path)
    for option, value, allowed in (
        ("heads", 0, "at least 1"),
        ("head_dim", 13, "at least 6, multiples of 2"),
        ("patch", [0, 2, 2], "at least 1"),
        ("freq_dim", 0, "at least 2, multiples of 2"),
    ):
        with pytest.raises(OpenUniError, match=rf"unityvideo: {option} = .*\. Allowed: {allowed}"):
            train(recipe(model={option: value}), corpus, tmp_path)
    with pytest.raises(
        OpenUniError,
        match=r"patch = \[2, 2\]\. Allowed: 3 integers, at least 1 \(patch size per token: latent frames",
    ):
        train(recipe(model={"patch": [2, 2]}), corpus, tmp_path)
    with pytest.raises(OpenUniError, match="needs flow; the model has rgb, depth"):
        train(recipe(tasks={"rgb->flow": 1.0}), corpus, tmp_path)
    assert not list(tmp_path.glob("run.json"))


def test_checkpoints_are_whole_or_absent(tmp_path: Path) -> None:
    save(tmp_path, 1, {"model": {"a": torch.ones(2)}}, {}, keep=1)
    (tmp_path / "step-000002").mkdir()  # no state.json: not a checkpoint
    (tmp_path / ".step-000003.tmp").mkdir()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1]
    save(tmp_path, 4, {"model": {"a": torch.zeros(2)}}, {}, keep=1)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [4]
    assert not list(tmp_path.glob(".step-*"))


# ---------------------------------------------------------------- what one does with a run


def test_sample_shapes_seeds_and_given_streams(run: Run) -> None:
    given = {"rgb": torch.randn(2, 4, 2, 2, 2)}
    quick = SamplingOptions(steps=2, shift=1.0)
    made = run.sample("rgb->depth", given, ["a cube", "a ball"], sampling=quick)
    assert set(made) == {"depth"} and made["depth"].shape == (2, 4, 2, 2, 2)
    again = run.sample("rgb->depth", given, ["a cube", "a ball"], sampling=quick)
    assert torch.equal(made["depth"], again["depth"])
    other = run.sample("rgb->depth", given, ["a cube", "a ball"], sampling=dataclasses.replace(quick, seed=1))
    assert not torch.equal(made["depth"], other["depth"])
    alone = run.sample("rgb->depth", {"rgb": given["rgb"][:1]}, ["a cube"], sampling=quick)
    torch.testing.assert_close(alone["depth"], made["depth"][:1], atol=1e-5, rtol=1e-4)


def test_guidance_of_one_and_more(run: Run) -> None:
    def made(scale: float, caption: str = "a cube") -> torch.Tensor:
        return run.sample(
            "->rgb+depth", {}, [caption], sampling=SamplingOptions(steps=2, shift=1.0, guidance_scale=scale)
        )["rgb"]

    assert not torch.equal(made(1.0), made(4.0))
    torch.testing.assert_close(made(4.0, ""), made(1.0, ""))  # nothing to guide towards


def test_generate_gives_modalities(run: Run) -> None:
    video = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    quick = SamplingOptions(steps=2, shift=1.0)
    made = run.generate("a cube", ["depth"], {"rgb": video}, sampling=quick)
    assert made["depth"].name == "depth" and made["depth"].array.shape == (5, 16, 16, 1)
    both = run.generate("a cube", ["rgb", "depth"], size=(9, 32, 16), sampling=quick)
    assert both["rgb"].array.shape == (9, 32, 16, 3) and both["rgb"].array.dtype == np.uint8
    with pytest.raises(OpenUniError, match=r"not trained for \"depth->flow\"; it was trained for: text->rgb\+depth"):
        run.generate("a cube", ["flow"], {"depth": both["depth"]})
    long = "a cube that is as long as can"  # longer than any caption of the training: it is told whole
    one, other = (run.generate(text, ["depth"], {"rgb": video}, sampling=quick) for text in (long, f"{long} be"))
    assert not np.array_equal(one["depth"].array, other["depth"].array)
    with pytest.raises(OpenUniError, match="4k"):
        run.generate("a cube", ["rgb", "depth"], size=(8, 16, 16))
    with pytest.raises(OpenUniError, match="has 3 frames; at least 5 are required"):
        run.generate("a cube", ["depth"], {"rgb": video[:3]})


def test_training_ends_with_a_command_that_works(run: Run) -> None:
    assert (
        _generate_command(run) == f"openuni generate {run.folder} --make rgb --make depth --prompt '...' --out FOLDER"
    )


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match="no run at"):
        Run.open(tmp_path)


def test_a_tensorflow_of_the_users_own_is_not_imported(tmp_path: Path) -> None:
    """TensorBoard would; where the file lies first on the path, as beside a script."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit(9)")
    code = "import sys; from pathlib import Path; from openuni.training.loop.log import RunLog; "
    code += "log = RunLog(Path(sys.argv[1]), 0); log.write({'step': 1, 'loss': 0.5}); log.close()"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tensorboard").iterdir())
