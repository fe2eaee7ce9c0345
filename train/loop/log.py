"""Log of a training run: one JSON line per step, and TensorBoard files."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from openuni.manifests.corpus.store import Store


class RunLog:
    """Writes `log.jsonl` (each line flushed) and `tensorboard/`. Rows after `step` are removed, as they are recomputed.

    `kept`: the remaining rows.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # TensorBoard imports any tensorflow on the path, even a user's tensorflow.py; this module disables that
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        self.kept = [row for row in read_log(folder) if row["step"] <= step] if step else []
        Store(str(folder)).put(path.name, "".join(json.dumps(row) + "\n" for row in self.kept).encode())
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any]) -> None:
        """Write one row. It must have `step`; numbers and dicts of numbers become TensorBoard scalars."""
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
    """All rows of a run's log, in order, up to the first damaged line (such as one truncated by a crash)."""
    path = folder / "log.jsonl"
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:  # invalid JSON or UTF-8
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows
