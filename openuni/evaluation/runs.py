"""What a trained model makes of held-out clips, against their true maps."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from openuni.config.encode_options import EncodeOptions
from openuni.console.progress import Reporter
from openuni.evaluation.evaluation import ClipResult, Comparison, Evaluation, Maps
from openuni.evaluation.metric_options import configured
from openuni.manifests.contracts.modality import Modality, find_modality
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.corpus_clip import CorpusClip
from openuni.manifests.corpus.coverage import annotators_by_modality
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.decoder.limits import Limits
from openuni.manifests.video.reader import frame_times
from openuni.pipeline.encode_phase import cover_short_side
from openuni.pipeline.encoding.reading import decoded_windows
from openuni.pipeline.encoding.windows import windows_of
from openuni.training.metric import Metric
from openuni.training.tasks import TEXT, Task

if TYPE_CHECKING:
    from openuni.training.run import Run

Clips = Literal["held-out", "all"]
CODEC = "codec"  # subject: true maps, encoded and decoded
NOTE = "codec: the true maps, encoded and decoded, which is about the best that a model on these latents can reach."


@dataclass(frozen=True)
class RunScope:
    """What of a corpus a model is evaluated on."""

    clips: Clips = "held-out"  # of training, or all kept ones
    truth: str | None = None  # annotator of the true maps; None: the only one that has the modality
    limit: int | None = None  # number of clips


def evaluate_run(
    run: "Run",
    corpus: Corpus,
    tasks: Sequence[str] = (),
    scope: RunScope = RunScope(),
    *,
    sampling: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Generate the targets of tasks from the true conditions of clips, and compare them with the true targets.

    `tasks`: default: all trained tasks with conditions and a target that a metric compares. `sampling`: fields of
    `SamplingOptions`; default: the shift of the training. `options`: options of metrics by "METRIC.OPTION". Each clip
    is measured in its first window, at rate, size and length of the training. Maps are decoded with the constants of
    the true map, such as its ids. Raises `OpenUniError` for tasks that cannot be measured, and without clips.
    """
    chosen = [_measurable(run.require_trained_task(task)) for task in tasks] or default_tasks(run)
    targets = {name for task in chosen for name in measured_targets(task)}
    metrics = configured(sorted(targets), options or {})
    _check_truth(corpus, targets.union(*(task.conditions for task in chosen)), scope.truth)
    clip_ids = _clip_ids(run, corpus, scope.clips)[: scope.limit]
    found: dict[tuple[str, str, Metric], list[ClipResult]] = {}
    with reporter or Reporter() as shown, shown.phase("evaluate", len(clip_ids)) as counter:
        for clip_id in clip_ids:
            results = list(_results(_ClipMaker(run, corpus[clip_id], scope.truth), chosen, metrics, sampling or {}))
            for modality, subject, metric, result in results:
                found.setdefault((modality, subject, metric), []).append(result)
            counter.add("failed" if any(result.reason for *_, result in results) else "ok")
    comparisons = [
        Comparison(subject, modality, metric, results) for (modality, subject, metric), results in found.items()
    ]
    comparisons.sort(key=lambda one: (one.modality, one.subject == CODEC, one.subject))

    def look(comparison: Comparison, clip_id: str) -> Maps:
        maps, name = _ClipMaker(run, corpus[clip_id], scope.truth), comparison.modality
        is_codec = comparison.subject == CODEC
        made = maps.coded(name) if is_codec else maps.generated(Task.parse(comparison.subject), sampling or {})[name]
        rgb = maps.true("rgb")
        return Maps(maps.clip, rgb.array, made, maps.true(name), run.record["data"].get("fps") or maps.clip.clip.fps)

    return Evaluation(scope.truth or "the true maps", comparisons, look, NOTE)


def measured_targets(task: Task) -> list[str]:
    """Targets of a task that a metric compares: skeletons are generated as pictures, from which nothing is read."""
    return [name for name in task.targets if find_modality(name).invertible]


def default_tasks(run: "Run") -> list[Task]:
    """Trained tasks that make a measured target from conditions. Raises `OpenUniError` if there are none."""
    found = [task for task in run.tasks if task.conditions and measured_targets(task)]
    if not found:
        trained = ", ".join(map(str, run.tasks))
        raise OpenUniError(
            f"{run.folder}: no task can be compared with true maps. Needed is one with conditions, such as "
            f"rgb->depth; it was trained for: {trained}."
        )
    return found


def _measurable(task: Task) -> Task:
    if not task.conditions or not measured_targets(task):
        why = (
            "has no conditions, so that no map is the true one" if not task.conditions else "makes no map with a metric"
        )
        raise OpenUniError(f'task "{task}" {why}. Choose one such as rgb->depth.')
    return task


def _check_truth(corpus: Corpus, names: Iterable[str], truth: str | None) -> None:
    """Raise `OpenUniError` unless the true maps of all modalities come from one annotator each."""
    producers = annotators_by_modality(corpus)
    for name in sorted(set(names) - {"rgb"}):
        found = producers.get(name, [])
        if truth is not None and truth not in found:
            raise OpenUniError(f"{truth} has no {name} in this corpus. {name} is from: {', '.join(found) or 'none'}.")
        if not found:
            raise OpenUniError(f"the corpus has no true {name}. It has: {', '.join(producers)}.")
        if truth is None and len(found) > 1:
            raise OpenUniError(f"several annotators produced {name}: {', '.join(found)}. Choose one with --truth.")


