"""What a row of the log says of losses and speed: by task, modality and noise level; tokens, MFU, ETA."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openuni.console.progress import Reporter, TrainingProgress
from openuni.manifests.corpus.corpus import Corpus
from openuni.training.estimate.dry_run import estimate
from openuni.training.estimate.throughput import peak_tflops
from openuni.training.loop.step_log import StepLosses, loss_columns
from openuni.training.loop.trainer import train
from openuni.training.objectives.losses import Losses
from openuni.training.run import Run
from openuni.training.tasks import Task
from tests.device_waits import Waits
from tests.train.loop.test_trainer import recipe

JOINT, ESTIMATE = Task((), ("rgb", "depth")), Task(("rgb",), ("depth",))
STREAMS = ("rgb", "depth")


class Batch:
    """What `StepLosses` reads of a batch."""

    def __init__(self, slots: tuple[int, ...], sigmas: dict[str, list[float]]) -> None:
        self.slots = slots
        self.sigmas = {name: torch.tensor(values) for name, values in sigmas.items()}


def micro_batches() -> list[tuple[Any, Losses]]:
    """Slot 0: rgb and depth at sigma 0.1 and 0.9; slot 1: depth from rgb at sigma 0.95."""
    two = torch.tensor([5.0]), {"rgb": torch.tensor([2.0]), "depth": torch.tensor([3.0])}
    one = torch.tensor([7.0]), {"rgb": torch.tensor([0.0]), "depth": torch.tensor([7.0])}
    batches = Batch((1,), {"rgb": [0.0], "depth": [0.95]}), Batch((0,), {"rgb": [0.1], "depth": [0.9]})
    return [
        (batch, Losses(total, total, None, None, by_stream))
        for batch, (total, by_stream) in zip(batches, (one, two), strict=True)
    ]


def test_losses_by_task_modality_and_noise_level_have_known_values():
    step = StepLosses(2, STREAMS)
    for batch, losses in micro_batches():
        step.add(batch, losses)
    table, norm = step.fetch(torch.tensor(1.5))
    assert norm == 1.5
    assert loss_columns(table, [JOINT, ESTIMATE], [0, 1], STREAMS) == {
        "loss": 6.0,
        "task_loss": {"rgb->depth": 7.0, "text->rgb+depth": 5.0},
        "stream_loss": {"depth": 5.0, "rgb": 2.0},  # that of a condition does not count
        "sigma_loss": {"0.00-0.25": 2.0, "0.75-1.00": 5.0},
    }


@pytest.mark.parametrize(("sigma", "name"), [(0.0, "0.00-0.25"), (0.25, "0.25-0.50"), (1.0, "0.75-1.00")])
def test_the_ends_of_noise_levels_belong_to_a_bin(sigma: float, name: str):
    table = np.array([[1.0, 1.0, 0.0, 0.0, 1.0, 1.0, sigma, sigma]])
    assert list(loss_columns(table, [JOINT], [0], STREAMS)["sigma_loss"]) == [name]


def test_a_row_has_tokens_and_mfu_as_the_dry_run_counts_them(corpus: Corpus, tmp_path: Path, run: Run):
    rows = [row for row in run.log if "loss" in row]
    assert all("mfu" not in row for row in rows), "the peak of a CPU is not known"
    assert {name for row in rows for name in row["stream_loss"]} == set(STREAMS)
    peak = 1e-3  # TFLOP/s
    settings = recipe(tasks={"joint": 1.0}, optimizer={"steps": 2}, peak_tflops=peak, data={"text_length": 32})
    found = estimate(settings, corpus, 1)
    for row in [row for row in train(settings, corpus, tmp_path).log if "loss" in row]:
        seconds = 4 / row["samples_per_s"]
        assert row["tokens_per_s"] * seconds == pytest.approx(found.tokens_per_step)
        assert row["mfu"] * seconds * peak * 1e12 == pytest.approx(found.flops_per_step)


def test_peaks_are_known_by_the_name_of_the_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names.pop(0))
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA A100-SXM4-80GB", "Tesla T4"]
    cuda = torch.device("cuda", 0)
    assert [peak_tflops(cuda, 0.0) for _ in range(5)] == [989.0, 756.0, 989.0, 312.0, 0.0]
    assert peak_tflops(cuda, 5.0) == 5.0 and peak_tflops(torch.device("cpu"), 0.0) == 0.0


def test_micro_batches_do_not_wait_for_the_device():
    step, found = StepLosses(2, STREAMS), micro_batches()
    with Waits() as waits:
        for batch, losses in found:
            step.add(batch, losses)
    assert waits.total == 0, waits.counts


def test_the_progress_line_tells_speed_and_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = TrainingProgress(Reporter(), 100)
    row = {"loss": 1.0, "samples_per_s": 2.0, "tokens_per_s": 1234.5, "data_wait_share": 0.25, "mfu": 0.31}
    for step in (1, 21):
        progress(json.loads(json.dumps(row | {"step": step})))
        now += 40.0
    (line,) = capsys.readouterr().err.split("train: ")[1:]
    text = " ".join(line.split())
    assert text == "step 21/100, loss 1.0000, 2.0 samples/s, 1,234 tokens/s, 25% data wait, MFU 31%, ETA 3 min", text
