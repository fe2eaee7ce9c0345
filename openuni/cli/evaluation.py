"""Command that measures quality: evaluate."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from openuni.cli.app import app, command_from_dataclass
from openuni.console.terminal import print_text
from openuni.manifests.errors import OpenUniError
from openuni.training.run_files import EXPORT_FILE, RUN_FILE

if TYPE_CHECKING:
    from openuni.evaluation.evaluation import Evaluation


@dataclass(frozen=True)
class EvaluateFlags:
    """Flags of `openuni evaluate`."""

    path: Annotated[str, typer.Argument(help="Corpus whose annotators, or training run whose model is evaluated")]
    truth: Annotated[
        str | None,
        typer.Option(
            help="Annotator or importer whose maps are the truth. Run: needed only if several have the modality"
        ),
    ] = None
    annotators: Annotated[
        list[str] | None,
        typer.Option(
            "--annotator",
            help="Corpus: annotator to evaluate; repeatable. Default: all with a modality in common with the truth",
        ),
    ] = None
    corpus: Annotated[str | None, typer.Option(help="Run: corpus with the true maps")] = None
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Run: task such as rgb->depth; repeatable. Default: all that can be measured"),
    ] = None
    clips: Annotated[
        Literal["held-out", "all"] | None,
        typer.Option(help="Run: clips that training held out, or all kept clips. Default: held-out"),
    ] = None
    steps: Annotated[int | None, typer.Option(min=1, help="Run: number of sampling steps. Default: 50")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Run: random seed of the sampling noise. Default: 0")] = None
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="METRIC.OPTION=VALUE",
            help="Option of a metric (see `openuni show METRIC`), such as depth.alignment=scale; repeatable",
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of clips")] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for evaluation.json and evaluation.html, a page with the clips"),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", "-j", help="JSON output, with the figures of every clip")] = False


@app.command()
@command_from_dataclass(EvaluateFlags)
def evaluate(flags: EvaluateFlags) -> None:
    """Measure the errors of annotators or of a trained model.

    Of a corpus: compares maps of annotators with those that you take as the truth. Of a training run: generates maps of
    held-out clips. `openuni show depth` describes the figures of a modality.
    """
    from openuni.manifests.storage.store import Store, require_folder

    is_run = any((Path(flags.path) / name).is_file() for name in (RUN_FILE, EXPORT_FILE))
    if flags.out is not None:
        require_folder(flags.out)  # before the time that it takes
    found = _of_run(flags) if is_run else _of_corpus(flags)
    record = json.dumps(found.as_record(), indent=2)
    if flags.out is not None:
        from openuni.evaluation.page import PAGE_FILE, RECORD_FILE, evaluation_page
        from openuni.evaluation.runs import CODEC

        store = Store(str(flags.out))
        store.put(RECORD_FILE, f"{record}\n".encode())
        store.put(PAGE_FILE, evaluation_page(found, flags.path, skipped=(CODEC,)).encode())
    print_text(record if flags.as_json else found)
    if flags.out is not None:
        print_text(f"page: {flags.out / PAGE_FILE}", error=flags.as_json)


def _of_corpus(flags: EvaluateFlags) -> "Evaluation":
    from openuni.config.recipe import parse_assignments
    from openuni.evaluation.annotators import evaluate_annotators
    from openuni.manifests.corpus.corpus import Corpus

    given = {
        "corpus": flags.corpus,
        "task": flags.tasks,
        "clips": flags.clips,
        "steps": flags.steps,
        "seed": flags.seed,
    }
    _reject(given, f"evaluates a training run, and {flags.path} is none")
    corpus = Corpus.open(flags.path)
    if flags.truth is None:
        raise OpenUniError("--truth is missing: the annotator or importer whose maps are taken as the truth")
    options = parse_assignments(flags.options or (), "evaluate")
    return evaluate_annotators(corpus, flags.annotators or (), flags.truth, options=options, limit=flags.limit)


def _of_run(flags: EvaluateFlags) -> "Evaluation":
    from openuni.config.recipe import parse_assignments
    from openuni.evaluation.runs import RunScope, evaluate_run
    from openuni.manifests.corpus.corpus import Corpus
    from openuni.training.export.exported_model import open_trained

    _reject({"annotator": flags.annotators}, f"evaluates a corpus, and {flags.path} is a training run")
    if flags.corpus is None:
        raise OpenUniError("--corpus is missing: the corpus with the true maps")
    run, corpus = open_trained(Path(flags.path)), Corpus.open(flags.corpus)
    return evaluate_run(
        run,
        corpus,
        flags.tasks or (),
        RunScope(flags.clips or "held-out", flags.truth, flags.limit),
        sampling={name: value for name, value in (("steps", flags.steps), ("seed", flags.seed)) if value is not None},
        options=parse_assignments(flags.options or (), "evaluate"),
    )


def _reject(given: Mapping[str, object], why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise OpenUniError(f"--{name} {why}")
