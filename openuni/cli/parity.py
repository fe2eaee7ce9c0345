"""Parity: what the models keep of a pretrained backbone, checked on the backbone that the user has."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from openuni.cli.app import app, command_from_dataclass


@dataclass(frozen=True)
class ParityFlags:
    """Flags of `openuni parity`."""

    pretrained: Annotated[str, typer.Option(help="A diffusers Wan transformer or pipeline: folder or hub name")]
    model: Annotated[list[str] | None, typer.Option(help="A model; may be repeated. Default: all on Wan")] = None
    modality: Annotated[
        list[str] | None, typer.Option(help="A stream of models with several; may be repeated. Default: rgb and depth")
    ] = None
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto: the GPU when there is one")] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Arithmetic; weights are float32")] = "float32"
    json: Annotated[bool, typer.Option("--json", help="As JSON")] = False


@app.command()
@command_from_dataclass(ParityFlags)
def parity(given: ParityFlags) -> None:
    """Check on your weights that the models are at the start what diffusers makes of them, and can learn from there.

    Exit code 1 when a rung of the ladder fails.
    """
    from openuni.report.parity import FAILING_STATUSES, HEADER, format_row, record, run_parity

    rungs: list[dict[str, Any]] = []
    wanted = (given.model or (), given.modality or ("rgb", "depth"), given.device, given.dtype)
    for model, rung in run_parity(given.pretrained, *wanted):
        if not given.json and not rungs:
            print(HEADER)
        if not given.json:
            print(format_row(model, rung), flush=True)
        rungs.append(record(model, rung))
    if given.json:
        print(json.dumps(rungs, indent=2, allow_nan=False))
    if any(rung["verdict"] in FAILING_STATUSES for rung in rungs):
        raise typer.Exit(1)
