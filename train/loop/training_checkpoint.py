"""Training checkpoints: folders `step-000100/` of safetensors and JSON, written under a temporary name and renamed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.checksums import file_checksum
from openuni.training.finite import non_finite
from openuni.training.loop.tensor_files import whole_tensors, write_tensors
from openuni.training.run_files import (
    CHECKSUMS_FILE,
    STATE_FILE,
    UNFINISHED_CHECKPOINTS,
    checkpoint_folders,
    checkpoint_name,
    is_written,
)


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

    def shares(
        self, name: str, share: Callable[[str, torch.Size], tuple[slice, ...] | None]
    ) -> Iterator[tuple[str, torch.Size, torch.Tensor]]:
        """As `tensors`, one by one, each the part that `share` selects by name and size, with its whole size.

        Only that part is read; a tensor for which `share` is None is read as a whole.
        """
        self.verify(f"{name}.safetensors")
        file = self.path / f"{name}.safetensors"
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  # not a dict
                    stored = opened.get_slice(key)
                    size = torch.Size(stored.get_shape())
                    wanted = share(key, size)
                    tensor = opened.get_tensor(key) if wanted is None else stored[wanted]
                    if odd := non_finite({key: tensor}):
                        raise DamagedCheckpoint(
                            f"{file} has NaN or infinite values (first {odd[0]}): the training diverged. "
                            f"{self._remedy()}"
                        )
                    yield key, size, tensor
        except (OSError, SafetensorError) as error:
            raise self._damaged(file.name, str(error)) from error

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
    *,
    writes: bool = True,
) -> Path:
    """Write one checkpoint, remove earlier ones, return its path. Visible ones are complete even after a kill.

    `tensors`: by file name; those divided among ranks are gathered one by one, for which all ranks must call this.
    `state`: JSON-able, written as state.json with the step. `keep`: number of latest checkpoints that stay; with
    `keep_every` those at multiples of it stay, too. `writes`: whether this rank writes. Raises `OSError` if the disk is
    full; nothing of the new checkpoint is left then.
    """
    whole = {name: whole_tensors(group) for name, group in tensors.items()}
    if not writes:
        _finish(whole)
        return run / checkpoint_name(step)
    try:
        _write(run, step, tensors, whole, state)
    except Exception:
        _finish(whole)  # the other ranks gather to the end
        raise
    for old in list_checkpoints(run)[:-keep]:
        if not keep_every or old.step % keep_every:
            shutil.rmtree(old.path)
    return run / checkpoint_name(step)


def _finish(whole: Mapping[str, Iterator[torch.Tensor]]) -> None:
    for tensors in whole.values():
        for _ in tensors:
            pass


def _write(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    whole: Mapping[str, Iterator[torch.Tensor]],
    state: dict[str, Any],
) -> None:
    final = run / checkpoint_name(step)
    temporary = run / f".{final.name}.tmp"
    for leftover in run.glob(UNFINISHED_CHECKPOINTS):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        for name, group in tensors.items():
            path = temporary / f"{name}.safetensors"
            write_tensors(path, group, whole[name])
            _sync(path)
        _write_text(temporary / STATE_FILE, json.dumps({"step": step} | state, indent=2))
        checksums = {path.name: file_checksum(path) for path in sorted(temporary.iterdir())}
        _write_text(temporary / CHECKSUMS_FILE, json.dumps(checksums, indent=2))
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # gives the space back
        raise
    _sync(run)


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
