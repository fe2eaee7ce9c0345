"""Commands on corpora: run, import, export, summary, explain, select, duplicates, split, compact."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from openuni.cli import submission
from openuni.cli.app import CorpusArgument, OutOption, RecipeArgument, app, command_from_dataclass
from openuni.cli.former_flags import accepts_former_flags
from openuni.cli.submission import NoWaitOption, SubmitOption
from openuni.console.terminal import print_text
from openuni.manifests.errors import OpenUniError


@dataclass(frozen=True)
class RunFlags:
    """Flags of `openuni run`."""

    recipe: RecipeArgument
    out: OutOption
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Videos, folders, glob patterns, .txt lists, http(s) or s3 URLs. Default: the clips of the corpus"
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of Ray workers at a time; 0 runs in-process. Default: one per core, as many as fit on a "
            "cluster, and 0 for up to 10 sources or clips without a GPU"
        ),
    ] = None
    gpus: Annotated[float | None, typer.Option(help="GPUs used by the workers. Default: all available")] = None
    workers_per_gpu: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Workers that share one GPU. Default: 1, and up to 4 for operators that left GPUs idle before and fit "
            "into their memory as often",
        ),
    ] = None
    address: Annotated[
        str | None, typer.Option(help='Address of a running Ray cluster: HOST:PORT, ray://HOST:PORT or "auto"')
    ] = None
    placement_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds to wait for nodes that an autoscaler starts. Default: the workers must fit on the nodes that "
            "are there",
        ),
    ] = None
    submit: SubmitOption = None
    no_wait: NoWaitOption = False
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of sources (or clips)")] = None
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this operator or phase (ingest, encode); repeatable")
    ] = None
    add: Annotated[bool, typer.Option("--add", help="Add new sources to an existing corpus")] = False
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry failed items")] = False
    raise_errors: Annotated[
        bool, typer.Option("--raise-errors", help="Stop at the first failed item and show its traceback")
    ] = False
    update_captions: Annotated[
        bool,
        typer.Option(
            "--update-captions",
            help="Read caption files again that changed after ingest; recompute text embeddings and scores of captions",
        ),
    ] = False


@app.command()
@command_from_dataclass(RunFlags)
def run(given: RunFlags) -> None:
    """Build a corpus: ingest, filter, annotate, encode.

    Rerun to resume, or after changing the recipe: results that are still valid are not recomputed.
    """
    from openuni import api
    from openuni.config.recipe import CorpusRecipe
    from openuni.pipeline.runners.resources import Resources
    from openuni.pipeline.scope import RunScope

    recipe = CorpusRecipe.load(given.recipe)
    known = {*recipe.filters, *recipe.annotators, "ingest", "encode"}
    for name in given.only or ():
        if name not in known:
            raise OpenUniError(f'--only "{name}" is not in {given.recipe}. It has: {", ".join(sorted(known))}.')
    if submission.is_wanted(given.submit, given.address, no_wait=given.no_wait):
        submission.submit_run(given, recipe)

    def resources(items: int) -> Resources:
        return api.default_resources(
            given.workers,
            given.gpus,
            given.address,
            items=items,
            workers_per_gpu=given.workers_per_gpu,
            placement_timeout_s=given.placement_timeout,
        )

    scope = RunScope(
        given.limit, tuple(given.only or ()), given.add, given.retry_failed, given.raise_errors, given.update_captions
    )
    corpus = api.run(recipe, list(given.sources or ()), out=given.out, resources=resources, scope=scope)
    outcomes = corpus.summary()
    print_text(outcomes)
    if outcomes.failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class ImportFlags:
    """Flags of `openuni import`."""

    format: Annotated[str, typer.Argument(help="Importer (see `openuni list`)")]
    folder: Annotated[Path, typer.Argument(help="Dataset folder")]
    out: Annotated[str, typer.Option("--out", "-o", help="Output corpus; created if missing")]
    collection: Annotated[str, typer.Option(help="Collection name. Default: folder name")] = ""
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="Option of the importer (see `openuni show FORMAT`); repeatable"
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option(help="Number of Ray workers; 0 runs in-process. Default: one per core")
    ] = None
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster")] = None
    submit: SubmitOption = None
    no_wait: NoWaitOption = False
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of clips")] = None
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry rejected clips")] = False
    raise_errors: Annotated[
        bool, typer.Option("--raise-errors", help="Stop at the first rejected clip and show its traceback")
    ] = False


@app.command("import")
@command_from_dataclass(ImportFlags)
def import_(given: ImportFlags) -> None:
    """Import a dataset into a corpus and validate every clip.

    Rerun to resume. Exit code 1 if clips were rejected.
    """
    from openuni import api
    from openuni.config.recipe import parse_assignments
    from openuni.exchange.import_job import ImportOptions

    if submission.is_wanted(given.submit, given.address, no_wait=given.no_wait):
        submission.submit_import(given)
    corpus = api.import_set(
        given.format,
        given.folder,
        out=given.out,
        options=parse_assignments(given.options or (), f"import {given.format}"),
        resources=api.default_resources(given.workers, 0.0, given.address),
        import_options=ImportOptions(given.collection, given.limit, given.retry_failed, given.raise_errors),
    )
    outcomes = corpus.summary()
    print_text(outcomes)
    if outcomes.failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class ExportFlags:
    """Flags of `openuni export`."""

    corpus: CorpusArgument
    format: Annotated[str, typer.Option(help="Exporter (see `openuni list`)")]
    out: Annotated[str, typer.Option("--out", "-o", help="Output directory; rerun to resume")]
    modalities: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated modalities, optionally with annotator (depth,raft.flow). "
            "Default: all that the format supports"
        ),
    ] = None
    split: Annotated[str | None, typer.Option(help="Export this split only")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of clips")] = None
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="Option of the exporter (see `openuni show FORMAT`); repeatable"
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of threads, or of Ray workers with --address. Default: one per core, or as many as fit on the "
            "cluster",
        ),
    ] = None
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster; all nodes must see the output directory")
    ] = None


@app.command()
@command_from_dataclass(ExportFlags)
def export(given: ExportFlags) -> None:
    """Export a corpus in another project's format.

    Rerun to resume. Exit code 1 if clips could not be exported; failed.csv lists them.
    """
    from openuni import api
    from openuni.config.recipe import parse_assignments
    from openuni.exchange.export_selection import ExportOptions

    modalities = tuple(name.strip() for name in (given.modalities or "").split(",") if name.strip())
    options = parse_assignments(given.options or (), f"export {given.format}")
    selection = ExportOptions(modalities, given.split, given.limit)
    report = api.export(
        given.corpus,
        given.format,
        out=given.out,
        export_options=selection,
        workers=given.workers,
        address=given.address,
        **options,
    )
    print_text(report)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def summary(
    corpus: CorpusArgument,
    as_json: Annotated[bool, typer.Option("--json", "-j", help="JSON output")] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Also show score distributions")] = False,
) -> None:
    """Show clip outcomes, modality coverage and storage size.

    Outcomes: ok, dropped (by rule), failed (by error), pending.
    """
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.manifests.corpus.coverage import coverage, stored_sizes
    from openuni.pipeline.encoding.quality import decoded_quality, format_quality
    from openuni.pipeline.ledger import summary_record
    from openuni.report.coverage import format_coverage, format_sizes

    opened = Corpus.open(corpus)
    quality = decoded_quality(opened)  # logs a warning for each damaged ledger
    outcomes, covered, sizes = opened.summary(), coverage(opened), stored_sizes(opened)
    if as_json:
        stored = {"coverage": covered, "stored": [size._asdict() for size in sizes]}
        stored["decoded_latents"] = [one._asdict() for one in quality]
        print_text(json.dumps(summary_record(outcomes) | stored, indent=2))
    else:
        parts = [str(outcomes), format_coverage(covered), format_sizes(sizes), format_quality(quality)]
        print_text("\n\n".join(filter(None, parts)))
        if scores:
            from openuni.report.histograms import histograms

            print_text(f"\n{histograms(opened)}")
    opened.require_shards(opened.groups())


@app.command()
def explain(
    corpus: CorpusArgument,
    clip: Annotated[str, typer.Argument(help="Clip id, prefix of a clip id, or source")],
) -> None:
    """Show all scores, rule results and errors of one clip."""
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.report.explain import explain as explanation

    print_text(explanation(Corpus.open(corpus), clip))


@app.command()
def select(
    corpus: CorpusArgument,
    keep: Annotated[str, typer.Option(help='Keep rule (SQL condition), such as "motion.speed_diag_per_s > 0.05"')],
    out: OutOption,
) -> None:
    """Create a corpus from the clips that pass a keep rule.

    Takes seconds; nothing is decoded, and payload files are shared with the original corpus.
    """
    from openuni import api

    selected = api.select(corpus, keep, out=out)
    print_text(f"{len(selected):,} clips in {out}")


@app.command()
def duplicates(
    corpus: CorpusArgument,
    by: Annotated[str, typer.Option(help="hash: near-duplicates; embedding: semantic duplicates")] = "hash",
    max_distance: Annotated[
        int | None, typer.Option(help="hash: maximum Hamming distance of two frames (of 64 bits)")
    ] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="embedding: minimum cosine similarity, at most 1")
    ] = None,
) -> None:
    """Find duplicates and mark one representative per cluster.

    Requires the scores of the filter perceptual_hash (for hash) or embedding (for embedding). Then keep one clip
    per cluster with keep = "duplicates.is_representative" (or semantic_duplicates.is_representative), in a recipe or
    with openuni select.
    """
    from openuni import api

    given = {"max_distance": max_distance, "min_similarity": min_similarity}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    print_text(api.duplicates(corpus, by, **options))


@app.command(cls=accepts_former_flags({"--share": "--fraction", "--anew": "--reassign"}))
def split(
    corpus: CorpusArgument,
    fraction: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FRACTION", help="Fraction of the clips in a split other than train; repeatable"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed")] = 0,
    reassign: Annotated[bool, typer.Option("--reassign", help="Also reassign clips that already have a split")] = False,
) -> None:
    """Assign a split to every clip.

    Clips are grouped by origin and stratified by modality. Clips that already have a split keep it: rerun after the
    corpus has grown. Default: --fraction validation=0.05
    """
    from openuni import api
    from openuni.config.recipe import parse_assignments

    fractions = parse_assignments(fraction or ("validation=0.05",), "--fraction")
    for name, count in api.split(corpus, fractions, seed=seed, reassign=reassign).items():
        print_text(f"{name:<12}{count:>12,} clips")


@app.command()
def compact(corpus: CorpusArgument) -> None:
    """Merge small Parquet parts, which many short runs leave.

    Queries open every part: thousands of small ones make them slow. `openuni run` and `openuni import` merge them at
    the end of a phase where at least half of 8 or more disappear. Rows and their order stay the same; nothing is
    recomputed, and shards are not rewritten. Safe to interrupt: rerun to resume.
    """
    from openuni import api

    for done in api.compact(corpus):
        print_text(done)
