"""Flags that were renamed: commands accept the former names, and help shows the current ones only."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer.core


def accepts_former_flags(renamed: Mapping[str, str]) -> type[typer.core.TyperCommand]:
    """A command class that reads the former flags `renamed` (former -> current, such as --like -> --preset)."""

    class Command(typer.core.TyperCommand):
        former_flags = renamed

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, current_flags(args, renamed))

    return Command


def current_flags(arguments: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """The arguments with former flags replaced; both `--flag value` and `--flag=value`, up to `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    current = []
    for argument in arguments[:end]:
        flag, equals, value = argument.partition("=")
        current.append(renamed[flag] + equals + value if flag in renamed else argument)
    return [*current, *arguments[end:]]
