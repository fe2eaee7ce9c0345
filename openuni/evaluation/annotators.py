"""Maps of annotators against those of another annotator or importer, which is taken as the truth."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any

from openuni.console.progress import Reporter
from openuni.evaluation.evaluation import ClipResult, Comparison, Evaluation
from openuni.evaluation.metric_options import configured
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import annotators_by_modality, clip_ids_with_modality
from openuni.manifests.errors import ClipError, OpenUniError, unknown_name
from openuni.training.metric import Metric


def evaluate_annotators(
    corpus: Corpus,
    annotators: Sequence[str],
    truth: str,
    *,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Compare the maps of annotators with those of `truth`, for all modalities that both have and a metric compares.

    `options`: options of metrics by "METRIC.OPTION", such as {"depth.alignment": "scale"}. `limit`: number of clips.
    No annotators: all that have a modality in common with the truth. Clips are those that pass the keep rule and have a
    true map. Raises `OpenUniError` for an annotator that is not in
    the corpus, and if there is nothing to compare.
    """
    pairs = _pairs(corpus, annotators, truth)
    metrics = configured({modality for modality, _ in pairs}, options or {})
    kept = corpus.kept_clip_ids()
    work = []
    for modality, annotator in pairs:
        true = set(clip_ids_with_modality(corpus, truth, modality).to_pylist())
        ours = set(clip_ids_with_modality(corpus, annotator, modality).to_pylist())
        wanted = [clip_id for clip_id in kept if clip_id in true][:limit]
        work += [(modality, annotator, metric, wanted, ours) for metric in metrics[modality]]
    if not any(wanted for _, _, _, wanted, _ in work):
        wanted_maps = " or ".join(dict.fromkeys(modality for modality, _ in pairs))
        raise OpenUniError(
            f"no kept clip has {wanted_maps} of {truth}. Produce it, or choose another annotator as the truth."
        )
    comparisons = []
    with reporter or Reporter() as shown, ThreadPoolExecutor(cpu_count() or 1) as threads:
        for modality, annotator, metric, wanted, ours in work:
            with shown.phase(f"{annotator}: {modality}", len(wanted)) as counter:

                def compare(
                    clip_id: str, annotator: str = annotator, modality: str = modality, metric: Metric = metric
                ) -> ClipResult:
                    return _compared(corpus, clip_id, modality, (annotator, truth), metric)

                nothing = f"no {modality} of {annotator}"
                waiting = [threads.submit(compare, one) if one in ours else None for one in wanted]
                results = []
                for clip_id, future in zip(wanted, waiting, strict=True):
                    results.append(ClipResult(clip_id, {}, nothing) if future is None else future.result())
                    counter.add("failed" if results[-1].reason else "ok")
            comparisons.append(Comparison(annotator, modality, metric, results))
    return Evaluation(truth, comparisons)


def _compared(corpus: Corpus, clip_id: str, modality: str, producers: tuple[str, str], metric: Metric) -> ClipResult:
    clip = corpus[clip_id]
    try:
        predicted, true = (clip.modality(modality, producer) for producer in producers)
        return ClipResult(clip_id, metric.of_clip(predicted, true))
    except ClipError as error:
        return ClipResult(clip_id, {}, str(error))


def _pairs(corpus: Corpus, annotators: Sequence[str], truth: str) -> list[tuple[str, str]]:
    """(modality, annotator) of all that can be compared."""
    producers = annotators_by_modality(corpus)
    known = sorted({name for names in producers.values() for name in names})
    for name in (*annotators, truth):
        if name not in known:
            raise OpenUniError(unknown_name("annotator with maps in this corpus", name, known))
    if not annotators:
        annotators = [one for one in known if one != truth and any({one, truth} <= set(n) for n in producers.values())]
        if not annotators:
            raise OpenUniError(
                f"no other annotator of this corpus has a modality in common with {truth}. It has: {', '.join(known)}."
            )
    if truth in annotators:
        raise OpenUniError(f"{truth} is compared with itself. Name another annotator as the truth.")
    pairs = []
    for annotator in annotators:
        shared = [modality for modality, names in producers.items() if {annotator, truth} <= set(names)]
        if not shared:
            made = {one: [m for m, names in producers.items() if one in names] for one in (annotator, truth)}
            found = " and ".join(f"{name} has {', '.join(modalities)}" for name, modalities in made.items())
            raise OpenUniError(f"{annotator} and {truth} have no modality in common: {found}.")
        pairs += [(modality, annotator) for modality in shared]
    return sorted(pairs)
