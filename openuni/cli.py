"""The command line: flags say where and how much, the recipe says what.

Exit codes: 0 done, 1 some clips failed, 2 wrong input or a missing part, 3 a fault of openuni itself, 130 stopped by
Ctrl-C.
"""

import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from manifests.errors import OpenUniError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Build multi-modal video corpora from raw clips, and train unified video models on them. Begin with: "
    "openuni demo --quick",
)

F = TypeVar("F")


def flags(kind: type[F]) -> Callable[[Callable[[F], None]], Callable[..., None]]:
    """A command whose flags are the fields of a frozen dataclass, as an operator's options are."""

    def wrap(command: Callable[[F], None]) -> Callable[..., None]:
        def run_command(**given: Any) -> None:
            command(kind(**given))

        hints = get_type_hints(kind, include_extras=True)
        run_command.__name__, run_command.__doc__ = command.__name__, command.__doc__
        run_command.__annotations__ = hints
        run_command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what Typer reads
            [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.default is MISSING else field.default,
                    annotation=hints[field.name],
                )
                for field in fields(kind)  # type: ignore[arg-type]
            ]
        )
        return run_command

    return wrap


RecipeFile = Annotated[Path, typer.Argument(help="A recipe; write one with: openuni init corpus.toml")]
CorpusPlace = Annotated[str, typer.Argument(help="A corpus: a folder, or a URL such as s3://bucket/corpus")]
Out = Annotated[str, typer.Option("--out", help="Where to write it")]


@app.command("list")
def list_() -> None:
    """Show what there is: filters, annotators, modalities, codecs, models."""
    from openuni.listing import listing

    for kind, names in listing().items():
        print(f"{kind:<11} {'  '.join(names)}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A name that `openuni list` shows, or a dotted path")]) -> None:
    """Show one part: its options with defaults, its columns with types and units, its source and licence."""
    from openuni.template import page

    print(page(name))


@app.command()
def init(file: Annotated[Path, typer.Argument(help="The file to write")] = Path("corpus.toml")) -> None:
    """Write a complete, commented recipe."""
    from openuni.template import recipe_text

    if file.exists():
        raise OpenUniError(f"{file} exists already. Give another name, or delete it first.")
    file.write_text(recipe_text(file.name))
    print(f"wrote {file}. Next: openuni doctor {file}")


@app.command()
def doctor(
    recipe: RecipeFile,
    out: Annotated[str, typer.Option("--out", help="Where the corpus is to lie: its free space is checked")] = ".",
    gpus: Annotated[float, typer.Option(help="GPUs the run is to use")] = 0.0,
) -> None:
    """Check that this machine has all that a recipe needs; each gap comes with the command that mends it."""
    from openuni.doctor import examine
    from openuni.recipe import Recipe

    findings = examine(Recipe.load(recipe), out, gpus)
    for finding in findings:
        print(f"{finding.level:<11} {finding.what}: {finding.text}")
    if any(finding.is_gap for finding in findings):
        raise typer.Exit(2)


checkpoints = typer.Typer(help="Weights: list, get and verify them.", rich_markup_mode=None)
app.add_typer(checkpoints, name="checkpoints")


@checkpoints.callback(invoke_without_command=True)
def checkpoints_(context: typer.Context) -> None:
    """Weights: what the parts of OpenUni can use, and what of it is here. Nothing is fetched unless asked for.

    Alone, it lists all. A folder named by the environment variable OPENUNI_CHECKPOINTS is looked in first: a mirror
    for machines without a network, with each file as REF and each repository as the folder REF.
    """
    if context.invoked_subcommand is None:
        from openuni.checkpoints import table

        print(table())


Wanted = Annotated[
    list[str] | None, typer.Argument(help="Names that the list shows, or parts (depth_anything: its default)")
]
ForRecipe = Annotated[Path | None, typer.Option("--recipe", help="All that this recipe needs")]


@checkpoints.command()
def get(wanted: Wanted = None, recipe: ForRecipe = None) -> None:
    """Fetch checkpoints and verify them. Stopped downloads go on where they stopped."""
    from openuni.checkpoints import chosen, fetch

    for checkpoint in chosen(wanted or (), recipe):
        print(f"{checkpoint.ref}: {fetch(checkpoint)}")


