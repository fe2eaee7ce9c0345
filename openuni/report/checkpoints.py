"""`openuni checkpoints`: what weights there are, what of them is here, getting them, holding them against digests."""

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

KINDS = ("filters", "annotators", "codecs", "shots")  # of components that may use weights


def components_with_weights() -> dict[str, type[Component]]:
    """All components that may use weights, by name."""
    return {name: find_component(kind, Component, name) for kind in KINDS for name in component_names(kind)}


def published() -> list[tuple[str, Checkpoint]]:
    """Every checkpoint by name that a component can use, with the component's name."""
    return [
        (name, checkpoint)
        for name, component in components_with_weights().items()
        for checkpoint in component.published()
    ]


def table() -> str:
    """All of them for people: who uses it, name, size, digest, licence, terms, whether it is here."""
    rows = [("for", "name", "size", "sha256", "licence", "terms", "here")]
    for name, checkpoint in published():
        here = checkpoint.find()
        size_mb = checkpoint.nbytes / 1e6 if here else checkpoint.size_mb
        rows.append(
            (
                name,
                checkpoint.ref,
                f"{size_mb:,.1f} MB" if size_mb else "-",
                checkpoint.expected_sha256[:12] or "-",
                checkpoint.licence or "-",
                "gated" if checkpoint.gated else checkpoint.terms,
                "yes" if here else "no",
            )
        )
    return "\n".join(format_columns(rows))


def select_checkpoints(
    wanted: Sequence[str], recipe: Path | None, default: Literal["none", "present"] = "none"
) -> list[Checkpoint]:
    """The checkpoints meant: by name, as the defaults of a component, or as a recipe needs them.

    Raises `OpenUniError` for a name that is neither, and where nothing is named and there is no default.
    """
    found = [checkpoint for name in wanted for checkpoint in _named(name)]
    if recipe is not None:
        parsed = CorpusRecipe.load(recipe)
        parts: list[Component] = [*parsed.filters.values(), *parsed.annotators.values(), parsed.shot_detector]
        parts += [codec for codec in (parsed.latent_codec, parsed.text_codec) if codec is not None]
        found += [checkpoint for part in parts for checkpoint in part.checkpoints()]
    if not found and recipe is None and not wanted:
        if default == "none":
            raise OpenUniError(
                "name what to get: checkpoints that `openuni checkpoints` lists, parts, or --recipe FILE"
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
        return (Checkpoint(name, "hub"),)  # any other repository of the hub
    raise OpenUniError(unknown_name("checkpoint", name, [*known, *components_with_weights()]))


def fetch(checkpoint: Checkpoint) -> str:
    """Bring it here unless it is; returns where it is and whether its digest could be checked."""
    if checkpoint.find() is None:
        if checkpoint.store == "hub":
            _fetch_from_hub(checkpoint)
        elif checkpoint.url:
            download(checkpoint.url, checkpoint.download_path(), checkpoint.expected_sha256)
        else:
            raise OpenUniError(f"{checkpoint.ref} is a path, and nothing is there: {checkpoint.ref}")
    return f"{checkpoint.resolve()}, {verify_checkpoint(checkpoint)}"


def _fetch_from_hub(checkpoint: Checkpoint) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        snapshot_download(checkpoint.ref, allow_patterns=list(checkpoint.only) or None)  # resumes, shows bars
    except GatedRepoError as error:
        raise OpenUniError(
            f"{checkpoint.ref} is gated: agree to its owner's terms on its page, then log in with: hf auth login"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise OpenUniError(
            f"fetching {checkpoint.ref} failed: {error}. Run the same command again: it goes on."
        ) from error


def verify_checkpoint(checkpoint: Checkpoint) -> str:
    """What holding the files against their digests gave; raises `OpenUniError` when one is wrong."""
    return "as published" if checkpoint.verify() else "no digest is published to hold it against"
