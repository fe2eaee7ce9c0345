"""One model trained by several processes: as by one, stopped and resumed with any number of them, and what goes wrong.

One launch of processes does the work of several tests.
"""

import dataclasses
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
from safetensors.torch import save_file

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.storage.checksums import file_checksum
from openuni.training.loop.guards import run_lock
from openuni.training.loop.log import read_log
from openuni.training.loop.tensor_files import write_tensors
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from tests.killed import KILLED
from tests.train.backbone.tiny_wan import tiny_base
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop import rank_jobs
from tests.train.loop.rank_processes import launch, run_ranks
from tests.train.loop.test_trainer import MODEL, assert_same, recipe, state
from tests.train.small_runs import small_recipe, steps_saved, write_recipe

ROOT = Path(__file__).parents[3]
SIZE: dict[str, Any] = {"num_layers": 2, "heads": 2, "head_dim": 12, "ffn_dim": 48, "freq_dim": 16}
# all that several ranks could get wrong at once: micro-batches, clipping, EMA, recomputed blocks
HARD: dict[str, Any] = {
    "optimizer": {"steps": 4, "batch_size": 6, "accumulate": 3, "clip_norm": 0.5},
    "validation": {"every_steps": 4, "clips": 3},
    "checkpoints": {"every_steps": 4},
}
LOSS_RTOL, WEIGHT_ATOL = 1e-5, 2e-5  # one rank against several: sums in another order, enlarged by AdamW


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    clips = random_clips(9, ("rgb", "albedo", "normal"))
    for number, clip in enumerate(clips):
        clip["caption"] = f"{number} cubes"
        clip["latents"]["depth"] = clip["latents"]["albedo"]
    write_corpus(folder / "corpus", clips)
    tiny_base().save_pretrained(folder / "wan" / "transformer")
    return folder


def models(place: Path) -> dict[str, TrainingRecipe]:
    """Recipes of every model: all weights, and LoRAs on a frozen base."""

    def made(model: dict[str, Any], **changes: Any) -> TrainingRecipe:
        return small_recipe({"model": SIZE | {"gradient_checkpointing": True} | model}, HARD, changes)

    unividx = {"name": "unividx", "modalities": ["rgb", "albedo", "normal"], "rank": 4}
    text = {"tasks": {"t2v": 1.0, "v2t": 1.0, "t2vt": 1.0}, "text": {"length": 16}}
    partitions = {"tasks": {"partitions": 1.0}}
    return {
        "unityvideo": made({"name": "unityvideo", "modalities": ["rgb", "depth", "normal"], "switcher_dim": 8}),
        "unityvideo_uneven": made(
            {"name": "unityvideo", "modalities": ["rgb", "depth"], "switcher_dim": 8},
            optimizer={"batch_size": 5, "accumulate": 1},
        ),
        "unividx": made(unividx | {"train_base": True}, **partitions),
        "unividx_lora": made(unividx | {"pretrained": str(place / "wan")}, **partitions),
        "unividx_bfloat16": made(
            unividx | {"pretrained": str(place / "wan"), "frozen_dtype": "bfloat16"},
            **partitions,
            optimizer={"reduce_every_micro_batch": True},
        ),
        "univigu": made({"name": "univigu"}, **text),
        "univigu_embeddings": made({"name": "univigu", "text_flow": "embeddings"}, **text),
    }


def job(place: Path, settings: TrainingRecipe, out: str, **more: Any) -> dict[str, Any]:
    return {"recipe": settings.to_dict(), "corpus": str(place / "corpus"), "out": str(place / out)} | more


def losses(folder: Path) -> list[dict[str, Any]]:
    names = ("step", "loss", "task_loss", "video_loss", "text_loss", "validation_loss", "clips_by_task")
    return [{name: row[name] for name in names if name in row} for row in Run.open(folder).log]


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for entry in value.values() for number in numbers(entry)]
    return [float(value)]


