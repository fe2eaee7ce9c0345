"""Moments in 8 bits and on the host: what they cost, how exact they are, and that they resume."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.estimate.dry_run import estimate
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import DamagedCheckpoint, list_checkpoints, load_optimizer
from openuni.training.optimizers.low_memory_adamw import LowMemoryAdamW, dequantized, quantized
from openuni.training.run import Run
from tests.train.loop.rank_jobs import trainings
from tests.train.loop.rank_processes import run_ranks
from tests.train.loop.test_trainer import assert_same, recipe, state

LOW = {"kind": "adamw_8bit"}
HOST = {"offload_state": True}


@pytest.fixture(scope="module")
def low_run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe(optimizer=LOW), corpus, tmp_path_factory.mktemp("low"))


@pytest.mark.parametrize("shape", [(3, 700), (4, 256), (5, 2, 3, 4), (1, 1), (0, 300)])
@pytest.mark.parametrize("signed", [True, False])
def test_codes_keep_size_zeros_and_maxima_and_are_near(shape: tuple[int, ...], signed: bool):
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32)) ** 3
    values = values if signed else values.abs()
    if len(values):
        values.view(len(values), -1)[:, 1:2] = 0.0
    codes, scales = quantized(values, signed=signed)
    found = dequantized(codes, scales, signed=signed)
    row = math.prod(shape[1:])
    assert codes.dtype == torch.uint8 and codes.shape == values.shape
    assert scales.shape == (len(values), -(-row // min(256, row)))
    assert (found[values == 0] == 0).all()
    again = quantized(found, signed=signed)
    assert torch.equal(again[0], codes) and torch.equal(again[1], scales)
    if len(values):
        assert found.abs().max() == values.abs().max()
        assert (found - values).abs().max() <= (0.03 if signed else 0.015) * scales.max()


def test_a_negative_maximum_is_exact():
    codes, scales = quantized(torch.tensor([[-2.0, 0.5, 0.0]]), signed=True)
    assert scales.tolist() == [[2.0]]
    assert dequantized(codes, scales, signed=True)[0, 0] == -2.0


def test_state_on_the_host_gives_the_same_run_and_may_change_on_resume(run: Run, corpus: Corpus, tmp_path: Path):
    train(recipe(optimizer=HOST | {"steps": 3}), corpus, tmp_path)
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))


def test_a_run_in_8_bits_resumes_bit_for_bit(low_run: Run, corpus: Corpus, tmp_path: Path):
    train(recipe(optimizer=LOW | HOST | {"steps": 3}), corpus, tmp_path)
    train(recipe(optimizer=LOW), corpus, tmp_path)
    assert_same(state(tmp_path), state(low_run.folder))
    with pytest.raises(OpenUniError, match=r"optimizer.kind: 'adamw_8bit' -> default"):
        train(recipe(optimizer={"steps": 9}), corpus, tmp_path)


def test_it_takes_a_quarter_of_the_memory_and_learns(low_run: Run, run: Run):
    def moments(one: Run) -> int:
        tensors = list_checkpoints(one.folder)[-1].tensors("optimizer")
        return sum(tensor.nbytes for tensor in tensors.values())

    assert moments(low_run) < 0.4 * moments(run)  # the rows of this model are short, and vectors stay in float32
    losses = [[row["loss"] for row in one.log if "loss" in row] for one in (low_run, run)]
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_it_reaches_the_loss_of_adamw(corpus: Corpus, tmp_path: Path):
    """On a task that can be learnt, as `test_it_learns_a_linear_map`."""
    learnt = {}
    for kind in ("adamw", "adamw_8bit"):
        settings = recipe(
            tasks={"estimate": 1.0},
            model={"heads": 4, "rope": "per_segment"},
            optimizer={"steps": 80, "batch_size": 8, "learning_rate": 5e-3, "kind": kind},
            validation={"every_steps": 0},
            checkpoints={"every_steps": 80},
        )
        rows = [row["loss"] for row in train(settings, corpus, tmp_path / kind).log if "loss" in row]
        learnt[kind] = np.mean(rows[-15:]) / np.mean(rows[:15])
    assert learnt["adamw"] < 0.75
    assert learnt["adamw_8bit"] == pytest.approx(learnt["adamw"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [LOW | HOST, HOST], ids=["8 bits on the host", "on the host"])
def test_several_ranks_train_and_resume_alike(options: dict[str, Any], corpus: Corpus, tmp_path: Path):
    def job(steps: int, out: str) -> dict[str, Any]:
        table = recipe(optimizer=options | {"steps": steps}).to_dict()
        return {"recipe": table, "corpus": corpus.store.url, "out": str(tmp_path / out)}

    jobs = [job(6, "whole"), job(3, "parts"), job(6, "parts"), job(3, "two-one")]
    assert run_ranks(2, tmp_path / "ranks", trainings, jobs) == [[""] * 4] * 2
    assert_same(state(tmp_path / "parts"), state(tmp_path / "whole"))
    train(recipe(optimizer=options), corpus, tmp_path / "one")
    train(recipe(optimizer=options), corpus, tmp_path / "two-one")
    one, two, both = (state(tmp_path / name) for name in ("one", "whole", "two-one"))
    assert one.keys() == two.keys()
    for key in one:
        if key.startswith("model/"):
            # a code next to another, where sums are rounded in another order
            torch.testing.assert_close(one[key], two[key], atol=2e-3, rtol=0.02)
            torch.testing.assert_close(both[key], two[key], atol=2e-3, rtol=0.02)


def test_the_dry_run_counts_it(corpus: Corpus):
    plain = estimate(recipe(), corpus, 2)
    found = {
        name: plain._replace(recipe=recipe(optimizer=options)).memory().optimizer
        for name, options in {"adamw": {}, "low": LOW, "host": HOST, "both": LOW | HOST}.items()
    }
    assert found["host"] == found["both"] == 0.0
    assert found["low"] / found["adamw"] == pytest.approx(0.254, abs=0.001)


def test_a_state_that_is_not_finite_ends_the_step():
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    groups = [{"params": [parameter], "is_matrix": True, "weight_decay": 0.0}]
    optimizer = LowMemoryAdamW(groups, lr=0.1, quantize=True, offload=True)
    parameter.grad = torch.full((2, 3), 1e30)  # its square is infinite
    optimizer.step()
    assert not optimizer.sums[parameter].isfinite().all()


def test_codes_without_scales_are_damaged(low_run: Run, tmp_path: Path):
    (file,) = list_checkpoints(low_run.folder)[-1].path.glob("optimizer*.safetensors")
    tensors = load_file(file)
    name = next(key for key, value in tensors.items() if value.dtype == torch.uint8)
    kind, _, parameter = name.partition("/")
    del tensors[f"{kind}_scale/{parameter}"]
    optimizer: Any = LowMemoryAdamW([torch.nn.Parameter(torch.ones(1))], quantize=True, offload=False)
    with pytest.raises(DamagedCheckpoint, match=f"lacks {kind}_scale/{parameter}"):
        load_optimizer(optimizer, {}, tensors, tmp_path)
