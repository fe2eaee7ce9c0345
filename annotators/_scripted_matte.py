"""User-supplied matting networks in TorchScript. Loading a TorchScript file executes code by its author."""

import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.errors import OpenUniError

SUFFIXES = (".torchscript", ".ts", ".jit", ".pt", ".pth")
STATES = ("r1", "r2", "r3", "r4")
AUTO_SIDE_PX = 512  # longer side of the downsampled image in a recurrent network, as its authors recommend


class ScriptedMatte(NamedTuple):
    """A network and its calling convention."""

    module: Any
    kind: Literal["recurrent", "frame"]
    takes_ratio: bool  # accepts a `downsample_ratio`
    device: str


class Estimate(NamedTuple):
    """A network's output for a clip."""

    alpha: np.ndarray  # float32 [T, H, W] in 0..1
    foreground: np.ndarray | None  # uint8 [T, H, W, 3]; None if the network does not estimate it


def load_scripted(path: Path, device: str) -> ScriptedMatte:
    """Load the network on `device`. The calling convention is derived from the signature of `forward`.

    recurrent: (source [1, T, 3, H, W], r1, r2, r3, r4[, downsample_ratio]) -> foreground, alpha, r1, r2, r3, r4, as in
    RobustVideoMatting's releases. frame: (source [B, 3, H, W]) -> alpha, or foreground and alpha. Raises `OpenUniError`
    for other files and signatures.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "use torch.export": does not apply to existing files
            module = torch.jit.load(str(path), map_location=device).eval()
        arguments = module.forward.schema.arguments[1:]  # skip self
    except (RuntimeError, ValueError, AttributeError) as error:
        raise OpenUniError(
            f"{path} is not a TorchScript file: {str(error).splitlines()[0]}. Save the network with torch.jit.save; "
            "a state_dict contains only weights."
        ) from error
    names = [argument.name for argument in arguments]
    required = [argument.name for argument in arguments if not argument.has_default_value()]
    if all(state in names for state in STATES):
        return ScriptedMatte(module, "recurrent", "downsample_ratio" in names, device)
    if len(required) == 1 or len(names) == 1:
        return ScriptedMatte(module, "frame", False, device)
    raise OpenUniError(
        f"{path}: forward takes {', '.join(names)}. Allowed: (source, r1, r2, r3, r4[, downsample_ratio]) or (source). "
        "Wrap the network in a module with one of these signatures."
    )


def estimate(
    model: ScriptedMatte, frames: np.ndarray, step: int, downsample_ratio: float, precision: Precision
) -> Estimate:
    """Alpha, and foreground if the network estimates it, of frames uint8 [T, H, W, 3], in chunks of `step` frames.

    The states of a recurrent network start empty and are passed from chunk to chunk. `downsample_ratio`: 0 selects the
    authors' rule, 512 / longer side, at most 1.
    """
    import torch

    alphas, fronts = [], []
    states: list[Any] = [None] * len(STATES)
    ratio = downsample_ratio or min(AUTO_SIDE_PX / max(frames.shape[1:3]), 1.0)
    for start in range(0, len(frames), step):
        chunk = torch.from_numpy(frames[start : start + step].copy()).to(model.device)
        source = chunk.permute(0, 3, 1, 2).float().div(255)
        with inference(torch.device(model.device).type, precision):
            if model.kind == "recurrent":
                extra = {"downsample_ratio": ratio} if model.takes_ratio else {}
                found = model.module(source[None], **dict(zip(STATES, states, strict=True)), **extra)
                states = list(found[2:])
                parts = [part[0] for part in found[:2]]
            else:
                found = model.module(source)
                parts = [found] if isinstance(found, torch.Tensor) else list(found)
        alpha, front = _sorted(parts, source)
        alphas.append(alpha)
        fronts.append(front)
    known = [front for front in fronts if front is not None]
    return Estimate(np.concatenate(alphas), np.concatenate(known) if len(known) == len(fronts) else None)


def _sorted(parts: list[Any], source: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Identify outputs by their channels: alpha float32 [T, H, W], and foreground uint8 [T, H, W, 3] or None."""
    count, _, height_px, width_px = source.shape
    alpha, front = None, None
    for part in parts:
        part = part.float().clamp(0, 1).cpu()
        if part.shape == (count, 3, height_px, width_px):
            front = part.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        elif part.shape in ((count, 1, height_px, width_px), (count, height_px, width_px)):
            alpha = part.reshape(count, height_px, width_px).numpy()
    if alpha is None or not np.isfinite(alpha).all():
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise OpenUniError(
            f"matting: the network returned {shapes} for frames {tuple(source.shape)}. It must return a finite alpha "
            "with one channel, and may return a foreground with three, at the size of its source."
        )
    return alpha, front
