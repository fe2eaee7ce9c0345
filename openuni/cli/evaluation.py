"""Command that measures quality: evaluate."""

import json
from typing import Annotated

import typer

from openuni.cli.app import CorpusArgument, app
from openuni.console.terminal import print_text


@app.command()
def evaluate(
    corpus: CorpusArgument,
    truth: Annotated[str, typer.Option(help="Annotator or importer whose maps are taken as the truth")],
    annotators: Annotated[
        list[str] | None,
        typer.Option("--annotator", help="Annotator to evaluate; repeatable. Default: all that have the same modality"),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="METRIC.OPTION=VALUE",
            help="Option of a metric (see `openuni show METRIC`), such as depth.alignment=scale; repeatable",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of clips per modality")] = None,
    as_json: Annotated[bool, typer.Option("--json", "-j", help="JSON output, with the figures of every clip")] = False,
) -> None:
    """Measure the errors of annotators against true maps.

    The truth is what an importer brought, rendered, or the annotator that you trust most. Clips are those that pass the
    keep rule. `openuni show depth` describes the figures of a modality.
    """
    from openuni import api
    from openuni.config.recipe import parse_assignments
    from openuni.manifests.corpus.corpus import Corpus

    found = api.evaluate_annotators(
        Corpus.open(corpus),
        list(annotators or ()),
        truth,
        options=parse_assignments(options or (), "evaluate"),
        limit=limit,
    )
    print_text(json.dumps(found.as_record(), indent=2) if as_json else found)
