"""What a run reports: one JSON line per step, and TensorBoard beside it."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from openuni.manifests.corpus.store import Store


class RunLog:
    """Writes `log.jsonl` (each line flushed) and `tensorboard/`. Lines after `step` go: they come again.

    `kept`: the rows that stayed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # TensorBoard imports any tensorflow it finds, also a user's tensorflow.py; this module is its switch not to
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        self.kept = [row for row in read_log(folder) if row["step"] <= step] if step else []
        Store(str(folder)).put(path.name, "".join(json.dumps(row) + "\n" for row in self.kept).encode())
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any]) -> None:
        """A row has `step`; numbers, and dicts of numbers, become TensorBoard curves."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            values = (
                {f"{name}/{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
            )
            for key, entry in values.items():
                if name != "step" and isinstance(entry, int | float):
                    self._board.add_scalar(key, entry, row["step"])

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's log, in order; a line that a crash cut short or spoilt ends it."""
    path = folder / "log.jsonl"
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:  # no JSON, or no UTF-8
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows
