"""Preflight checks of a recipe, run before any worker starts. Every failed check names the command that fixes it."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.storage.store import Store
from openuni.pipeline.planning.map_sources import annotator_of, required_maps
from openuni.pipeline.runners.node_check import CODECS, MIN_FREE_BYTES, missing_codecs


class CheckResult(NamedTuple):
    """The result of one check."""

    level: Literal["ok", "note", "missing", "unavailable"]  # the last two prevent the run
    what: str
    text: str

    @property
    def is_blocking(self) -> bool:
        """Whether the run cannot start."""
        return self.level in ("missing", "unavailable")


def run_checks(recipe: CorpusRecipe, out: str | None = None, gpus: float = 0.0) -> list[CheckResult]:
    """Return the results of all checks on this machine; `out` is the output directory of the corpus."""
    return [*_codecs(), *_components(recipe, gpus), *_streams(recipe), *_disk(out), *_gpus(gpus)]


def require_all(recipe: CorpusRecipe, out: str | None, gpus: float) -> None:
    """Raise `MissingRequirement` with all failed checks, if there are any."""
    failed = [result for result in run_checks(recipe, out, gpus) if result.is_blocking]
    if failed:
        raise MissingRequirement(
            "\n".join(["preflight checks failed:", *(f"  {result.what}: {result.text}" for result in failed)])
        )


def _codecs() -> Iterator[CheckResult]:
    import av

    absent = missing_codecs()
    if absent:
        yield CheckResult("note", "video", f"PyAV {av.__version__} has no decoder for {', '.join(absent)}")
    else:
        yield CheckResult("ok", "video", f"PyAV {av.__version__} decodes {', '.join(CODECS)}")


def _components(recipe: CorpusRecipe, gpus: float) -> Iterator[CheckResult]:
    for component in recipe.components():
        for checkpoint in component.checkpoints():
            yield from _checkpoint(component.name(), checkpoint, recipe.accept)
        if component.gpus and not gpus:
            yield CheckResult("note", component.name(), "designed for a GPU; will run on the CPU, slowly")


def _checkpoint(name: str, checkpoint: Checkpoint, accepted: tuple[str, ...]) -> Iterator[CheckResult]:
    licence = checkpoint.licence or "unknown"
    try:
        yield CheckResult("ok", name, f"{checkpoint.resolve()} (licence {licence})")
    except MissingRequirement as error:
        yield CheckResult("unavailable", name, str(error))
    if checkpoint.requires_acceptance and checkpoint.ref not in accepted:
        terms = "gated" if checkpoint.gated else checkpoint.terms
        text = f"{checkpoint.ref}: licence {licence} ({terms}). If your use complies with it, add to the recipe: "
        yield CheckResult("missing", name, f'{text}accept = ["{checkpoint.ref}"]')


def _streams(recipe: CorpusRecipe) -> Iterator[CheckResult]:
    try:
        for name, sources in required_maps(recipe).items():
            for modality, source in sources.items():
                yield CheckResult("ok", name, f"requires {modality}: produced by {source.annotator}")
    except OpenUniError as error:
        yield CheckResult("note", "annotators", f"{error} (not needed if the corpus already contains it)")
    if recipe.encode is None:
        return
    if recipe.encode.caption:
        text = f"captions come from {recipe.encode.caption}"
        if recipe.encode.caption.rpartition(".")[0] in recipe.annotators:
            yield CheckResult("ok", "encode", text)
        else:
            yield CheckResult("note", "encode", f"{text}, which must already be in the corpus")
    for name in recipe.encode.modalities:
        annotator, _, modality = name.rpartition(".")
        if annotator or modality == "rgb":
            continue
        try:
            producer = annotator_of(modality, "[encode] modalities", recipe)
            yield CheckResult("ok", "encode", f"{modality} comes from {producer}")
        except OpenUniError as error:
            yield CheckResult("note", "encode", f"{error} (not needed if the corpus already contains it)")


def _disk(out: str | None) -> Iterator[CheckResult]:
    if out is None:
        return
    free = Store(out).free_bytes()
    if free is None:
        return
    level: Literal["ok", "missing"] = "ok" if free >= MIN_FREE_BYTES else "missing"
    text = f"{free / 1024**3:.1f} GiB free for {out}"
    yield CheckResult(
        level,
        "disk",
        text if level == "ok" else f"{text}; 1 GiB is required. Free some space, or change --out",
    )


def _gpus(gpus: float) -> Iterator[CheckResult]:
    if not gpus:
        return
    import torch

    found = torch.cuda.device_count()
    if found < gpus:
        yield CheckResult("missing", "GPU", f"--gpus {gpus:g}: {found} available. Pass --gpus {found}")
    else:
        yield CheckResult("ok", "GPU", f"{found} available, {gpus:g} requested")
