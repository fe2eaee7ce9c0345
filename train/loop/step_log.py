"""Losses of a step, collected on the device, and the row of the log that is made of them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from openuni.training.data.batches import TrainingBatch
from openuni.training.objectives.losses import Losses
from openuni.training.tasks import Task

TOTAL, VIDEO, TEXT, HAS_TEXT = range(4)  # columns of `StepLosses.table`


class StepLosses:
    """Losses by slot. They stay on the device until the step is over: no micro-batch waits for it."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._slots: list[int] = []
        self._found: list[torch.Tensor] = []  # [samples, 4]

    def add(self, batch: TrainingBatch, losses: Losses) -> None:
        """Losses of a micro-batch; those of padding are left out."""
        if not batch.slots:
            return
        text = losses.total.new_zeros(len(batch.slots)) if losses.text is None else losses.text
        known = torch.full_like(losses.total, float(losses.text is not None))
        self._slots += batch.slots
        self._found.append(torch.stack([losses.total, losses.video, text, known], dim=1).detach())

    def fetch(self, norm: torch.Tensor) -> tuple[np.ndarray, float]:
        """Losses float64 [batch_size, 4], zeros for slots of other ranks, and the norm; waits for the device once."""
        values = torch.cat([*(found.flatten() for found in self._found), norm.detach().reshape(1)]).tolist()
        table = np.zeros((self.batch_size, 4))
        table[self._slots] = np.array(values[:-1]).reshape(-1, 4)
        return table, values[-1]


def loss_columns(table: np.ndarray, tasks: Sequence[Task], order: Sequence[int]) -> dict[str, Any]:
    """Columns `loss`, `task_loss`, and with a text stream `video_loss` and `text_loss`, of a row of the log.

    `table`: losses of the step by slot, as from `StepLosses.fetch`. `order`: of the slots in sums, so that the values
    do not depend on the number of ranks.
    """
    by_task: dict[str, list[float]] = defaultdict(list)
    apart: dict[str, list[float]] = defaultdict(list)
    for slot in order:
        task, losses = tasks[slot], table[slot].tolist()
        by_task[str(task)].append(losses[TOTAL])
        if losses[HAS_TEXT] and task.targets:
            apart["video"].append(losses[VIDEO])
        if losses[HAS_TEXT] and task.generates_text:
            apart["text"].append(losses[TEXT])
    seen = [loss for losses in by_task.values() for loss in losses]
    return {
        "loss": sum(seen) / len(seen),
        "task_loss": {task: sum(losses) / len(losses) for task, losses in sorted(by_task.items())},
        **{f"{name}_loss": sum(losses) / len(losses) for name, losses in sorted(apart.items())},
    }
