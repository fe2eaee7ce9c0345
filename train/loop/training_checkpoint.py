"""Training checkpoints: folders `step-000100/` of safetensors and JSON, written under a temporary name and renamed."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.checksums import file_checksum
from openuni.training.finite import non_finite
from openuni.training.loop.tensor_files import Share, read_tensors, write_tensors
from openuni.training.run_files import (
    CHECKSUMS_FILE,
    STATE_FILE,
    UNFINISHED_CHECKPOINTS,
    checkpoint_folders,
    checkpoint_name,
    is_written,
    part_name,
    tensor_files,
)


class DamagedCheckpoint(OpenUniError):
    """A file of a training checkpoint changed after it was written, or its tensors cannot be used."""


class TrainingCheckpoint(NamedTuple):
    """A saved state of a training run."""

    step: int  # number of finished optimizer steps
    path: Path

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of "model", "ema" or "optimizer", on the CPU.

        Raises `DamagedCheckpoint` if a file changed after it was written, or has NaN or infinite values.
        """
        tensors = {key: tensor for key, _, tensor in self._read(name)}
        if odd := non_finite(tensors):
            raise self._not_finite(name, f"{len(odd)} of {len(tensors)} tensors, first {odd[0]}")
        return tensors

    def shares(self, name: str, share: Share) -> Iterator[tuple[str, torch.Size, torch.Tensor]]:
        """As `tensors`, one by one, each the part that `share` selects by name and size, with its whole size.

        Only that part is read; a tensor for which `share` is None is read as a whole.
        """
        for key, size, tensor in self._read(name, share):
            if odd := non_finite({key: tensor}):
                raise self._not_finite(name, f"first {odd[0]}")
            yield key, size, tensor

    def _read(self, name: str, share: Share | None = None) -> Iterator[tuple[str, torch.Size, torch.Tensor]]:
        files = tensor_files(self.path, name)
        self.verify(*(file.name for file in files))
        try:
            yield from read_tensors(files, share)
        except (OSError, SafetensorError) as error:
            raise self._damaged(files[0].name, str(error)) from error

    def _not_finite(self, name: str, which: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"{tensor_files(self.path, name)[0]} has NaN or infinite values ({which}): the training diverged. "
            f"{self._remedy()}"
        )

    def state(self) -> dict[str, Any]:
        """The contents of state.json. Raises `DamagedCheckpoint`."""
        self.verify(STATE_FILE)
        try:
            state = json.loads((self.path / STATE_FILE).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(STATE_FILE, str(error)) from error
        if not isinstance(state, dict):
            raise self._damaged(STATE_FILE, "it must be a table")
        return state

    def verify(self, *names: str) -> None:
        """Compare these files, by default all, with checksums.json. Checkpoints of earlier versions have none.

        Raises `DamagedCheckpoint` that names the file.
        """
        listed = self._checksums()
        if listed is None:
            return
        for name in names or listed:
            if name not in listed:
                raise self._damaged(CHECKSUMS_FILE, f"it does not list {name}")
            try:
                found = file_checksum(self.path / name)
            except FileNotFoundError as error:
                raise self._damaged(name, "not found") from error
            except OSError as error:
                raise self._damaged(name, str(error)) from error
            if found != listed[name]:
                raise self._damaged(name, "checksum mismatch: it changed after it was written")

    def _checksums(self) -> dict[str, str] | None:
        """Checksums by file name, as written; None without checksums.json."""
        path = self.path / CHECKSUMS_FILE
        if not path.is_file():
            return None
        try:
            listed = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(CHECKSUMS_FILE, str(error)) from error
        if not isinstance(listed, dict) or STATE_FILE not in listed or any("/" in name for name in listed):
            raise self._damaged(CHECKSUMS_FILE, f"it must list the files of the checkpoint, also {STATE_FILE}")
        return listed

    def _damaged(self, name: str, reason: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"{self.path / name} is damaged ({reason}). {self._remedy()}")

    def _remedy(self) -> str:
        earlier = [other.step for other in list_checkpoints(self.path.parent) if other.step < self.step]
        if earlier:
            return f"Restore it, or remove {self.path} to use the checkpoint of step {earlier[-1]}."
        return f"No earlier checkpoint exists: restore it, or remove {self.path} and train again."


def list_checkpoints(run: Path) -> list[TrainingCheckpoint]:
    """All checkpoints of a run, oldest first, damaged ones included."""
    return [TrainingCheckpoint(step, path) for step, path in checkpoint_folders(run) if is_written(path)]


def set_aside(checkpoint: TrainingCheckpoint) -> Path:
    """Rename a checkpoint that cannot be used, so that it is not listed any more; return the new path."""
    target = checkpoint.path.with_name(f"{checkpoint.path.name}.damaged")
    if target.exists():
        shutil.rmtree(target)
    return checkpoint.path.rename(target)


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: dict[str, Any],
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write one checkpoint of one rank, remove earlier ones, return its path. `CheckpointSaver` does it in a thread.

    `tensors`: by "model", "ema" and "optimizer". See `commit` for the rest. Raises `OSError` if the disk is full;
    nothing of the new checkpoint is left then.
    """
    temporary = begin(run, step)
    try:
        checksums = {
            part_name(name, 0, 1): write_tensors(temporary / part_name(name, 0, 1), group)
            for name, group in tensors.items()
        }
        return commit(run, step, state, checksums, keep, keep_every)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # gives the space back
        raise


def begin(run: Path, step: int) -> Path:
    """The temporary folder of a new checkpoint. Removes what killed trainings left unfinished."""
    for leftover in run.glob(UNFINISHED_CHECKPOINTS):
        shutil.rmtree(leftover)
    temporary = temporary_folder(run, step)
    temporary.mkdir(parents=True)
    return temporary


def temporary_folder(run: Path, step: int) -> Path:
    """Where the files of a checkpoint are written until it is complete."""
    return run / f".{checkpoint_name(step)}.tmp"


def commit(
    run: Path, step: int, state: dict[str, Any], checksums: Mapping[str, str], keep: int, keep_every: int = 0
) -> Path:
    """Make a checkpoint visible once all its files of tensors are written; remove earlier ones, return its path.

    `state`: JSON-able, written as state.json with the step. `checksums`: of all files of tensors, by name; those of all
    files are written last. `keep`: number of latest checkpoints that stay; with `keep_every` those at multiples of it
    stay, too. Visible checkpoints are complete even after a kill.
    """
    final, temporary = run / checkpoint_name(step), temporary_folder(run, step)
    _write_text(temporary / STATE_FILE, json.dumps({"step": step} | state, indent=2))
    listed = dict(checksums) | {STATE_FILE: file_checksum(temporary / STATE_FILE)}
    _write_text(temporary / CHECKSUMS_FILE, json.dumps(dict(sorted(listed.items())), indent=2))
    _sync(temporary)
    if final.exists():
        _remove(final)
    temporary.rename(final)
    _sync(run)
    for old in list_checkpoints(run)[:-keep]:
        if not keep_every or old.step % keep_every:
            _remove(old.path)
    return final


def _remove(folder: Path) -> None:
    """Delete a checkpoint. It gets the name of an unfinished one first: a kill never leaves a part of it."""
    removed = folder.with_name(f".{folder.name}.removed.tmp")
    if removed.exists():
        shutil.rmtree(removed)
    shutil.rmtree(folder.rename(removed))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Optimizer state by parameter name, such as `exp_avg/blocks.0...`."""
    return {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    where: Path,
) -> None:
    """The inverse of `optimizer_tensors`; moments are moved to their parameter's device.

    `where`: the checkpoint, for errors. Raises `DamagedCheckpoint` if tensors are missing.
    """
    kinds = {kind for kind in (key.partition("/")[0] for key in tensors) if not kind.endswith("_scale")}
    names = {key.partition("/")[2] for key in tensors}
    needed = {f"{kind}/{name}" for kind in kinds for name in names}
    # moments in 8 bits have scales
    needed |= {key.replace("/", "_scale/", 1) for key, value in tensors.items() if value.dtype == torch.uint8}
    if lacking := sorted(needed - set(tensors)):
        raise DamagedCheckpoint(f"{where}: the optimizer state lacks {', '.join(lacking[:3])}: it is damaged.")
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise OpenUniError(f'{where}: the optimizer state has "{name}", which the model lacks')
        parameter = parameters[name]
        on_host = optimizer.defaults.get("offload") if kind != "step" else not optimizer.defaults.get("fused")
        optimizer.state[parameter][kind] = value if on_host else value.to(parameter.device)


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights saved in a checkpoint: all except `VideoModel.unsaved`."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in unsaved(model)}


def unsaved(model: Any) -> frozenset[str]:
    """See `openuni.training.model.VideoModel`."""
    names: frozenset[str] = model.unsaved
    return names


def check_sizes(model: nn.Module, tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Raise `OpenUniError` if weights with the same name have a different size in the model."""
    _check_sizes(model.state_dict(), {name: tensor.shape for name, tensor in tensors.items()}, where)


def _check_sizes(own: Mapping[str, torch.Tensor], sizes: Mapping[str, torch.Size], where: Path) -> None:
    odd = [name for name, size in sizes.items() if name in own and own[name].shape != size]
    if odd:
        found, wanted = list(sizes[odd[0]]), list(own[odd[0]].shape)
        raise OpenUniError(
            f"{where} is a checkpoint of another size: {odd[0]} is {found}, expected {wanted} ({len(odd)} differ)"
        )


def check_matches(model: nn.Module, sizes: Mapping[str, torch.Size], where: Path) -> None:
    """Raise `OpenUniError` unless these are the names and sizes of all saved weights of the model."""
    own = model.state_dict()
    _check_sizes(own, sizes, where)
    missing = sorted((set(own) - set(sizes)) ^ unsaved(model))
    unexpected = [name for name in sizes if name not in own]
    if missing or unexpected:
        odd = ", ".join([*missing, *unexpected][:6])
        raise OpenUniError(f"{where} does not match the model; differing keys: {odd}")


def load_model(model: nn.Module, tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Load all weights of a checkpoint strictly. Raises `OpenUniError` if names or sizes differ."""
    check_matches(model, {name: tensor.shape for name, tensor in tensors.items()}, where)
    model.load_state_dict(tensors, strict=False)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
