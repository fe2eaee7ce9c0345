"""Log of a training run: one JSON line per step, and TensorBoard files."""

import io
import json
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import xxhash

from openuni.manifests.storage.store import Store
from openuni.training.run_files import LOG_FILE
from openuni.training.tracker import Tracking

FRAME_MS = 100  # of animated GIFs

logger = logging.getLogger(__name__)


class RunLog:
    """Writes `log.jsonl` (each line flushed) and `tensorboard/`. Rows after `step` are removed, as they are recomputed.

    `kept`: the remaining rows. `written`: what `mark` gave at that step; a log that differs from it is reported.
    """

    def __init__(
        self, folder: Path, step: int, written: dict[str, Any] | None = None, tracking: Tracking | None = None
    ) -> None:
        # TensorBoard imports any tensorflow on the path, even a user's tensorflow.py; this module disables that
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from torch.utils.tensorboard import SummaryWriter

        path = folder / LOG_FILE
        _check(path, written)
        self.kept = [row for row in read_log(folder) if row["step"] <= step and "error" not in row] if step else []
        data = "".join(json.dumps(row) + "\n" for row in self.kept).encode()
        self._digest, self._nbytes = xxhash.xxh3_64(data), len(data)
        Store(str(folder)).put(path.name, data)
        self._tracking = tracking
        self._file = path.open("a")
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_thread_error
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any]) -> None:
        """Write one row. It must have `step`; numbers and dicts of numbers become TensorBoard scalars."""
        line = json.dumps(row) + "\n"
        self._file.write(line)
        self._file.flush()
        self._digest.update(line.encode())
        self._nbytes += len(line.encode())
        found = scalars(row)
        for name, value in found.items():
            self._board.add_scalar(name, value, row["step"])
        if self._tracking is not None:
            self._tracking.log(row["step"], found)

    def video(self, name: str, frames: np.ndarray, step: int) -> None:
        """Show a video in TensorBoard, as an animated GIF. `frames`: uint8 [T, H, W, 3]."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        first, *rest = [Image.fromarray(frame) for frame in frames]
        data = io.BytesIO()
        first.save(data, "GIF", save_all=True, append_images=rest, loop=0, duration=FRAME_MS)
        image = Summary.Image(
            height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=data.getvalue()
        )
        self._board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        if self._tracking is not None:
            self._tracking.video(step, name, frames)

    def mark(self) -> dict[str, Any]:
        """Size in bytes and xxh3-64 of the log so far, for the checkpoint of the step."""
        return {"nbytes": self._nbytes, "xxh3": self._digest.hexdigest()}

    def close(self) -> None:
        """Flush and close all."""
        if self._tracking is not None:
            self._tracking.close()
        try:
            self._file.close()
        finally:
            try:
                self._board.close()
            finally:
                threading.excepthook = self._excepthook

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Print no traceback for TensorBoard's thread: what it fails with, such as a full disk, `write` raises too."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._excepthook(args)


class NoLog:
    """The log of ranks other than the first: nothing is written."""

    kept: Sequence[dict[str, Any]] = ()

    def write(self, row: dict[str, Any]) -> None:
        """See `RunLog.write`."""

    def video(self, name: str, frames: np.ndarray, step: int) -> None:
        """See `RunLog.video`."""

    def mark(self) -> dict[str, Any]:
        """See `RunLog.mark`."""
        return {}

    def close(self) -> None:
        """See `RunLog.close`."""


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """Numbers of a row by name, without the step; those of a dict as `NAME/KEY`."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= {f"{name}/{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in found.items() if name != "step" and isinstance(value, int | float)}


def _check(path: Path, written: dict[str, Any] | None) -> None:
    """Warn if the log does not begin with what was written up to the checkpoint."""
    if not isinstance(written, dict) or not isinstance(written.get("nbytes"), int):
        return
    start = path.read_bytes()[: written["nbytes"]] if path.is_file() else b""
    if xxhash.xxh3_64_hexdigest(start) != written.get("xxh3"):
        logger.warning(
            "%s is damaged: it changed after it was written. Its rows may be wrong, and those after the first "
            "unreadable one are dropped. The weights are not affected.",
            path,
        )


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run's log, in order, up to the first damaged line (such as one truncated by a crash)."""
    path = folder / LOG_FILE
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
