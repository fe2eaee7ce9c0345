"""Metrics of modalities with the options that a person gave."""

from collections.abc import Iterable, Mapping
from typing import Any

from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import OpenUniError
from openuni.training.metric import Metric, metrics_of


def configured(modalities: Iterable[str], options: Mapping[str, Any]) -> dict[str, list[Metric]]:
    """Metrics by modality. `options`: by "METRIC.OPTION". Raises `OpenUniError` for options of none of them."""
    metrics = {modality: metrics_of(modality) for modality in modalities}
    names = sorted({name for found in metrics.values() for name in found})
    tables: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in options.items():
        name, _, option = key.partition(".")
        if name not in tables or not option:
            raise OpenUniError(
                f'"{key}" is not an option of a metric that is used. Write METRIC.OPTION=VALUE; metrics used: '
                f"{', '.join(names)}."
            )
        tables[name][option] = value
    return {
        modality: [parse_options(metric, tables[name], f"metric {name}") for name, metric in found.items()]
        for modality, found in metrics.items()
    }
