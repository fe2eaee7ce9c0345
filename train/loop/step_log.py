"""Losses of a step, collected on the device, and the row of the log that is made of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from openuni.training.data.batches import TrainingBatch
from openuni.training.objectives.losses import Losses
from openuni.training.tasks import Task

TOTAL, VIDEO, TEXT, HAS_TEXT = range(4)  # columns of a table; then the loss of each stream, then the sigma of each
FIRST_STREAM = 4
SIGMA_BINS = 4  # of equal width


class StepLosses:
    """Losses by slot. They stay on the device until the step is over: no micro-batch waits for it."""

    def __init__(self, batch_size: int, streams: Sequence[str]) -> None:
        self.batch_size, self.streams = batch_size, streams
        self._slots: list[int] = []
        self._found: list[torch.Tensor] = []  # [samples, 4 + streams], on the device
        self._sigmas: list[torch.Tensor] = []  # [samples, streams], on the CPU

    def add(self, batch: TrainingBatch, losses: Losses) -> None:
        """Losses of a micro-batch, which is on the CPU; those of padding are left out."""
        if not batch.slots:
            return
        nothing = losses.total.new_zeros(len(batch.slots))
        text = nothing if losses.text is None else losses.text
        known = torch.full_like(losses.total, float(losses.text is not None))
        by_stream = [losses.by_stream.get(name, nothing) for name in self.streams]
        self._slots += batch.slots
        self._found.append(torch.stack([losses.total, losses.video, text, known, *by_stream], dim=1).detach())
        absent = torch.zeros(len(batch.slots))
        self._sigmas.append(torch.stack([batch.sigmas.get(name, absent) for name in self.streams], dim=1))

    def fetch(self, norm: torch.Tensor) -> tuple[np.ndarray, float]:
        """Table float64 [batch_size, 4 + 2 streams] and the norm; waits for the device once.

        Zeros for the slots of other ranks.
        """
        values = torch.cat([*(found.flatten() for found in self._found), norm.detach().reshape(1)]).tolist()
        own = FIRST_STREAM + len(self.streams)
        table = np.zeros((self.batch_size, own + len(self.streams)))
        table[self._slots, :own] = np.array(values[:-1]).reshape(-1, own)
        if self._sigmas:
            table[self._slots, own:] = torch.cat(self._sigmas).numpy()
        return table, values[-1]


def loss_columns(
    table: np.ndarray, tasks: Sequence[Task], order: Sequence[int], streams: Sequence[str]
) -> dict[str, Any]:
    """Columns `loss`, `task_loss`, `stream_loss`, `sigma_loss`, and with text `video_loss` and `text_loss`, of a row.

    `table`: losses of the step by slot, as from `StepLosses.fetch`. `order`: of the slots in sums, so that the values
    do not depend on the number of ranks. `sigma_loss`: of target streams, by noise level: `{"0.25-0.50": 0.4, ...}`.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for slot in order:
        task, losses = tasks[slot], table[slot].tolist()
        found["task_loss"][str(task)].append(losses[TOTAL])
        if losses[HAS_TEXT] and task.targets:
            found["video_loss"][""].append(losses[VIDEO])
        if losses[HAS_TEXT] and task.generates_text:
            found["text_loss"][""].append(losses[TEXT])
        for number, stream in enumerate(streams, start=FIRST_STREAM):
            if stream in task.targets:
                found["stream_loss"][stream].append(losses[number])
                found["sigma_loss"][_sigma_bin(losses[number + len(streams)])].append(losses[number])
    seen = [loss for losses in found["task_loss"].values() for loss in losses]
    parts = {name: found[name][""] for name in ("video_loss", "text_loss") if name in found}
    return {
        "loss": sum(seen) / len(seen),
        "task_loss": _means(found["task_loss"]),
        **{name: sum(losses) / len(losses) for name, losses in sorted(parts.items())},
        **{name: _means(found[name]) for name in ("stream_loss", "sigma_loss") if name in found},
    }


def _means(groups: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: sum(losses) / len(losses) for name, losses in sorted(groups.items())}


def _sigma_bin(sigma: float) -> str:
    number = min(int(sigma * SIGMA_BINS), SIGMA_BINS - 1)
    return f"{number / SIGMA_BINS:.2f}-{(number + 1) / SIGMA_BINS:.2f}"
