"""Command on corpora and training runs: verify."""

import json
from typing import Annotated

import typer

from openuni.cli.app import app
from openuni.console.terminal import print_text


@app.command()
def verify(
    path: Annotated[str, typer.Argument(help="Corpus (folder or URL) or training run (folder)")],
    sample: Annotated[
        float | None,
        typer.Option(help="Verify a random sample of the payloads only: a fraction below 1, or a number of payloads"),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Move what is damaged to damaged/TIME/, so that the next run recomputes it"),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of threads. Default: one per core, up to 8")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", "-j", help="JSON output")] = False,
) -> None:
    """Verify all files of a corpus or training run.

    Lists what is damaged and what depends on it. Exit code 0 if it is sound or was repaired, 1 if something is
    damaged.
    """
    from openuni import api

    report = api.verify(path, sample, repair=repair, workers=workers)
    print_text(json.dumps(report.as_record(), indent=2) if as_json else report)
    if not report.is_sound:
        raise typer.Exit(1)
