"""Components and their requirements: list, show, init, doctor, checkpoints."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from openuni import __version__
from openuni.cli.app import RecipeArgument, app
from openuni.cli.former_flags import accepts_former_flags
from openuni.console.logs import show_logs
from openuni.console.terminal import print_text
from openuni.manifests.errors import OpenUniError


def _print_version(wanted: bool) -> None:
    if wanted:
        print_text(f"openuni {__version__}")
        raise typer.Exit


@app.callback()
def openuni_(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Show log messages; -vv shows debug messages.")
    ] = 0,
) -> None:
    """Options of `openuni` itself. The help text is that of the app."""
    show_logs(verbose)


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", "-j", help="JSON output: an object of names by kind")] = False,
) -> None:
    """List components, training recipes and corpus presets.

    Components are filters, annotators, modalities, shot detectors, deduplicators, importers, exporters, codecs and
    models. Describe one with: openuni show NAME
    """
    from openuni.report.catalogue import all_names, format_names

    print_text(
        json.dumps(all_names(), indent=2) if as_json else format_names(shutil.get_terminal_size((120, 24)).columns)
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A name that `openuni list` shows, a column, or a dotted path")],
) -> None:
    """Describe a component, recipe, preset or column.

    For components: options with defaults, columns with types and units, source and licence.
    """
    from openuni.report.catalogue import page

    print_text(page(name))


@app.command(cls=accepts_former_flags({"--like": "--preset"}))
def init(
    file: Annotated[Path, typer.Argument(help="Output file")] = Path("corpus.toml"),
    preset: Annotated[
        str, typer.Option(help="Start from a published pipeline: openuni, koala, open_sora or videox_fun")
    ] = "",
) -> None:
    """Write a corpus recipe: all options, or a preset.

    Without --preset, the recipe shows every option with its default as a comment. With --preset, it has the
    thresholds of a published pipeline.
    """
    from openuni.config.template import preset_recipe, recipe_template
    from openuni.manifests.storage.store import require_folder

    text = preset_recipe(preset) if preset else recipe_template(file.name)
    if file.is_dir():
        raise OpenUniError(f"{file} is a folder. Pass a file name, such as {file / 'corpus.toml'}.")
    if file.exists():
        raise OpenUniError(f"{file} already exists. Pass a different file name, or delete it first.")
    require_folder(file.parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    print_text(f"wrote {file}. Next: {shlex.join(['openuni', 'doctor', str(file)])}")


@app.command()
def doctor(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Option("--out", "-o", help="Output directory; its free space is checked")] = ".",
    gpus: Annotated[float | None, typer.Option(help="Number of GPUs. Default: 0, and all of a cluster")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster, whose nodes are checked too")] = None,
    as_json: Annotated[bool, typer.Option("--json", "-j", help="JSON output: checks, and facts of every node")] = False,
) -> None:
    """Run the preflight checks for a recipe.

    Every failed check names the command that fixes it. Exit code 2 if a check fails. With --address, every node of the
    cluster is asked for its versions, checkpoints, environments of operators, free disk, GPUs, decoders and clock, and
    for its view of an existing corpus at --out; a table shows them. Notes, such as a clock that is over 5 s off, do not
    prevent a run.
    """
    from openuni.config.recipe import CorpusRecipe
    from openuni.report.doctor import run_checks

    parsed = CorpusRecipe.load(recipe)
    results = run_checks(parsed, out, gpus if gpus and address is None else 0.0, on_cluster=address is not None)
    cluster = None
    if address is not None:
        from openuni.report.cluster import check_cluster

        cluster = check_cluster(parsed, address, gpus, out)
        results += cluster.checks
    if as_json:
        nodes = cluster.nodes_record() if cluster is not None else []
        print_text(json.dumps({"checks": [result._asdict() for result in results], "nodes": nodes}, indent=2))
    else:
        for result in results:
            print_text(f"{result.level:<11} {result.what}: {result.text}")
        if cluster is not None:
            print_text(f"\n{cluster.table()}")
    if any(result.is_blocking for result in results):
        raise typer.Exit(2)


checkpoints = typer.Typer(rich_markup_mode=None)


app.add_typer(checkpoints, name="checkpoints")


@checkpoints.callback(invoke_without_command=True)
def checkpoints_(context: typer.Context) -> None:
    """List, download and verify checkpoints.

    Without a subcommand: list all checkpoints that components can use. Nothing is downloaded except by `get`.
    Checkpoints are first looked up in the folder that the environment variable OPENUNI_CHECKPOINTS names: a mirror
    for machines without a network, with each file as REF and each repository as the folder REF.
    """
    if context.invoked_subcommand is None:
        from openuni.report.checkpoints import table

        print_text(table())


CheckpointNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME", help="Checkpoints (see `openuni checkpoints`), or components for their default checkpoints"
    ),
]


RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="All checkpoints that this recipe needs")]


@checkpoints.command()
def get(wanted: CheckpointNames = None, recipe: RecipeOption = None) -> None:
    """Download and verify checkpoints. Interrupted downloads resume."""
    from openuni.report.checkpoints import fetch, select_checkpoints

    for checkpoint in select_checkpoints(wanted or (), recipe):
        print_text(f"{checkpoint.ref}: {fetch(checkpoint)}")


@checkpoints.command()
def verify(wanted: CheckpointNames = None, recipe: RecipeOption = None) -> None:
    """Verify local files against the published digests. Default: all local files."""
    from openuni.report.checkpoints import select_checkpoints, verify_checkpoint

    for checkpoint in select_checkpoints(wanted or (), recipe, default="present"):
        print_text(f"{checkpoint.ref}: {verify_checkpoint(checkpoint)}")
