"""The Python API: the jobs of the command line as functions."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.dedup import deduplicator as dedup
from openuni.exchange import export_selection as selection
from openuni.exchange.export_job import ExportJob, ExportReport
from openuni.exchange.exporter import find_exporter
from openuni.exchange.import_job import ImportJob, ImportOptions
from openuni.exchange.importer import find_importer
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.corpus import keep_rule as rules
from openuni.manifests.corpus import splits
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.corpus.parts.compaction import Compacted
from openuni.manifests.corpus.parts.compaction import compact as compact_group
from openuni.manifests.corpus.writer import storage_errors
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.lock import lock
from openuni.manifests.storage.remote_errors import remote_errors
from openuni.manifests.storage.store import Store
from openuni.pipeline.changed_captions import changed_captions_note, update_captions
from openuni.pipeline.pipeline import Pipeline
from openuni.pipeline.runners.resources import Resources, Runner
from openuni.pipeline.runners.runner import open_runner
from openuni.pipeline.scope import RunScope
from openuni.pipeline.sources import as_recorded, find_with_links
from openuni.report import doctor
from openuni.report.verify import verify as verify  # the job is that function

if TYPE_CHECKING:
    from openuni.launch.ray_training import RayOptions
    from openuni.training.export.exported_model import ExportedModel
    from openuni.training.recipe import TrainingRecipe
    from openuni.training.run import Run

MAX_DEFAULT_WORKERS = 16
FEW_ITEMS = 10  # starting Ray for these takes longer than it saves


@remote_errors()
def run(
    recipe: str | Path | Mapping[str, Any] | CorpusRecipe,
    sources: str | Path | Sequence[str | Path] = (),
    *,
    out: str | Path,
    resources: Resources | Callable[[int], Resources] | None = None,
    scope: RunScope = RunScope(),
    reporter: Reporter | None = None,
) -> Corpus:
    """Build or extend a corpus. Call again to resume.

    `recipe`: a TOML file, tables as `tomllib` returns them, or a `CorpusRecipe`. `sources`: files, folders, globs,
    `.txt` lists, URLs; none: process the clips that are already in the corpus, such as imported ones. `resources`:
    default is in-process (no Ray); may be a function of the number of sources, or of clips if no sources are given.
    Raises `OpenUniError` for invalid input and missing requirements. A clip that fails raises nothing: it is a row with
    status `failed`, see `corpus.summary()`; with `scope=RunScope(raise_errors=True)` the first one raises `ItemFailed`,
    whose cause is the exception.
    """
    parsed = to_recipe(recipe)
    found = find_with_links(sources)
    existing = None if found.names else Corpus.open(str(out))
    if not isinstance(resources, Resources):
        count = len(found.names) if existing is None else len(existing)
        resources = resources(count) if resources is not None else Resources()
    is_local = resources.address is None
    doctor.require_all(parsed, str(out), (resources.gpus or 0.0) if is_local else 0.0, on_cluster=not is_local)
    corpus = existing or Corpus.create(str(out))
    reporter = reporter or Reporter()
    with storage_errors(corpus.store), lock(corpus.store), reporter, open_runner(resources) as runner:
        _require_shards(parsed, corpus)
        names = as_recorded(found, corpus)
        _require_cluster(parsed, runner, names, corpus)
        if scope.update_captions:
            reporter.print_line(f"updated the captions of {update_captions(corpus, names, parsed):,} sources")
        elif note := changed_captions_note(corpus, names, parsed.ingest):
            reporter.print_line(note)
        Pipeline(parsed, corpus, runner, reporter, scope).run(names)
    corpus.refresh()
    return corpus


@remote_errors()
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
    """Import a dataset into a corpus. Call again to resume.

    `format`: name of an importer, with its `options`. `import_options`: collection name, maximum number of clips,
    whether to retry rejected clips. Every clip is validated; the error of a rejected clip is stored in its row, see
    `corpus.summary()`. Raises `OpenUniError` if the folder does not contain a dataset of this format.
    """
    importer = parse_options(find_importer(format, imports=True), options or {}, f"import {format}")
    place = Path(folder).expanduser().resolve()
    if not place.is_dir():
        raise OpenUniError(f'"{folder}" is not a folder. Pass the dataset folder.')
    if "://" not in str(out) and Path(out).expanduser().resolve().is_relative_to(place):
        raise OpenUniError(
            f"--out {out} is inside the dataset folder {place}, so its files would be imported as clips. "
            "Pass a different --out."
        )
    corpus = Corpus.create(str(out))
    reporter = reporter or Reporter()
    job = ImportJob(importer, corpus, import_options or ImportOptions())
    with storage_errors(corpus.store), lock(corpus.store), reporter, open_runner(resources or Resources()) as runner:
        job.run(place, runner, reporter)
    corpus.refresh()
    return corpus


@remote_errors()
def export(
    corpus: str | Path | Corpus,
    format: str,
    *,
    out: str | Path,
    export_options: selection.ExportOptions | None = None,
    workers: int | None = None,
    address: str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> ExportReport:
    """Export the kept clips of a corpus in another project's format. Call again to resume.

    `format`: name of an exporter, with its `options`. `export_options`: modalities, split and maximum number of clips;
    default all. `workers`: number of threads; default one per core. `address`: of a running Ray cluster, whose workers
    write instead (default: as many as it holds); all nodes must see `out` under the same path. Clips that cannot be
    exported are listed in the report and in failed.csv. Raises `OpenUniError` for invalid options, and if `out` holds
    a different export.
    """
    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    exporter = parse_options(find_exporter(format, imports=True), options, f"export {format}")
    if workers is not None and workers < 1:
        raise OpenUniError(f"--workers {workers}: must be at least 1")
    place = Path(out).expanduser().resolve()
    with reporter or Reporter() as shown, storage_errors(Store(str(place))):
        job = ExportJob(exporter, opened, place, export_options or selection.ExportOptions())
        if address is None:
            return job.run(workers or min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS), shown)
        with open_runner(default_resources(workers, 0.0, address)) as runner:
            return job.run(0, shown, runner)


def to_recipe(recipe: str | Path | Mapping[str, Any] | CorpusRecipe) -> CorpusRecipe:
    """Return the recipe, parsed if it is a file or tables."""
    if isinstance(recipe, CorpusRecipe):
        return recipe
    return CorpusRecipe.parse(recipe) if isinstance(recipe, Mapping) else CorpusRecipe.load(recipe)


def default_resources(
    workers: int | None = None,
    gpus: float | None = None,
    address: str | None = None,
    *,
    items: int | None = None,
    workers_per_gpu: int | None = None,
    placement_timeout_s: float | None = None,
) -> Resources:
    """Return the resources of a run.

    `workers`: at a time; default: one per core of this machine, or as many as the cluster at `address` holds; 0:
    in-process. `gpus`: default: all. `items`: number of sources or clips to process, if known; up to `FEW_ITEMS`
    without a GPU or cluster run in-process by default. See `Resources` for the rest. Raises `OpenUniError` for negative
    numbers.
    """
    for flag, number in (("workers", workers), ("gpus", gpus), ("placement-timeout", placement_timeout_s)):
        if number is not None and not number >= 0:
            raise OpenUniError(f"--{flag} {number:g}: must be at least 0")
    if workers_per_gpu is not None and workers_per_gpu < 1:
        raise OpenUniError(f"--workers-per-gpu {workers_per_gpu}: must be at least 1")
    if address is None:
        gpus = (float(_visible_gpus()) if workers != 0 else 0.0) if gpus is None else gpus
        if workers is None:
            few = not gpus and items is not None and items <= FEW_ITEMS
            workers = (
                0 if few else max(int(gpus * (workers_per_gpu or 1)), min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS))
            )
    return Resources(workers, gpus, address, workers_per_gpu, placement_timeout_s)


@remote_errors()
def open_corpus(path: str | Path) -> Corpus:
    """Open the corpus at a folder or URL. Raises `OpenUniError` if there is none."""
    return Corpus.open(str(path))


@remote_errors()
def select(corpus: str | Path | Corpus, keep: str, *, out: str | Path) -> Corpus:
    """Create a corpus from the clips that pass `keep`. Takes seconds: nothing is decoded, payload files are shared."""
    source = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    rules.parse(keep)
    return source.select(keep, str(out))


@remote_errors()
def duplicates(
    corpus: str | Path | Corpus, by: str = "hash", *, reporter: Reporter | None = None, **options: Any
) -> dedup.DedupReport:
    """Find duplicates across a corpus and mark one representative per cluster. Call again after the corpus has grown.

    `by`: "hash" (near-duplicates; requires the filter perceptual_hash) or "embedding" (semantic duplicates; requires
    the filter embedding), with the `options` of that deduplicator. Results are written to the column group
    `filters/duplicates` or `filters/semantic_duplicates`, which `keep` can refer to. Raises `OpenUniError` if the
    filter has not run.
    """
    chosen = dedup.deduplicator_by(by)
    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    with lock(opened.store):
        deduplicator = parse_options(chosen, options, f"duplicates by {by}")
        return dedup.find_duplicates(deduplicator, opened, reporter or Reporter())


@remote_errors()
def compact(corpus: str | Path | Corpus, *, reporter: Reporter | None = None) -> list[Compacted]:
    """Merge the small Parquet parts of every column group, which many short runs leave; return what was done by group.

    `run` and `import_set` do so themselves at the end of a phase. Rows, their order and all results stay the same, and
    shards are not rewritten. Safe to interrupt and to run while others read the corpus.
    """
    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    done = []
    with storage_errors(opened.store), lock(opened.store), reporter or Reporter() as shown:
        opened.recover()
        for group in opened.groups():
            with shown.phase(f"compact {group}", len(opened.parts(group))) as counter:
                done.append(compact_group(opened, group, counter.add))
    opened.refresh()
    return done


@remote_errors()
def split(
    corpus: str | Path | Corpus,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    reassign: bool = False,
    anew: bool | None = None,
) -> dict[str, int]:
    """Assign a split to every clip; return the number of clips by split.

    `shares`: fraction of the clips by split, 0..1; train gets the rest. `reassign`: also clips that already have a
    split (former name: `anew`). See `openuni.manifests.corpus.splits.assign`.
    """
    if anew is not None:
        warnings.warn("openuni.split: anew is now reassign", DeprecationWarning, stacklevel=2)
        reassign = anew
    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise OpenUniError(f"split {name} = {share!r}: must be a fraction of the clips, such as {name}=0.05")
    with lock(opened.store):
        counts = splits.assign(opened, shares, seed, anew=reassign)
    opened.refresh()
    return counts


@remote_errors()
def train(
    recipe: "str | Path | TrainingRecipe",
    corpus: str | Path | Corpus,
    *,
    out: str | Path,
    progress: Any = None,
    ray: "RayOptions | None" = None,
) -> "Run":
    """Train a model on the latents of a corpus. Call again to resume.

    `recipe`: name of a training recipe (see `openuni list`), a TOML file, or a `TrainingRecipe`. `progress`: called
    with every row of the training log. `ray`: train on processes of a Ray cluster
    (`openuni.launch.ray_training.RayOptions`); `out` must be on a file system that all of its nodes see.
    """
    from openuni.training.loop.trainer import train as train_model
    from openuni.training.recipe import TrainingRecipe

    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    if ray is None:
        return train_model(recipe, opened, Path(out), progress=progress)
    from openuni.launch.ray_training import train_on_ray

    loaded = recipe if isinstance(recipe, TrainingRecipe) else TrainingRecipe.load(recipe)
    return train_on_ray(loaded, opened, Path(out), ray, progress)


@remote_errors()
def training_estimate(
    recipe: "str | Path | TrainingRecipe",
    corpus: str | Path | Corpus,
    gpus: int | None = None,
    gpu_memory_gb: float | None = None,
) -> str:
    """Tokens, memory and FLOPs of a training step and its data plan, as text; nothing is trained.

    `gpus`, `gpu_memory_gb`: default: those of this machine. Raises `OpenUniError`, which says what would fit, if the
    training does not fit.
    """
    from openuni.training.estimate.dry_run import report
    from openuni.training.recipe import TrainingRecipe

    loaded = recipe if isinstance(recipe, TrainingRecipe) else TrainingRecipe.load(recipe)
    return report(loaded, corpus, gpus, gpu_memory_gb)


def open_run(path: str | Path) -> "Run":
    """Open a training run, for sampling. Raises `OpenUniError` if the folder is not a training run."""
    from openuni.training.run import Run

    return Run.open(Path(path))


def from_pretrained(
    name: str | Path, device: str = "auto", *, revision: str | None = None, token: str | None = None
) -> "ExportedModel":
    """Open a model exported by `Run.save_pretrained`: a folder, or "owner/name" of the Hugging Face Hub.

    It samples and generates as a `Run` does. `revision`: branch, tag or commit; `token`: default: that of
    `hf auth login`. Only JSON and safetensors are read. Raises `OpenUniError` if it is not found or damaged.
    """
    from openuni.training.export import exported_model

    return exported_model.from_pretrained(name, device, revision=revision, token=token)


def _require_shards(recipe: CorpusRecipe, corpus: Corpus) -> None:
    """Raise `OpenUniError` if a shard of what the recipe produces is missing: its clips would pass for done."""
    encoded = corpus.record["encoded"].values() if recipe.encode is not None else ()
    corpus.require_shards([*map(annotation_group, recipe.annotators), *encoded])


def _require_cluster(recipe: CorpusRecipe, runner: Runner, sources: Sequence[str], corpus: Corpus) -> None:
    """Raise `MissingRequirement` if a node of the cluster lacks what the run needs, before any work."""
    if runner.resources.address is None or runner.resources.workers == 0:
        return
    from openuni.pipeline.runners.ray_runner import RayRunner
    from openuni.report.cluster import require_cluster

    assert isinstance(runner, RayRunner)
    if not sources and len(corpus):
        sources = [corpus[0].clip.source, corpus[-1].clip.source]
    require_cluster(recipe, runner, sources, corpus.store.url)


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()
