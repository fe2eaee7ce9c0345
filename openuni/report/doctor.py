"""Preflight checks of a recipe, run before any worker starts. Every failed check names the command that fixes it."""

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal, NamedTuple

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.component import missing_package
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from openuni.manifests.hosting.environment import check_python
from openuni.manifests.hosting.process import check_import
from openuni.manifests.storage.store import Store
from openuni.manifests.video.readers.nvdec_reader import decoder_nvdec_problem
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


def run_checks(
    recipe: CorpusRecipe, out: str | None = None, gpus: float = 0.0, *, on_cluster: bool = False
) -> list[CheckResult]:
    """Return the results of all checks on this machine.

    `out`: output directory of the corpus. `gpus`: of this machine, that the run uses. `on_cluster`: the work is done on
    other machines.
    """
    readers = [] if on_cluster else _reader(recipe, gpus)
    return [*_codecs(), *readers, *_components(recipe, gpus), *_streams(recipe), *_disk(out), *_gpus(gpus)]


def require_all(recipe: CorpusRecipe, out: str | None, gpus: float, *, on_cluster: bool = False) -> None:
    """Raise `MissingRequirement` with all failed checks, if there are any."""
    failed = [result for result in run_checks(recipe, out, gpus, on_cluster=on_cluster) if result.is_blocking]
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


def _reader(recipe: CorpusRecipe, gpus: float) -> Iterator[CheckResult]:
    """Whether what the recipe decodes with is there."""
    reader = recipe.work.reader
    what = f"[work] reader = {reader}"
    if reader == "decord":
        if find_spec("decord") is None:
            yield CheckResult("unavailable", what, missing_package("decord"))
        else:
            yield CheckResult("ok", what, f"decord {version('decord')}")
    if reader == "nvdec" and not gpus:
        text = 'requires a GPU: none is available to the run. Pass --gpus 1, or set reader = "pyav"'
        yield CheckResult("unavailable", what, text)
    elif reader == "nvdec":
        try:
            problem = decoder_nvdec_problem()
        except ClipError as error:  # the decoder crashed or stalled
            problem = str(error)
        yield CheckResult("unavailable", what, problem) if problem else CheckResult("ok", what, "FFmpeg opens the GPU")


def _components(recipe: CorpusRecipe, gpus: float) -> Iterator[CheckResult]:
    hosted = {place.partition(".")[2] for place in recipe.environments}
    yield from _environments(recipe)
    for component in recipe.components():
        for package in component.packages() if component.name() not in hosted else ():
            if find_spec(package) is None:
                yield CheckResult("unavailable", component.name(), missing_package(package))
            else:
                yield CheckResult("ok", component.name(), f"{package} {version(package)}")
        for checkpoint in component.checkpoints():
            yield from _checkpoint(component.name(), checkpoint, recipe.accept)
        if component.gpus and not gpus:
            yield CheckResult("note", component.name(), "designed for a GPU; will run on the CPU, slowly")


def _environments(recipe: CorpusRecipe) -> Iterator[CheckResult]:
    """Whether the environments of operators are there, new enough, and can import them. Builds those that uv builds."""
    for place, environment in recipe.environments.items():
        kind, _, name = place.partition(".")
        operator = (recipe.filters if kind == "filters" else recipe.annotators)[name]
        try:
            ready = environment.ready()
            check_python(ready)
            check_import(operator, ready.python)
        except MissingRequirement as error:
            yield CheckResult("unavailable", name, str(error))
        except OpenUniError as error:
            yield CheckResult("missing", name, str(error))
        else:
            version = ".".join(map(str, ready.contents.python))
            text = f"runs in {ready.python} (Python {version}, {len(ready.contents.packages)} packages)"
            yield CheckResult("ok", name, text)


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
