"""The app that all commands belong to, and what they share."""

import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
import typer.core

from openuni.manifests.graceful_shutdown import Terminated


class Interrupted(Exception):
    """Ctrl-C or another signal, once all that was open is closed. `number`: that of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Commands(typer.core.TyperGroup):
    """All commands. Typer would end the process by itself at Ctrl-C, without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises `Interrupted` at Ctrl-C, and at the signals that a command treats like it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
            raise Interrupted(number) from interrupt


def is_first_rank() -> bool:
    """Whether this process prints: it is alone, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build multi-modal video corpora from raw clips, and train unified video models on them. Begin with: "
    "openuni demo --quick",
)

F = TypeVar("F")


def command_from_dataclass(kind: type[F]) -> Callable[[Callable[[F], None]], Callable[..., None]]:
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


RecipeArgument = Annotated[Path, typer.Argument(help="Corpus recipe; create one with: openuni init corpus.toml")]
CorpusArgument = Annotated[str, typer.Argument(help="Corpus: folder, or URL such as s3://bucket/corpus")]
OutOption = Annotated[str, typer.Option("--out", "-o", help="Output directory (or URL)")]
