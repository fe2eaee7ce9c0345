"""Saving of training checkpoints: every rank writes the rows it holds, in a thread while training goes on."""

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor

from openuni.manifests.errors import OpenUniError
from openuni.training.loop.guards import kept_text, storage_errors
from openuni.training.loop.ranks import Ranks
from openuni.training.loop.tensor_files import write_tensors
from openuni.training.loop.training_checkpoint import begin, commit, temporary_folder
from openuni.training.loop.weights import Rows
from openuni.training.recipe import CheckpointOptions
from openuni.training.run_files import part_name

# by "model", "ema", "optimizer", and by name
Tensors = Mapping[str, Mapping[str, torch.Tensor]]
Divided = Mapping[str, Mapping[str, torch.Tensor | Rows]]  # over ranks: DTensors and `Rows`


class CheckpointSaver:
    """Writes checkpoints of a run, at most one at a time. All ranks call the same methods in the same order.

    `save` copies the rows of this rank and starts a thread that writes them. `poll`, after every step, makes the
    checkpoint visible once the threads of all ranks are done. As a context: at its end the checkpoint that is being
    written is finished; or given up, if an error that the other ranks do not know of, or a second Ctrl-C, ends it.
    """

    def __init__(self, ranks: Ranks, run: Path, options: CheckpointOptions) -> None:
        self.ranks, self.run, self.options = ranks, run, options
        self._writing: _Writing | None = None

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        alone = self.ranks.world == 1 and not isinstance(error, KeyboardInterrupt)
        if error is None or alone or self.ranks.has_agreed_end:
            self.finish()
        elif self._writing is not None:
            self._writing.give_up()

    def save(self, step: int, tensors: Divided, state: dict[str, Any]) -> None:
        """Begin to save, after the checkpoint before is finished. `state`: see `commit`. Raises as `poll` does."""
        self.finish()
        self.ranks.first(lambda: self._checked(lambda: begin(self.run, step)))
        part = self._part(tensors)
        own = {name: _own(group, part) for name, group in tensors.items()} if part.is_writer else {}
        if self.options.asynchronous:
            own = _copies(own)
        files = {part_name(name, part.number, part.parts): group for name, group in own.items()}
        self._writing = _Writing(temporary_folder(self.run, step), step, state, files)
        if not self.options.asynchronous:
            self.finish()

    def poll(self) -> None:
        """Make the checkpoint visible if all ranks have written their part.

        Raises `StorageFull` if the disk is full, on any rank, and `OpenUniError` if it cannot be written for another
        reason; nothing of the checkpoint is left then.
        """
        if self._writing is not None and not self.ranks.highest(int(not self._writing.is_done))[0]:
            self._commit()

    def finish(self) -> None:
        """As `poll`, but wait until the checkpoint is written."""
        if self._writing is not None:
            self._writing.wait()
            self._commit()

    def _commit(self) -> None:
        writing, self._writing = self._writing, None
        assert writing is not None
        try:
            self.ranks.together(lambda: self._checked(writing.result))
            checksums = [part for parts in self.ranks.gathered(writing.checksums) for part in parts.items()]
            keep, every = self.options.keep, self.options.keep_every_steps
            self.ranks.first(
                lambda: self._checked(
                    lambda: commit(self.run, writing.step, writing.state, dict(checksums), keep, every)
                )
            )
        except BaseException:
            if self.ranks.is_first:
                shutil.rmtree(writing.folder, ignore_errors=True)  # gives the space back
            raise

    def _checked(self, call: Any) -> None:
        """Call, with errors of the disk as `OpenUniError`, which all ranks know."""
        try:
            with storage_errors(self.run):
                call()
        except OSError as error:
            raise OpenUniError(
                f"no training checkpoint can be written to {self.run} ({error}). {kept_text(self.run)} Check disk and "
                "permissions, then rerun the same command to resume."
            ) from error

    def _part(self, tensors: Divided) -> "_Part":
        """The part of this rank. Of ranks that hold the same rows, the first writes them."""
        likes = (
            tensor.like if isinstance(tensor, Rows) else tensor
            for group in tensors.values()
            for tensor in group.values()
        )
        divided = next((tensor for tensor in likes if isinstance(tensor, DTensor)), None)
        number, count = (0, 1) if divided is None else _rows_held(divided)
        return _Part(number, count, self.ranks.gathered(number).index(number) == self.ranks.rank)


class _Part(NamedTuple):
    """The rows of a rank: part `number` of `parts`, and whether this rank writes them."""

    number: int
    parts: int
    is_writer: bool


def _rows_held(tensor: DTensor) -> tuple[int, int]:
    """Number of the part of the rows that this rank holds, and the number of parts."""
    coordinate, dims = tensor.device_mesh.get_coordinate(), tensor.placements
    divided = [dim for dim, placement in enumerate(dims) if placement.is_shard(0)]
    if coordinate is None or len(divided) != 1:
        raise RuntimeError(f"rows of {list(dims)} on {tensor.device_mesh} cannot be saved")
    return coordinate[divided[0]], tensor.device_mesh.size(divided[0])


def _own(group: Mapping[str, torch.Tensor | Rows], part: _Part) -> dict[str, torch.Tensor]:
    """The rows of a part; the first one also has what is not divided."""
    own = {}
    for name, tensor in group.items():
        if isinstance(tensor, Rows | DTensor):
            local = tensor.local if isinstance(tensor, Rows) else tensor.to_local()
            if local.numel():
                own[name] = local.detach()
        elif part.number == 0:
            own[name] = tensor.detach()
    return own


class _Writing:
    """The files of one rank, written by a thread."""

    def __init__(self, folder: Path, step: int, state: dict[str, Any], files: Tensors) -> None:
        self.folder, self.step, self.state = folder, step, state
        self.checksums: dict[str, str] = {}
        self._error: Exception | None = None
        self._given_up = threading.Event()
        self._done = threading.Event()  # `Thread.join` that Ctrl-C interrupts takes the thread for ended
        # a daemon: after a second Ctrl-C the process does not wait for it
        self._thread = threading.Thread(target=self._write, args=(files,), name="openuni-checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> None:
        self._done.wait()

    def give_up(self) -> None:
        """Stop after the current tensor. What is written stays until the next checkpoint is begun."""
        self._given_up.set()
        self._done.wait()

    def result(self) -> None:
        """Raise what the thread failed with."""
        if self._error is not None:
            raise self._error

    def _write(self, files: Tensors) -> None:
        try:
            for name, tensors in files.items():
                self.checksums[name] = write_tensors(self.folder / name, tensors, self._check)
        except Exception as error:  # noqa: BLE001  # raised by `result`, on the thread of the training
            self._error = error
        finally:
            self._done.set()

    def _check(self) -> None:
        if self._given_up.is_set():
            raise InterruptedError("given up")


@torch.no_grad()
def _copies(groups: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """Copies in the memory of the host. Tensors that are in several groups, as frozen weights, are copied once."""
    copied: dict[Any, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if place not in copied:
            copied[place] = tensor.to("cpu", copy=True)
        return copied[place]

    return {name: {key: copy(tensor) for key, tensor in group.items()} for name, group in groups.items()}
