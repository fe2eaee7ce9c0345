"""What a run reports: one JSON line per step, and TensorBoard beside it."""

import json
from pathlib import Path
from typing import Any


class RunLog:
    """Writes `log.jsonl` (each line flushed) and `tensorboard/`. Lines after `step` go: they come again."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        kept = [row for row in read_log(folder) if row["step"] <= step]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
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
    """All rows of a run's log, in order; a line cut short by a crash ends it."""
    path = folder / "log.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
