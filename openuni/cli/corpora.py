"""Corpora: run, import, export, summary, explain, select, duplicates, split."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from openuni.cli.app import CorpusArgument, OutOption, RecipeArgument, app, command_from_dataclass
from openuni.manifests.errors import OpenUniError


@dataclass(frozen=True)
class RunFlags:
    """Flags of `openuni run`."""

    recipe: RecipeArgument
    out: OutOption
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Videos, folders, patterns, .txt lists, http(s) or s3 URLs. None: the clips in the corpus"),
    ] = None
    workers: Annotated[int | None, typer.Option(help="Ray workers; 0: this process. Default: one per GPU, or core")] = (
        None
    )
    gpus: Annotated[float | None, typer.Option(help="GPUs to share among the workers. Default: all there are")] = None
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster to join")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N sources (or clips)")] = None
    only: Annotated[
        list[str] | None, typer.Option(help="Only this operator, or ingest, or encode; may be repeated")
    ] = None
    add: Annotated[bool, typer.Option("--add", help="Add other sources to a corpus that holds some already")] = False
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do again what failed before")] = False


@app.command()
@command_from_dataclass(RunFlags)
def run(given: RunFlags) -> None:
    """Build a corpus: ingest, filter, annotate, encode. Run it again to resume, or after changing the recipe."""
    from openuni import api
    from openuni.config.recipe import CorpusRecipe
    from openuni.pipeline.pipeline import RunScope

    recipe = CorpusRecipe.load(given.recipe)
    known = {*recipe.filters, *recipe.annotators, "ingest", "encode"}
    for name in given.only or ():
        if name not in known:
            raise OpenUniError(f'--only "{name}" is not in {given.recipe}. It has: {", ".join(sorted(known))}.')
    resources = api.default_resources(given.workers, given.gpus, given.address)
    scope = RunScope(given.limit, tuple(given.only or ()), given.add, given.retry_failed)
    corpus = api.run(recipe, list(given.sources or ()), out=given.out, resources=resources, scope=scope)
    ledger = corpus.summary()
    print(ledger)
    if ledger.failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class ImportFlags:
    """Flags of `openuni import`."""

    format: Annotated[str, typer.Argument(help="A format that `openuni list` shows under importers")]
    folder: Annotated[Path, typer.Argument(help="The folder that holds the set")]
    out: Annotated[str, typer.Option("--out", help="The corpus to make or to extend")]
    collection: Annotated[str, typer.Option(help="What to call the set. Default: the folder's name")] = ""
    options: Annotated[
        list[str] | None, typer.Option("--set", help="OPTION=VALUE of the format; `openuni show FORMAT` lists them")
    ] = None
    workers: Annotated[int | None, typer.Option(help="Ray workers; 0: this process. Default: one per core")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N clips")] = None
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Read again what was refused before")] = False


@app.command("import")
@command_from_dataclass(ImportFlags)
def import_(given: ImportFlags) -> None:
    """Bring another project's set into a corpus, every clip checked. Run it again to go on where it stopped."""
    from openuni import api
    from openuni.config.recipe import parse_assignments
    from openuni.exchange.import_job import ImportOptions

    corpus = api.import_set(
        given.format,
        given.folder,
        out=given.out,
        options=parse_assignments(given.options or (), f"import {given.format}"),
        resources=api.default_resources(given.workers, 0.0),
        import_options=ImportOptions(given.collection, given.limit, given.retry_failed),
    )
    ledger = corpus.summary()
    print(ledger)
    if ledger.failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class ExportFlags:
    """Flags of `openuni export`."""

    corpus: CorpusArgument
    format: Annotated[str, typer.Option(help="A format that `openuni list` shows under exporters")]
    out: Annotated[str, typer.Option("--out", help="Folder for the set; run again to resume")]
    modalities: Annotated[
        str | None, typer.Option(help="Such as depth,raft.flow: a modality, or who made it. Default: all it can hold")
    ] = None
    split: Annotated[str | None, typer.Option(help="Only the clips of this split")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N clips")] = None
    options: Annotated[
        list[str] | None, typer.Option("--set", help="OPTION=VALUE of the format; `openuni show FORMAT` lists them")
    ] = None
    workers: Annotated[int | None, typer.Option(min=1, help="Threads. Default: one per core")] = None


@app.command()
@command_from_dataclass(ExportFlags)
def export(given: ExportFlags) -> None:
    """Write a corpus as another project reads it; `openuni list` shows the formats. Run it again to resume."""
    from openuni import api
    from openuni.config.recipe import parse_assignments
    from openuni.exchange.export_selection import ExportOptions

    wanted = tuple(name.strip() for name in (given.modalities or "").split(",") if name.strip())
    options = parse_assignments(given.options or (), f"export {given.format}")
    chosen = ExportOptions(wanted, given.split, given.limit)
    report = api.export(
        given.corpus, given.format, out=given.out, export_options=chosen, workers=given.workers, **options
    )
    print(report)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def summary(
    corpus: CorpusArgument,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs")] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Also how each score is spread over the clips")] = False,
) -> None:
    """Show what became of every clip (ok, dropped by which rule, failed for which reason), who has what, its size."""
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.manifests.corpus.coverage import coverage, stored_sizes
    from openuni.pipeline.ledger import summary_record
    from openuni.report.coverage import format_coverage, format_sizes

    opened = Corpus.open(corpus)
    ledger, covered, sizes = opened.summary(), coverage(opened), stored_sizes(opened)
    if as_json:
        held = {"coverage": covered, "stored": [size._asdict() for size in sizes]}
        print(json.dumps(summary_record(ledger) | held, indent=2))
    else:
        print("\n\n".join(filter(None, [str(ledger), format_coverage(covered), format_sizes(sizes)])))
        if scores:
            from openuni.report.histograms import histograms

            print(f"\n{histograms(opened)}")


