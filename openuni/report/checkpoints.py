"""`openuni checkpoints`: list, download and verify checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from openuni.config.recipe import CorpusRecipe
from openuni.console.text_table import format_columns
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.errors import OpenUniError, unknown_name
from openuni.report.download import download

KINDS = ("filters", "annotators", "codecs", "shots")  # kinds of components that may use checkpoints


def components_with_weights() -> dict[str, type[Component]]:
    """Return all components that may use checkpoints, by name."""
    return {name: find_component(kind, Component, name) for kind in KINDS for name in component_names(kind)}


def published() -> list[tuple[str, Checkpoint]]:
    """Return pairs of component name and checkpoint, for all checkpoints that components can use."""
    return [
        (name, checkpoint)
        for name, component in components_with_weights().items()
        for checkpoint in component.published()
    ]


def table() -> str:
    """Return the terminal table of all checkpoints: component, name, size, digest, licence, terms, local or not."""
    rows = [("component", "checkpoint", "size", "sha256", "licence", "terms", "local")]
    for name, checkpoint in published():
        local = checkpoint.find()
        size_mb = checkpoint.nbytes / 1e6 if local else checkpoint.size_mb
        rows.append(
            (
                name,
                checkpoint.ref,
                f"{size_mb:,.1f} MB" if size_mb else "-",
                checkpoint.expected_sha256[:12] or "-",
                checkpoint.licence or "-",
                "gated" if checkpoint.gated else checkpoint.terms,
                "yes" if local else "no",
            )
        )
    return "\n".join(format_columns(rows))


def select_checkpoints(
    wanted: Sequence[str], recipe: Path | None, default: Literal["none", "present"] = "none"
) -> list[Checkpoint]:
    """Return the selected checkpoints: by name, the defaults of a component, or all that a recipe needs.

    `default`: the selection if nothing is named; "present": all local checkpoints. Raises `OpenUniError` for unknown
    names, and if nothing is named and `default` is "none".
    """
    found = [checkpoint for name in wanted for checkpoint in _named(name)]
    if recipe is not None:
        parts = CorpusRecipe.load(recipe).components()
        found += [checkpoint for part in parts for checkpoint in part.checkpoints()]
    if not found and recipe is None and not wanted:
        if default == "none":
            raise OpenUniError(
                "no checkpoint named. Name checkpoints (listed by: openuni checkpoints), components, or --recipe FILE."
            )
        found = [checkpoint for _, checkpoint in published() if checkpoint.find()]
    return list(dict.fromkeys(found))


def _named(name: str) -> Sequence[Checkpoint]:
    known = dict((checkpoint.ref, checkpoint) for _, checkpoint in published())
    if name in known:
        return (known[name],)
    if name in components_with_weights():
        return components_with_weights()[name]().checkpoints()
    if name.count("/") == 1:
        return (Checkpoint(name, "hub"),)  # a hub repository that no component lists
    raise OpenUniError(unknown_name("checkpoint", name, [*known, *components_with_weights()]))


def fetch(checkpoint: Checkpoint) -> str:
    """Download a checkpoint unless it is local; return its path and the result of the digest check."""
    if checkpoint.find() is None:
        if checkpoint.store == "hub":
            _fetch_from_hub(checkpoint)
        elif checkpoint.url:
            download(checkpoint.url, checkpoint.download_path(), checkpoint.expected_sha256)
        else:
            raise OpenUniError(f"{checkpoint.ref}: no such file. A checkpoint given by path cannot be downloaded.")
    return f"{checkpoint.resolve()}, {verify_checkpoint(checkpoint)}"


def _fetch_from_hub(checkpoint: Checkpoint) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        snapshot_download(checkpoint.ref, allow_patterns=list(checkpoint.only) or None)  # resumes, shows bars
    except GatedRepoError as error:
        raise OpenUniError(
            f"{checkpoint.ref} is gated. Accept the terms on its hub page, then log in with: hf auth login"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise OpenUniError(f"download of {checkpoint.ref} failed: {error}. Rerun the command to resume.") from error


def verify_checkpoint(checkpoint: Checkpoint) -> str:
    """Verify the files against the published digests; raises `OpenUniError` for a wrong digest."""
    return "digest verified" if checkpoint.verify() else "not verified (no published digest)"
