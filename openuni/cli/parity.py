"""Parity checks: compare the models with their pretrained backbone."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from openuni.cli.app import app, command_from_dataclass
from openuni.console.terminal import print_text


@dataclass(frozen=True)
class ParityFlags:
    """Flags of `openuni parity`."""

    pretrained: Annotated[str, typer.Option(help="Diffusers Wan transformer or pipeline: folder or hub name")]
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Model to check; repeatable. Default: all Wan models")
    ] = None
    modality: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Stream of models with several streams; repeatable. Default: rgb and depth"),
    ] = None
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, or auto (GPU if available)")] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Computation dtype; weights stay float32")] = (
        "float32"
    )
    json: Annotated[bool, typer.Option("--json", "-j", help="JSON output")] = False


@app.command()
@command_from_dataclass(ParityFlags)
def parity(flags: ParityFlags) -> None:
    """Check that the models match diffusers on your weights.

    Compares the output of untrained models with that of diffusers, and checks that all new parameters receive
    gradients. Exit code 1 if a check fails.
    """
    from openuni.report.parity import FAILING_STATUSES, HEADER, format_row, record, run_parity

    records: list[dict[str, Any]] = []
    selection = (flags.model or (), flags.modality or ("rgb", "depth"), flags.device, flags.dtype)
    for model, result in run_parity(flags.pretrained, *selection):
        if not flags.json and not records:
            print_text(HEADER)
        if not flags.json:
            print_text(format_row(model, result))
        records.append(record(model, result))
    if flags.json:
        print_text(json.dumps(records, indent=2, allow_nan=False))
    if any(found["verdict"] in FAILING_STATUSES for found in records):
        raise typer.Exit(1)
