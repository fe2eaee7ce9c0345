"""What there is, by kind. Imports none of it, nor anything heavy: `openuni list` is instant."""

from manifests.component import component_names

PACKAGES = {
    "filters": "filters",
    "annotators": "annotators",
    "modalities": "manifests.modalities",
    "shots": "openuni.shots",
    "finders": "openuni.finders",
    "importers": "openuni.importers",
    "exporters": "openuni.exporters",
    "codecs": "train.codecs",
    "models": "train.models",
}


def listing() -> dict[str, list[str]]:
    """Names of all components and modalities: the files of their packages."""
    return {kind: component_names(package) for kind, package in PACKAGES.items()}