def assert_close(ours: Path, theirs: Path, weight_atol: float = WEIGHT_ATOL, loss_rtol: float = LOSS_RTOL) -> None:
    """Equal rows and weights within the tolerance, and the same tasks and moments."""
    left, right = losses(ours), losses(theirs)
    assert [[*row] for row in left] == [[*row] for row in right]
    np.testing.assert_allclose(numbers(dict(enumerate(left))), numbers(dict(enumerate(right))), rtol=loss_rtol)
    ours_state, theirs_state = state(ours), state(theirs)
    assert ours_state.keys() == theirs_state.keys()
    for name, tensor in ours_state.items():
        if "/step/" in name:
            assert torch.equal(tensor, theirs_state[name]), name
        elif "optimizer/" not in name:
            torch.testing.assert_close(tensor, theirs_state[name], atol=weight_atol, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_two_ranks_train_every_model_as_one_does(place: Path) -> None:
    wanted = models(place)
    jobs = [job(place, settings, f"two-{name}") for name, settings in wanted.items()]
    assert run_ranks(2, place / "w2", rank_jobs.trainings, jobs) == [[""] * len(jobs)] * 2
    for name, settings in wanted.items():
        train(settings, str(place / "corpus"), place / f"one-{name}", device="cpu")
        low = "bfloat16" in name
        assert_close(place / f"two-{name}", place / f"one-{name}", *((2e-3, 2e-2) if low else ()))


@pytest.mark.slow
def test_stopped_and_resumed_with_any_number_of_ranks(place: Path) -> None:
    """Bit for bit with the same number; with another, as close as one rank is to two."""
    whole = small_recipe({"model": MODEL}, {"optimizer": {"batch_size": 6, "accumulate": 2}})
    half = dataclasses.replace(whole, optimizer=dataclasses.replace(whole.optimizer, steps=3))
    train(whole, str(place / "corpus"), place / "one")
    train(half, str(place / "corpus"), place / "one-two")
    term = int(signal.SIGTERM)
    jobs = [
        job(place, whole, "two"),
        *(job(place, settings, "two-two") for settings in (half, whole)),
        *(
            job(place, whole, "stopped", stop=[rank, 1, number])
            for rank, number in ((1, term), (0, int(signal.SIGINT)))
        ),
        job(place, whole, "stopped"),
        job(place, whole, "one-two"),
        job(place, half, "two-one"),
        job(place, dataclasses.replace(half, log_every_steps=2), "two-three"),
    ]
    ended = run_ranks(2, place / "resumed", rank_jobs.trainings, jobs)
    assert ended == [["", "", "", f"Terminated: {term}", "KeyboardInterrupt: 2", "", "", "", ""]] * 2
    for out in ("two-two", "stopped"):
        assert losses(place / out) == [row for row in losses(place / "two") if row in losses(place / out)]
        assert [row["loss"] for row in losses(place / out) if "loss" in row] == [
            row["loss"] for row in losses(place / "two") if "loss" in row
        ]
        assert_same(state(place / out), state(place / "two"))
    assert [row["step"] for row in losses(place / "two-three") if "loss" in row] == [2, 3]
    train(whole, str(place / "corpus"), place / "two-one")
    for out in ("two", "one-two", "two-one"):
        assert_close(place / out, place / "one")
    run_ranks(3, place / "w3", rank_jobs.trainings, [job(place, whole, "two-three")])
    ours = {row["step"]: row["loss"] for row in losses(place / "two-three") if "loss" in row}
    theirs = {row["step"]: row["loss"] for row in losses(place / "one") if "loss" in row}
    assert [*ours] == [2, 3, 4, 5, 6]
    np.testing.assert_allclose([*ours.values()], [theirs[step] for step in ours], rtol=LOSS_RTOL)


@pytest.mark.slow
def test_what_goes_wrong_on_one_rank_ends_all_with_one_message(place: Path, tmp_path: Path) -> None:
    clips = random_clips(4)
    clips[2]["latents"]["depth"][0, 0, 0, 0] = np.nan
    write_corpus(tmp_path / "bad", clips)
    settings = recipe()
    jobs = [
        job(place, settings, "nan", spoil=[1, 2]),
        job(place, settings, "mean", divide=True),
        job(place, settings, "bad") | {"corpus": str(tmp_path / "bad")},
        job(place, recipe(optimizer={"batch_size": 1}), "small"),
    ]
    ended = run_ranks(2, tmp_path / "w", rank_jobs.trainings, jobs)
    spoilt, mean, latents, small = ended[0]
    assert spoilt.startswith("OpenUniError: rank 1: EMA weights not finite after step 2")
    assert Run.open(place / "nan").log[-1]["step"] == 1 and "rank 1" in Run.open(place / "nan").log[-1]["error"]
    assert "gradients are not synchronized between ranks" in mean and not steps_saved(place / "mean")
    assert "training stopped after" in latents and "NaN or infinite" in latents
    assert "batch_size = 1 cannot be divided among 2 processes" in small and not (place / "small").exists()
    assert all(entry.startswith("QuietError: ") for entry in ended[1]), ended[1]


@pytest.mark.slow
def test_of_ranks_that_hold_the_same_rows_one_writes_them(tmp_path: Path) -> None:
    """As with data or context parallelism beside the division of the weights."""
    two = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert (
        run_ranks(4, tmp_path / "w", rank_jobs.save_replicas, str(tmp_path)) == [[two, ["model.safetensors"], two]] * 4
    )
    for name in ("both", "whole", "one"):
        (checkpoint,) = list_checkpoints(tmp_path / name)
        checkpoint.verify()
        tensors = checkpoint.tensors("model")
        assert torch.equal(tensors["rows"], torch.arange(15.0).reshape(5, 3)) and tensors["step"] == 7
        assert torch.equal(tensors["state"], torch.arange(15.0).reshape(5, 3)[:, :1].bfloat16())


@pytest.mark.slow
def test_a_full_disk_of_one_rank_ends_all_and_keeps_the_last_checkpoint(place: Path, tmp_path: Path) -> None:
    """One message, on rank 0, of an error that ends the command with 2; and a second training in the folder."""
    settings = recipe()
    half = recipe(optimizer={"steps": 3})
    jobs = [
        job(place, half, "full"),
        *(job(place, settings, "full", full=[rank, limit]) for rank, limit in ((1, 3000), (0, 5000))),
        job(place, settings, "full"),
        job(place, settings, "whole"),
    ]
    first, second = run_ranks(2, tmp_path / "w", rank_jobs.trainings, jobs)
    assert [entry != "" for entry in first] == [False, True, True, False, False]
    for message in first[1:3]:
        assert message.startswith("StorageFull: ") and "no space left while writing to" in message, message
        assert "The checkpoint of step 3 is kept" in message
    assert all(entry.startswith("QuietError: ") for entry in second[1:3]), second
    assert_same(state(place / "full"), state(place / "whole"))
    assert not list((place / "full").glob(".step-*"))
    files = {path.name for path in (place / "full" / "step-000006").iterdir()}
    parts = {f"{name}-0000{rank}-of-00002.safetensors" for name in ("model", "ema", "optimizer") for rank in (1, 2)}
    assert files == parts | {"state.json", "checksums.json"}
    with run_lock(place / "full"):
        first, second = run_ranks(2, tmp_path / "w2", rank_jobs.trainings, [job(place, settings, "full")])
    assert "is locked by another training" in first[0] and second[0].startswith("QuietError: ")
    Run.open(place / "full").checkpoint.verify()


@pytest.mark.slow
def test_rank_0_killed_while_it_saves_loses_nothing(place: Path, tmp_path: Path) -> None:
    settings = recipe(optimizer={"steps": 2}, checkpoints={"every_steps": 1}, validation={"every_steps": 0})
    train(settings, str(place / "corpus"), place / "unkilled")
    for number in (1, 3, 6, 7):
        out = f"killed-{number}"
        (code, _, _), (other, _, told) = launch(2, tmp_path / out, rank_jobs.killed, number, job(place, settings, out))
        assert code == KILLED and steps_saved(place / out) == [1], number
        assert other == 0, told  # the other rank ends by itself, with an error
    run_ranks(2, tmp_path / "again", rank_jobs.trainings, [job(place, settings, f"killed-{n}") for n in (1, 3, 6, 7)])
    for number in (1, 3, 6, 7):
        assert_close(place / f"killed-{number}", place / "unkilled")
        assert not list((place / f"killed-{number}").glob(".step-*"))


@pytest.mark.slow
def test_only_rank_0_prints(place: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, MODEL)
    line = ["train", str(path), "--corpus", str(place / "corpus"), "--out"]
    lines = [[*line, str(tmp_path / "run")], [*line[:1], "unityvideo_debgu", *line[2:], str(tmp_path / "other")]]
    first, second = run_ranks(2, tmp_path / "w", rank_jobs.commands, lines)
    assert [code for code, _, _ in first] == [code for code, _, _ in second] == [0, 2]
    assert "trained 6 steps" in first[0][1] and 'Did you mean "unityvideo_debug"' in first[1][2]
    assert [out + err for _, out, err in second] == ["", ""]


@pytest.mark.slow
def test_torchrun_starts_a_training_and_passes_signals_on(place: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun: both ranks save the step."""
    path = write_recipe(tmp_path, MODEL, optimizer={"steps": 100_000}, checkpoints={"every_steps": 100_000})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*launcher, "openuni", "train", path, "--corpus", place / "corpus", "--out", tmp_path / "run"]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "out").open("w") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, env=environment)
        deadline = time.monotonic() + 200
        while not any(row["step"] >= 3 for row in read_log(tmp_path / "run")):
            assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "out").read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) != 0
    printed = (tmp_path / "out").read_text()
    (step,) = steps_saved(tmp_path / "run")
    assert Run.open(tmp_path / "run").log[-1]["step"] == step, printed
    assert printed.count("openuni: stopped. Finished steps are kept") == 1, printed


# ---------------------------------------------------------------- files


def test_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 2),
        "ä/a": torch.tensor(2.0),
        "c": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0, 4),
        "number": torch.arange(3),
        "turned": torch.randn(4, 3).T,
        "mask": torch.tensor([True, False]),
    }
    for metadata in (None, {"format": "pt"}):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", metadata)
        digest = write_tensors(tmp_path / "ours", tensors, metadata=metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert digest == file_checksum(tmp_path / "ours")


def test_checkpoints_at_multiples_stay(place: Path, tmp_path: Path) -> None:
    settings = recipe(
        optimizer={"steps": 7},
        checkpoints={"every_steps": 1, "keep": 2, "keep_every_steps": 3},
        validation={"every_steps": 0},
    )
    train(settings, Corpus.open(str(place / "corpus")), tmp_path)
    assert steps_saved(tmp_path) == [3, 6, 7]
