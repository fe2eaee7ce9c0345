"""The same jobs in Python as on the command line."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openuni.config.recipe import CorpusRecipe, build
from openuni.console.progress import Reporter
from openuni.dedup import deduplicator as finder
from openuni.exchange import export_selection as selection
from openuni.exchange.export_job import ExportJob, ExportReport
from openuni.exchange.exporter import find_exporter
from openuni.exchange.import_job import ImportJob, ImportOptions
from openuni.exchange.importer import find_importer
from openuni.manifests.corpus import keep_rule as rules
from openuni.manifests.corpus import splits
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.lock import lock
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.pipeline import Pipeline, RunScope
from openuni.pipeline.runner import Resources, open_runner
from openuni.pipeline.sources import find_sources
from openuni.report import doctor

if TYPE_CHECKING:
    from openuni.training.run import Run

MAX_DEFAULT_WORKERS = 16


def run(
    recipe: str | Path | Mapping[str, Any] | CorpusRecipe,
    sources: str | Path | Sequence[str | Path] = (),
    *,
    out: str | Path,
    resources: Resources | None = None,
    scope: RunScope = RunScope(),
    reporter: Reporter | None = None,
) -> Corpus:
    """Build or extend a corpus; call it again to resume.

    `recipe`: a TOML file, tables as `tomllib` gives them, or a `CorpusRecipe`. `sources`: files, folders, globs, `.txt`
    lists, URLs; none: the clips that the corpus holds already, such as imported ones. `resources`: default this
    process (no Ray). Raises `OpenUniError` for wrong input and missing parts; clips that fail are rows of the corpus:
    see `corpus.summary()`.
    """
    parsed = to_recipe(recipe)
    found = find_sources(sources)
    resources = resources or Resources()
    doctor.require_all(parsed, str(out), resources.gpus)
    corpus = Corpus.create(str(out)) if found else Corpus.open(str(out))
    reporter = reporter or Reporter()
    with lock(corpus.store), reporter, open_runner(resources) as runner:
        Pipeline(parsed, corpus, runner, reporter, scope).run(found)
    corpus.refresh()
    return corpus


def import_set(
    format: str,
    folder: str | Path,
    *,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    resources: Resources | None = None,
    import_options: ImportOptions | None = None,
    reporter: Reporter | None = None,
) -> Corpus:
    """Bring the clips of another project's set into a corpus; call it again to go on.

    `format`: a name of `openuni/importers`, with its `options`. `import_options`: which of its clips, and what the set
    is called. Every clip is checked first; what is wrong with one is its row in the corpus: see `corpus.summary()`.
    Raises `OpenUniError` where the folder holds no such set.
    """
    importer = build(find_importer(format, imports=True), options or {}, f"import {format}")
    place = Path(folder).expanduser().resolve()
    if not place.is_dir():
        raise OpenUniError(f'"{folder}" is no folder. Give the folder that holds the set.')
    if "://" not in str(out) and Path(out).expanduser().resolve().is_relative_to(place):
        raise OpenUniError(f"--out {out} lies in the set itself, {place}: its files would be taken for clips")
    corpus = Corpus.create(str(out))
    reporter = reporter or Reporter()
    job = ImportJob(importer, corpus, import_options or ImportOptions())
    with lock(corpus.store), reporter, open_runner(resources or Resources()) as runner:
        job.run(place, runner, reporter)
    corpus.refresh()
    return corpus


def export(
    corpus: str | Path | Corpus,
    format: str,
    *,
    out: str | Path,
    export_options: selection.ExportOptions | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> ExportReport:
    """Write the kept clips of a corpus as another project reads them; call it again to go on.

    `format`: a name of `openuni/exporters`, with its `options`. `export_options`: which modalities, split and how many
    clips; default all. `workers`: threads; default one per core. A clip that cannot be exported is in the report and in
    failed.csv. Raises `OpenUniError` for wrong choices, and where the folder holds another export.
    """
    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    exporter = build(find_exporter(format, imports=True), options, f"export {format}")
    if workers is not None and workers < 1:
        raise OpenUniError(f"--workers {workers}: must be 1 or more")
    place = Path(out).expanduser().resolve()
    with reporter or Reporter() as shown:
        job = ExportJob(exporter, opened, place, export_options or selection.ExportOptions())
        return job.run(workers or min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS), shown)


def to_recipe(recipe: str | Path | Mapping[str, Any] | CorpusRecipe) -> CorpusRecipe:
    """A recipe from any of its forms."""
    if isinstance(recipe, CorpusRecipe):
        return recipe
    return CorpusRecipe.parse(recipe) if isinstance(recipe, Mapping) else CorpusRecipe.load(recipe)


def default_resources(workers: int | None = None, gpus: float | None = None, address: str | None = None) -> Resources:
    """One worker per GPU where there are GPUs, else one per core; `workers` 0 is this process."""
    if gpus is None:
        gpus = float(_visible_gpus()) if workers != 0 else 0.0
    if workers is None:
        workers = int(-(-gpus // 1)) if gpus else min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS)
    if workers < 0 or gpus < 0:
        raise OpenUniError(f"--workers {workers} --gpus {gpus}: both must be 0 or more")
    return Resources(workers, gpus, address)


def open_corpus(path: str | Path) -> Corpus:
    """The corpus at a folder or URL."""
    return Corpus.open(str(path))


def select(corpus: str | Path | Corpus, keep: str, *, out: str | Path) -> Corpus:
    """A new corpus with the clips that pass `keep`, in seconds: nothing is decoded, payload files are shared."""
    source = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    rules.parse(keep)
    return source.select(keep, str(out))


def duplicates(corpus: str | Path | Corpus, by: str = "hash", **options: Any) -> finder.DedupReport:
    """Find clips that show the same, over the whole corpus; call it again when the corpus has grown.

    `by`: "hash" (copies; needs the filter perceptual_hash) or "embedding" (the same content; needs the filter
    embedding), with the `options` of that finder. What is found is the column group `filters/duplicates` or
    `filters/semantic_duplicates`, which `keep` may read. Raises `OpenUniError` where the filter has not run.
    """
    chosen = finder.deduplicator_by(by)
    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    with lock(opened.store):
        return finder.find_duplicates(build(chosen, options, f"duplicates by {by}"), opened)


def split(
    corpus: str | Path | Corpus, shares: Mapping[str, float], *, seed: int = 0, anew: bool = False
) -> dict[str, int]:
    """Give every clip a split and return how many clips each has: see `openuni.manifests.corpus.splits.assign`."""
    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise OpenUniError(f"split {name} = {share!r}: give its share of the clips, such as {name}=0.05")
    with lock(opened.store):
        counts = splits.assign(opened, shares, seed, anew=anew)
    opened.refresh()
    return counts


def train(
    recipe: str | Path,
    corpus: str | Path | Corpus,
    *,
    out: str | Path,
    progress: Any = None,
) -> "Run":
    """Train a model on a corpus's latents; call it again to resume. `recipe`: a name of train/recipes, or a file."""
    from openuni.training.loop.trainer import train as train_model

    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    return train_model(recipe, opened, Path(out), progress=progress)


def open_run(path: str | Path) -> "Run":
    """A training run, for sampling."""
    from openuni.training.run import Run

    return Run.open(Path(path))


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()
