"""`openuni parity`: the checks of `openuni.training.parity.checks` for the models that are built on Wan."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.training.parity.checks import ParityResult

FAILING_STATUSES = ("failed", "not run")
HEADER = f"{'model':<12} {'check':<11} {'verdict':<14} {'value':>9} {'tolerance':>9}  description"


def run_parity(
    pretrained: str, models: Sequence[str], modalities: Sequence[str], device: str, dtype: str
) -> Iterator[tuple[str, "ParityResult"]]:
    """Yield model name and result after every check.

    Raises `OpenUniError` for unknown models, modalities and devices, and for models that are not built on Wan.
    """
    import torch

    from openuni.training.parity.checks import run_parity_checks
    from openuni.training.run import pick_device

    known = {name: _kind(name) for name in models or component_names("models")}
    for name in models:
        if known[name] is None:
            raise OpenUniError(f'--model "{name}": not built on Wan, so diffusers has no counterpart to compare with')
    for name in modalities:
        find_modality(name)
    torch_device = pick_device(device)
    for kind in filter(None, known.values()):
        options: dict[str, Any] = {"pretrained": pretrained}
        if len(kind().modalities) > 1:  # a model with one stream has fixed modalities
            options["modalities"] = tuple(dict.fromkeys(modalities))
        for result in run_parity_checks(kind(**options), torch_device, getattr(torch, dtype)):
            yield kind.name(), result


def _kind(name: str) -> Any:
    """Return the model component, or None if it is not built on Wan."""
    from openuni.training.backbone.wan import WanModel
    from openuni.training.model import Model

    base: Any = Model
    kind = find_component("models", base, name, imports=True)
    return kind if issubclass(kind, WanModel) else None


def format_row(model: str, result: "ParityResult") -> str:
    """Return one line of the table."""
    figure, tolerance = ("" if value is None else f"{value:.3g}" for value in (result.figure, result.tolerance))
    return f"{model:<12} {result.name:<11} {result.verdict:<14} {figure:>9} {tolerance:>9}  {result.what}"


def record(model: str, result: "ParityResult") -> dict[str, Any]:
    """Return the result for JSON. JSON has no infinity and no NaN: such values become null."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in result._asdict().items()}
    return {"model": model, **finite}
