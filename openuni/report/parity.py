"""`openuni parity`: the ladder of `openuni.training.parity.ladder` on the models that are built on Wan."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.training.parity.ladder import ParityResult

FAILING_STATUSES = ("failed", "not run")
HEADER = f"{'model':<12} {'rung':<11} {'verdict':<14} {'figure':>9} {'at most':>9}  what the figure is"


def run_parity(
    pretrained: str, models: Sequence[str], modalities: Sequence[str], device: str, dtype: str
) -> Iterator[tuple[str, "ParityResult"]]:
    """Model and rung, each when it is done. Raises `OpenUniError` for what is asked for and not there."""
    import torch

    from openuni.training.parity.ladder import run_parity_checks
    from openuni.training.run import pick_device

    known = {name: _kind(name) for name in models or component_names("models")}
    for name in models:
        if known[name] is None:
            raise OpenUniError(f'model "{name}" is not built on Wan, so there is nothing to compare it with')
    for name in modalities:
        find_modality(name)
    place = pick_device(device)
    for kind in filter(None, known.values()):
        options: dict[str, Any] = {"pretrained": pretrained}
        if len(kind().modalities) > 1:  # else the model's streams are fixed
            options["modalities"] = tuple(dict.fromkeys(modalities))
        for rung in run_parity_checks(kind(**options), place, getattr(torch, dtype)):
            yield kind.name(), rung


def _kind(name: str) -> Any:
    """The component, or None where it is not built on Wan."""
    from openuni.training.backbone.wan import WanModel
    from openuni.training.model import Model

    base: Any = Model
    kind = find_component("models", base, name, imports=True)
    return kind if issubclass(kind, WanModel) else None


def format_row(model: str, rung: "ParityResult") -> str:
    """One line of the table."""
    figure, tolerance = ("" if value is None else f"{value:.3g}" for value in (rung.figure, rung.tolerance))
    return f"{model:<12} {rung.name:<11} {rung.verdict:<14} {figure:>9} {tolerance:>9}  {rung.what}"


def record(model: str, rung: "ParityResult") -> dict[str, Any]:
    """The rung as JSON has it, which knows no infinity: null."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in rung._asdict().items()}
    return {"model": model, **finite}
