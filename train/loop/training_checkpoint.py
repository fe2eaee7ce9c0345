"""Training checkpoints: folders `step-000100/` of safetensors and JSON, written under a temporary name and renamed."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.checksums import file_checksum
from openuni.training.finite import non_finite
from openuni.training.run_files import (
    CHECKSUMS_FILE,
    STATE_FILE,
    UNFINISHED_CHECKPOINTS,
    checkpoint_folders,
    checkpoint_name,
    is_written,
)

OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how the safetensors library reports errors of the operating system


class DamagedCheckpoint(OpenUniError):
    """A file of a training checkpoint changed after it was written, or its tensors cannot be used."""


class TrainingCheckpoint(NamedTuple):
    """A saved state of a training run."""

    step: int  # number of finished optimizer steps
    path: Path

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `NAME.safetensors` ("model", "ema" or "optimizer"), on the CPU.

        Raises `DamagedCheckpoint` if the file changed after it was written, or has NaN or infinite values.
        """
        self.verify(f"{name}.safetensors")
        file = self.path / f"{name}.safetensors"
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise self._damaged(file.name, str(error)) from error
        if odd := non_finite(tensors):
            raise DamagedCheckpoint(
                f"{file} has NaN or infinite values ({len(odd)} of {len(tensors)} tensors, first {odd[0]}): the "
                f"training diverged. {self._remedy()}"
            )
        return tensors

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


def save(run: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any], keep: int) -> Path:
    """Write one checkpoint and remove all but the last `keep`. Visible checkpoints are complete even after a kill.

    `tensors`: by file name; `state`: JSON-able, written as state.json with the step. Raises `OSError` if the disk is
    full; nothing of the new checkpoint is left then.
    """
    final = run / checkpoint_name(step)
    temporary = run / f".{final.name}.tmp"
    for leftover in run.glob(UNFINISHED_CHECKPOINTS):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        _write_files(temporary, tensors, {"step": step} | state)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # gives the space back
        raise
    _sync(run)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old.path)
    return final


def _write_files(folder: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
    """Write the files of a checkpoint, checksums.json last."""
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        try:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, path)
        except SafetensorError as error:
            number = OS_ERROR.search(str(error))
            code = int(number.group(1)) if number else errno.EIO
            raise OSError(code, os.strerror(code) if number else str(error), str(path)) from error
        _sync(path)
    _write_text(folder / STATE_FILE, json.dumps(state, indent=2))
    checksums = {path.name: file_checksum(path) for path in sorted(folder.iterdir())}
    _write_text(folder / CHECKSUMS_FILE, json.dumps(checksums, indent=2))


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Optimizer state by parameter name, such as `exp_avg/blocks.0...`."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor], where: Path
) -> None:
    """The inverse of `optimizer_tensors`; moments are moved to their parameter's device.

    `where`: the checkpoint, for errors. Raises `DamagedCheckpoint` if tensors are missing.
    """
    parameters = dict(model.named_parameters())
    kinds = {key.partition("/")[0] for key in tensors}
    names = {key.partition("/")[2] for key in tensors}
    if lacking := sorted({f"{kind}/{name}" for kind in kinds for name in names} - set(tensors)):
        raise DamagedCheckpoint(f"{where}: the optimizer state lacks {', '.join(lacking[:3])}: it is damaged.")
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise OpenUniError(f'{where}: the optimizer state has "{name}", which the model lacks')
        parameter = parameters[name]
        optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights saved in a checkpoint: all except `VideoModel.unsaved`."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in unsaved(model)}


def unsaved(model: Any) -> frozenset[str]:
    """See `openuni.training.model.VideoModel`."""
    names: frozenset[str] = model.unsaved
    return names


def check_sizes(model: nn.Module, tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Raise `OpenUniError` if weights with the same name have a different size in the model."""
    own = model.state_dict()
    odd = [name for name, tensor in tensors.items() if name in own and own[name].shape != tensor.shape]
    if odd:
        found, wanted = list(tensors[odd[0]].shape), list(own[odd[0]].shape)
        raise OpenUniError(
            f"{where} is a checkpoint of another size: {odd[0]} is {found}, expected {wanted} ({len(odd)} differ)"
        )


def load_model(model: nn.Module, tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Load all weights of a checkpoint strictly. Raises `OpenUniError` if names or sizes differ."""
    check_sizes(model, tensors, where)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = sorted(set(missing) ^ unsaved(model))
    if missing or unexpected:
        odd = ", ".join([*missing, *unexpected][:6])
        raise OpenUniError(f"{where} does not match the model; differing keys: {odd}")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
