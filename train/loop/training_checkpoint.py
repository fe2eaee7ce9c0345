"""Training checkpoints: folders `step-000100/` of safetensors and JSON, written under a temporary name and renamed."""

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

NAME = re.compile(r"step-(\d{6,})")


class TrainingCheckpoint(NamedTuple):
    """A saved state of a training run."""

    step: int  # number of finished optimizer steps
    path: Path

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `NAME.safetensors` ("model", "ema" or "optimizer"), on the CPU."""
        file = self.path / f"{name}.safetensors"
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise OpenUniError(
                f"{file} is damaged ({error}). Remove {self.path}: the run then resumes from the previous checkpoint, "
                "or restarts."
            ) from error


def list_checkpoints(run: Path) -> list[TrainingCheckpoint]:
    """All complete checkpoints of a run, oldest first."""
    found = [(NAME.fullmatch(path.name), path) for path in run.glob("step-*") if (path / "state.json").is_file()]
    return sorted(TrainingCheckpoint(int(match.group(1)), path) for match, path in found if match)


def save(run: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any], keep: int) -> Path:
    """Write one checkpoint and remove all but the last `keep`. Visible checkpoints are complete even after a kill.

    `tensors`: by file name; `state`: JSON-able, written as state.json with the step.
    """
    final, temporary = run / f"step-{step:06d}", run / f".step-{step:06d}.tmp"
    for leftover in run.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    for name, group in tensors.items():
        path = temporary / f"{name}.safetensors"
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, path)
        _sync(path)
    (temporary / "state.json").write_text(json.dumps({"step": step} | state, indent=2))
    _sync(temporary / "state.json")
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(run)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old.path)
    return final


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Optimizer state by parameter name, such as `exp_avg/blocks.0...`."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`; moments are moved to their parameter's device."""
    parameters = dict(model.named_parameters())
    kinds = {key.partition("/")[0] for key in tensors}
    names = {key.partition("/")[2] for key in tensors}
    if lacking := sorted({f"{kind}/{name}" for kind in kinds for name in names} - set(tensors)):
        raise OpenUniError(
            f"optimizer state of the checkpoint lacks {', '.join(lacking[:3])}: it is damaged. Remove it."
        )
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if name not in parameters:
            raise OpenUniError(f'optimizer state of the checkpoint has "{name}", which the model lacks')
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