@checkpoints.command()
def verify(wanted: Wanted = None, recipe: ForRecipe = None) -> None:
    """Hold the files that are here against their publishers' digests. Default: all that are here."""
    from openuni.checkpoints import chosen, verdict

    for checkpoint in chosen(wanted or (), recipe, default="present"):
        print(f"{checkpoint.ref}: {verdict(checkpoint)}")


@dataclass(frozen=True)
class RunFlags:
    """Flags of `openuni run`."""

    recipe: RecipeFile
    out: Out
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
@flags(RunFlags)
def run(given: RunFlags) -> None:
    """Build a corpus: ingest, filter, annotate, encode. Run it again to resume, or after changing the recipe."""
    from openuni import api
    from openuni.pipeline import Scope
    from openuni.recipe import Recipe

    recipe = Recipe.load(given.recipe)
    known = {*recipe.filters, *recipe.annotators, "ingest", "encode"}
    for name in given.only or ():
        if name not in known:
            raise OpenUniError(f'--only "{name}" is not in {given.recipe}. It has: {", ".join(sorted(known))}.')
    resources = api.default_resources(given.workers, given.gpus, given.address)
    scope = Scope(given.limit, tuple(given.only or ()), given.add, given.retry_failed)
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
@flags(ImportFlags)
def import_(given: ImportFlags) -> None:
    """Bring another project's set into a corpus, every clip checked. Run it again to go on where it stopped."""
    from openuni import api
    from openuni.importing import Choice
    from openuni.recipe import parse_texts

    corpus = api.import_set(
        given.format,
        given.folder,
        out=given.out,
        options=parse_texts(given.options or (), f"import {given.format}"),
        resources=api.default_resources(given.workers, 0.0),
        choice=Choice(given.collection, given.limit, given.retry_failed),
    )
    ledger = corpus.summary()
    print(ledger)
    if ledger.failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class ExportFlags:
    """Flags of `openuni export`."""

    corpus: CorpusPlace
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
@flags(ExportFlags)
def export(given: ExportFlags) -> None:
    """Write a corpus as another project reads it: openuni-csv, univid, diffsynth, webdataset, huggingface."""
    from openuni import api
    from openuni.recipe import parse_texts
    from openuni.selection import Choice

    wanted = tuple(name.strip() for name in (given.modalities or "").split(",") if name.strip())
    options = parse_texts(given.options or (), f"export {given.format}")
    choice = Choice(wanted, given.split, given.limit)
    report = api.export(given.corpus, given.format, out=given.out, choice=choice, workers=given.workers, **options)
    print(report)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def summary(
    corpus: CorpusPlace,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs")] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Also how each score is spread over the clips")] = False,
) -> None:
    """Show what became of every clip (ok, dropped by which rule, failed for which reason), and who has what."""
    from manifests.corpus import Corpus
    from manifests.presence import coverage, coverage_text
    from openuni.ledger import summary_record

    opened = Corpus.open(corpus)
    ledger, covered = opened.summary(), coverage(opened)
    if as_json:
        print(json.dumps(summary_record(ledger) | {"coverage": covered}, indent=2))
    else:
        print(f"{ledger}\n\n{coverage_text(covered)}")
        if scores:
            from openuni.histograms import histograms

            print(f"\n{histograms(opened)}")


@app.command()
def explain(
    corpus: CorpusPlace,
    clip: Annotated[str, typer.Argument(help="A clip_id, its beginning, or the source of the clip")],
) -> None:
    """Show all that is known of one clip: every score, rule and error."""
    from manifests.corpus import Corpus
    from openuni.explain import explain as text_about

    print(text_about(Corpus.open(corpus), clip))


@app.command()
def select(
    corpus: CorpusPlace,
    keep: Annotated[str, typer.Option(help='SQL over the scores, such as "motion.speed_diag_per_s > 0.05"')],
    out: Out,
) -> None:
    """Make a new corpus of the clips that pass other thresholds: seconds, nothing is decoded."""
    from openuni import api

    chosen = api.select(corpus, keep, out=out)
    print(f"{len(chosen):,} clips in {out}")


