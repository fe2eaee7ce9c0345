"""`--submit`: the same command as a job of a Ray cluster."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

import typer
from typer.models import ArgumentInfo

from openuni.console.logs import verbosity
from openuni.console.terminal import print_text
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.config.recipe import CorpusRecipe
    from openuni.manifests.contracts.component import Component

SubmitOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run the command as a job of a Ray cluster, such as http://HOST:8265 (its dashboard), and show its log",
    ),
]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="With --submit: do not wait for the job to end")]


def is_wanted(submit: str | None, address: str | None, *, no_wait: bool) -> bool:
    """Whether the command is to be submitted. Raises `OpenUniError` for flags that contradict each other."""
    if submit is None and no_wait:
        raise OpenUniError("--no-wait belongs to --submit ADDRESS")
    if submit is not None and address is not None:
        raise OpenUniError("--submit runs the command on the cluster itself; leave --address out")
    if submit == "":
        raise OpenUniError('--submit "": give the address of the cluster\'s dashboard, such as http://HOST:8265')
    return submit is not None


def submit_run(given: Any, recipe: "CorpusRecipe") -> NoReturn:
    """Submit `openuni run`; ends with the exit code of the job. `given`: its flags."""
    name = given.recipe.name
    if not given.recipe.is_file():
        raise OpenUniError(f"--submit sends the recipe, and {given.recipe} is not a file")
    components = list(recipe.components())
    _require_absolute(components, given.recipe)
    changes = {"recipe": name, "out": absolute(given.out), "sources": [absolute(one) for one in given.sources or ()]}
    _submit("run", dataclasses.replace(given, **changes), {name: given.recipe}, components)


def submit_import(given: Any) -> NoReturn:
    """Submit `openuni import`; ends with the exit code of the job. `given`: its flags."""
    from openuni.config.recipe import parse_assignments
    from openuni.exchange.importer import find_importer
    from openuni.manifests.contracts.parsing import parse_options

    where = f"import {given.format}"
    importer = parse_options(
        find_importer(given.format, imports=True), parse_assignments(given.options or (), where), where
    )
    changes = {"folder": absolute(str(given.folder)), "out": absolute(given.out)}
    _submit("import", dataclasses.replace(given, **changes), {}, [importer])


def _submit(command: str, given: Any, files: Mapping[str, Path], components: Sequence["Component"]) -> NoReturn:
    from openuni.pipeline.runners.job_files import local_modules
    from openuni.pipeline.runners.job_submission import follow, submit

    remote = dataclasses.replace(given, submit=None, no_wait=False, address="auto")
    sent = {**files, **local_modules(components)}
    job = submit(given.submit, [*["-v"] * verbosity(), command, *as_arguments(remote)], sent)
    print_text(f"submitted job {job.job_id} to {given.submit}; sent: {', '.join(sent) or 'no files'}", error=True)
    print_text(f"stop it with:   {job.stop_command}\nfollow it with: {job.follow_command}", error=True)
    if given.no_wait:
        raise typer.Exit(0)
    try:
        code = follow(job, lambda text: print_text(text, end=""))
    except KeyboardInterrupt:
        print_text(f"openuni: the job goes on. Stop it with: {job.stop_command}", error=True)
        raise typer.Exit(130) from None
    print_text(f"job {job.job_id} ended with exit code {code}", error=True)
    raise typer.Exit(code)


def absolute(name: str) -> str:
    """A path as every node of the cluster must see it; URLs stay as they are."""
    return name if "://" in name else str(Path(name).expanduser().absolute())


def as_arguments(given: Any) -> list[str]:
    """The command-line arguments that give these flags: options that are not at their defaults, then arguments."""
    options: list[str] = []
    arguments: list[str] = []
    hints = get_type_hints(type(given), include_extras=True)
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        info = hints[field.name].__metadata__[0]
        values = list(value) if isinstance(value, list | tuple) else [value]
        if isinstance(info, ArgumentInfo):
            arguments += [str(one) for one in values if one is not None]
        elif value is not None and value != field.default:
            names = (info.default, *(info.param_decls or ()))  # Typer takes the first name for the default
            declared = [name for name in names if isinstance(name, str) and name.startswith("--")]
            flag = declared[0] if declared else f"--{field.name.replace('_', '-')}"
            options += [flag] if value is True else [f"{flag}={one}" for one in values]
    return [*options, *(["--", *arguments] if arguments else [])]


def _require_absolute(components: Iterable["Component"], recipe: Path) -> None:
    """Raise `OpenUniError` for checkpoints given by relative paths: a job starts in a folder of its own."""
    for component in components:
        for checkpoint in component.checkpoints():
            if checkpoint.store == "path" and not Path(checkpoint.ref).expanduser().is_absolute():
                raise OpenUniError(
                    f"{component.name()}: checkpoint = {checkpoint.ref!r} in {recipe} is a relative path, which means "
                    "nothing on the cluster. Give an absolute path that every node sees, or a hub name."
                )
