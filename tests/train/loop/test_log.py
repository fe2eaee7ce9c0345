"""The log of a training run on a disk that fails."""

import threading
from pathlib import Path
from typing import Any

import pytest

from openuni.training.loop.log import RunLog


def test_a_full_disk_is_raised_and_prints_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard writes in a thread, whose errors the interpreter would print."""
    printed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    log = RunLog(tmp_path, 0)
    (events,) = (tmp_path / "tensorboard").iterdir()
    events.unlink()
    events.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        for step in range(1, 1000):
            log.write({"step": step, "loss": 1.0})
    own = threading.Thread(target=int, args=("not a number",))
    own.start()
    own.join()
    assert [hook.exc_type for hook in printed] == [ValueError]  # threads of others are told as before
    with pytest.raises(OSError, match="No space left"):
        log.close()
    assert threading.excepthook == printed.append
