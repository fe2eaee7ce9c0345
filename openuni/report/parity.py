"""`openuni parity`: the parity checks of `openuni.training.parity.checks` on the models that are built on Wan."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.training.parity.checks import ParityResult

FAILING_STATUSES = ("failed", "not run")
HEADER = f"{'model':<12} {'check':<11} {'verdict':<14} {'figure':>9} {'maximum':>9}  description"


def run_parity(
    pretrained: str, models: Sequence[str], modalities: Sequence[str], device: str, dtype: str
) -> Iterator[tuple[str, "ParityResult"]]:
    """Model name and result of each parity check. Raises `OpenUniError` for an unknown model or modality."""
    import torch

    from openuni.training.parity.checks import run_parity_checks
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
        for result in run_parity_checks(kind(**options), place, getattr(torch, dtype)):
            yield kind.name(), result


def _kind(name: str) -> Any:
    """The component, or None where it is not built on Wan."""
    from openuni.training.backbone.wan import WanModel
    from openuni.training.model import Model

    base: Any = Model
    kind = find_component("models", base, name, imports=True)
    return kind if issubclass(kind, WanModel) else None


def format_row(model: str, result: "ParityResult") -> str:
    """One line of the table."""
    figure, tolerance = ("" if value is None else f"{value:.3g}" for value in (result.figure, result.tolerance))
    return f"{model:<12} {result.name:<11} {result.verdict:<14} {figure:>9} {tolerance:>9}  {result.what}"


def record(model: str, result: "ParityResult") -> dict[str, Any]:
    """The result for JSON; infinite and NaN figures become null."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in result._asdict().items()}
    return {"model": model, **finite}
