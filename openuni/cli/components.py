"""What there is and what it needs: list, show, init, doctor, checkpoints."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from openuni.cli.app import RecipeArgument, app
from openuni.manifests.errors import OpenUniError


@app.command("list")
def list_() -> None:
    """Show what there is: filters, annotators, modalities, codecs, models."""
    from openuni.manifests.contracts.discovery import all_component_names

    for kind, names in all_component_names().items():
        print(f"{kind:<11} {'  '.join(names)}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A name that `openuni list` shows, or a dotted path")]) -> None:
    """Show one part: its options with defaults, its columns with types and units, its source and licence."""
    from openuni.config.template import component_page

    print(component_page(name))


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The file to write")] = Path("corpus.toml"),
    like: Annotated[
        str, typer.Option(help="A published pipeline to begin with: openuni, koala, open_sora or videox_fun")
    ] = "",
) -> None:
    """Write a recipe: a complete, commented one, or one with the thresholds of a published pipeline."""
    from openuni.config.template import preset_recipe, recipe_template

    text = preset_recipe(like) if like else recipe_template(file.name)
    if file.exists():
        raise OpenUniError(f"{file} exists already. Give another name, or delete it first.")
    file.write_text(text)
    print(f"wrote {file}. Next: {shlex.join(['openuni', 'doctor', str(file)])}")


@app.command()
def doctor(
    recipe: RecipeArgument,
    out: Annotated[str, typer.Option("--out", help="Where the corpus is to lie: its free space is checked")] = ".",
    gpus: Annotated[float, typer.Option(help="GPUs the run is to use")] = 0.0,
) -> None:
    """Check that this machine has all that a recipe needs; each gap comes with the command that mends it."""
    from openuni.config.recipe import CorpusRecipe
    from openuni.report.doctor import run_checks

    findings = run_checks(CorpusRecipe.load(recipe), out, gpus)
    for finding in findings:
        print(f"{finding.level:<11} {finding.what}: {finding.text}")
    if any(finding.is_blocking for finding in findings):
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
        from openuni.report.checkpoints import table

        print(table())


CheckpointNames = Annotated[
    list[str] | None, typer.Argument(help="Names that the list shows, or parts (depth_anything: its default)")
]


RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="All that this recipe needs")]


@checkpoints.command()
def get(wanted: CheckpointNames = None, recipe: RecipeOption = None) -> None:
    """Fetch checkpoints and verify them. Stopped downloads go on where they stopped."""
    from openuni.report.checkpoints import fetch, select_checkpoints

    for checkpoint in select_checkpoints(wanted or (), recipe):
        print(f"{checkpoint.ref}: {fetch(checkpoint)}")


@checkpoints.command()
def verify(wanted: CheckpointNames = None, recipe: RecipeOption = None) -> None:
    """Hold the files that are here against their publishers' digests. Default: all that are here."""
    from openuni.report.checkpoints import select_checkpoints, verify_checkpoint

    for checkpoint in select_checkpoints(wanted or (), recipe, default="present"):
        print(f"{checkpoint.ref}: {verify_checkpoint(checkpoint)}")