@app.command()
def split(
    corpus: CorpusPlace,
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
    from openuni.recipe import parse_texts

    shares = parse_texts(share or ("validation=0.05",), "--share")
    for name, count in api.split(corpus, shares, seed=seed, anew=anew).items():
        print(f"{name:<12}{count:>12,} clips")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe of train/recipes by name, or a file")],
    corpus: Annotated[str, typer.Option(help="The corpus to train on")],
    out: Out,
) -> None:
    """Train a unified model on a corpus's latents. Run it again to resume."""
    from openuni import api
    from openuni.progress import Reporter, TrainingProgress
    from train.recipe import Recipe

    steps = Recipe.load(recipe).optimizer.steps
    with Reporter() as reporter:
        finished = api.train(recipe, corpus, out=out, progress=TrainingProgress(reporter, steps))
    print(f"trained {finished.checkpoint.step:,} steps: {out}. Next: openuni generate {out} --make rgb --prompt '...'")


@dataclass(frozen=True)
class GenerateFlags:
    """Flags of `openuni generate`."""

    run: Annotated[Path, typer.Argument(help="A training run")]
    make: Annotated[list[str], typer.Option(help="A modality to make; may be repeated")]
    out: Annotated[Path, typer.Option("--out", help="Folder for the results")]
    prompt: Annotated[str, typer.Option(help="What the video shows")] = ""
    given: Annotated[list[str] | None, typer.Option(help="MODALITY=VIDEO that is given; may be repeated")] = None
    size: Annotated[str | None, typer.Option(help="FRAMESxHEIGHTxWIDTH, frames 4k + 1. Default: as trained")] = None
    fps: Annotated[float, typer.Option(min=1, help="Frames per second of the videos written")] = 16.0
    steps: Annotated[int, typer.Option(min=1, help="Solver steps")] = 30
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance on the prompt; 1: none")] = 1.0
    seed: Annotated[int, typer.Option(help="Of the noise")] = 0


@app.command()
@flags(GenerateFlags)
def generate(given: GenerateFlags) -> None:
    """Make modalities with a trained model: from text, from other modalities, or both."""
    from openuni.generate import Request, make_files

    wanted = Request(
        make=tuple(given.make),
        prompt=given.prompt,
        given=tuple(given.given or ()),
        size=given.size,
        fps=given.fps,
        steps=given.steps,
        guidance=given.guidance,
        seed=given.seed,
    )
    for path in make_files(given.run, wanted, given.out):
        print(path)


@dataclass(frozen=True)
class WorldFlags:
    """Flags of `openuni world`."""

    preset: Annotated[
        str,
        typer.Option(help="Kind of scene: person, persons, scenes, interiors, layers, solids, still or dark"),
    ]
    out: Annotated[Path, typer.Option("--out", help="Folder for the clips")]
    clips: Annotated[int, typer.Option(min=1, help="How many")] = 10
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip")] = 21
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels, both even")] = "480x640"
    fps: Annotated[float, typer.Option(min=1, help="Frames per second")] = 16.0
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip; the others count on from it")] = 0
    modalities: Annotated[str, typer.Option(help="Which ground truth, with commas between. Default: all there is")] = ""
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core")] = None


@app.command()
@flags(WorldFlags)
def world(given: WorldFlags) -> None:
    """Make clips of synthetic scenes with exact ground truth beside them. Run it again to resume."""
    from openuni.progress import Reporter
    from openuni.world.command import Request, make_world

    print(make_world(Request(**vars(given)), Reporter()))


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smaller one, under 90 seconds on 2 cores")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for clips, corpus, run and page")] = Path("openuni-demo"),
) -> None:
    """Do all of it on home-made clips: build a corpus, train a small model, write a page that shows what came out."""
    from openuni.demo import run_demo

    page = run_demo(out, quick=quick)
    print(f"the page is {page.resolve().as_uri()}")


def main() -> None:
    """The console script."""
    # waiting threads sleep instead of spinning: on a machine that does anything else, spinning makes training on the
    # CPU twenty times slower; set before torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # operators of the user's own packages are found in the folder where the command runs; ours come first
    sys.path.append(str(Path.cwd()))
    try:
        app()
    except OpenUniError as error:
        print(f"openuni: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a file that cannot be read or written where the user said
        print(f"openuni: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:  # 1 would read as "some clips failed"
        traceback.print_exc()
        print("openuni: this is a fault of openuni; please report it with the lines above.", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("openuni: stopped. What is finished is kept; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