@app.command()
def explain(
    corpus: CorpusArgument,
    clip: Annotated[str, typer.Argument(help="A clip_id, its beginning, or the source of the clip")],
) -> None:
    """Show all that is known of one clip: every score, rule and error."""
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.report.explain import explain as text_about

    print(text_about(Corpus.open(corpus), clip))


@app.command()
def select(
    corpus: CorpusArgument,
    keep: Annotated[str, typer.Option(help='SQL over the scores, such as "motion.speed_diag_per_s > 0.05"')],
    out: OutOption,
) -> None:
    """Make a new corpus of the clips that pass other thresholds: seconds, nothing is decoded."""
    from openuni import api

    chosen = api.select(corpus, keep, out=out)
    print(f"{len(chosen):,} clips in {out}")


@app.command()
def duplicates(
    corpus: CorpusArgument,
    by: Annotated[str, typer.Option(help="hash: copies; embedding: clips of the same content")] = "hash",
    max_distance: Annotated[int | None, typer.Option(help="hash: bits of 64 in which frames may differ")] = None,
    min_similarity: Annotated[float | None, typer.Option(help="embedding: cosine from which on, up to 1")] = None,
) -> None:
    """Find clips that show the same, over the whole corpus, and say which one of them to keep.

    Needs the scores of the filter perceptual_hash, or embedding. Then keep one of each with
    keep = "duplicates.is_representative" (or semantic_duplicates), in a recipe or with openuni select.
    """
    from openuni import api

    given = {"max_distance": max_distance, "min_similarity": min_similarity}
    options = {name: value for name, value in given.items() if value is not None}
    print(api.duplicates(corpus, by, **options))


@app.command()
def split(
    corpus: CorpusArgument,
    share: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE of a split besides train; may be repeated")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed deals out otherwise")] = 0,
    anew: Annotated[bool, typer.Option("--anew", help="Move clips that have a split already, too")] = False,
) -> None:
    """Give every clip a split, by origin and even over modalities. Run it again when the corpus has grown.

    Clips that have a split keep it. Default: --share validation=0.05.
    """
    from openuni import api
    from openuni.config.recipe import parse_assignments

    shares = parse_assignments(share or ("validation=0.05",), "--share")
    for name, count in api.split(corpus, shares, seed=seed, anew=anew).items():
        print(f"{name:<12}{count:>12,} clips")