class _ClipMaker:
    """Maps of one clip at rate, size and length of a run's training: true, coded and generated."""

    def __init__(self, run: "Run", clip: CorpusClip, truth: str | None) -> None:
        self.run, self.clip, self.truth = run, clip, truth
        self.size_px: tuple[int, int] = tuple(run.record["latents"]["size_px"])
        self._true: dict[str, Modality] = {}

    @cached_property
    def frames(self) -> np.ndarray:
        """Numbers of the clip's frames, int64 [T]. Raises `ClipError` if it is too short."""
        latents, clip = self.run.record["latents"], self.clip.clip
        options = EncodeOptions(size_px=self.size_px, frames=latents["frames"], fps=latents.get("fps"))
        stride = self.run.latent_codec[0].stride[0]
        plan = windows_of(clip, options, stride, lambda: frame_times(clip))
        return plan.frames[0]

    def true(self, name: str) -> Modality:
        """The true map. Raises `OpenUniError` if the clip has none."""
        if name not in self._true:
            found = self._rgb() if name == "rgb" else self.clip.modality(name, self.truth).take_frames(self.frames)
            self._true[name] = found.fit(*self.size_px)
        return self._true[name]

    def _rgb(self) -> Modality:
        """The frames of the window, decoded as for encoding: no others are in memory."""
        clip, kind = self.clip.clip, find_modality("rgb")
        return next(decoded_windows(clip, kind, self.frames[None], cover_short_side(clip, self.size_px), Limits()))

    def coded(self, name: str) -> Modality:
        """The true map after the codec."""
        codec, model = self.run.latent_codec
        return self._decoded(name, codec.decode(model, codec.encode(model, self.true(name).to_rgb())))

    def generated(self, task: Task, sampling: Mapping[str, Any]) -> dict[str, Modality]:
        """The targets of a task from the true conditions, and the clip's caption where the task uses one."""
        from openuni.training.sampler import SamplingOptions

        chosen = SamplingOptions(**{"shift": self.run.shift(task), **sampling})
        caption = (self.clip.caption or "") if self.run.caption_streams(task) else ""
        make = [*task.targets, *([TEXT] if task.generates_text else [])]
        given: dict[str, Any] = {name: self.true(name) for name in task.conditions}
        made = self.run.render(caption, make, given, (len(self.frames), *self.size_px), chosen)
        return {name: self._decoded(name, made[name]) for name in measured_targets(task)}

    def _decoded(self, name: str, rendering: np.ndarray) -> Modality:
        """With the constants of the true map: its ids, or the speed that is fully saturated."""
        return find_modality(name).from_rgb(rendering.astype(np.float32), self.true(name).constants())


def _results(
    maps: _ClipMaker, tasks: Sequence[Task], metrics: Mapping[str, Sequence[Metric]], sampling: Mapping[str, Any]
) -> Iterator[tuple[str, str, Metric, ClipResult]]:
    """Modality, subject, metric and result, for all tasks and for the codec."""
    makers: list[tuple[str, list[str], Callable[[], dict[str, Modality]]]] = [
        (str(task), measured_targets(task), partial(maps.generated, task, sampling)) for task in tasks
    ]
    for name in metrics:
        makers.append((CODEC, [name], partial(lambda name: {name: maps.coded(name)}, name)))
    clip_id = maps.clip.clip_id
    for subject, names, make in makers:
        try:
            made = make()
        except (ClipError, OpenUniError) as error:
            made, reason = {}, str(error)
        for name in names:
            for metric in metrics[name]:
                if name not in made:
                    yield name, subject, metric, ClipResult(clip_id, {}, reason)
                    continue
                try:
                    yield name, subject, metric, ClipResult(clip_id, metric.of_clip(made[name], maps.true(name)))
                except ClipError as error:
                    yield name, subject, metric, ClipResult(clip_id, {}, str(error))


def held_out_clips(run: "Run", corpus: Corpus) -> tuple[list[str], list[str]]:
    """The clip_ids of the clips that training held out, and those of the training clips."""
    from openuni.training.data.index import open_index

    data = run.recipe.data
    modalities = tuple(run.record["model"]["options"]["modalities"])
    index = open_index(corpus, modalities, data.latents, data.text, data.validation_share)
    pairs = list(zip(index.clip_ids, index.held_out.tolist(), strict=True))
    return [clip for clip, out in pairs if out], [clip for clip, out in pairs if not out]


def _clip_ids(run: "Run", corpus: Corpus, clips: Clips) -> list[str]:
    """Kept clips that training held out, or all, in the corpus's order. Raises `OpenUniError` if there are none."""
    if clips == "all":
        found = corpus.kept_clip_ids()
    else:
        held_out = set(held_out_clips(run, corpus)[0])
        found = [clip_id for clip_id in corpus.kept_clip_ids() if clip_id in held_out]
    if not found:
        raise OpenUniError(
            f"{corpus.store.url} has no {'kept' if clips == 'all' else 'held-out'} clips. Assign a validation split "
            "with `openuni split`, or evaluate all clips (--clips all), which training may have seen."
        )
    return found
