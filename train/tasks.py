"""Tasks: which streams are conditions (clean) and which are targets (noised), and whether text is a target."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import fsum

from openuni.manifests.contracts.modality import modality_names
from openuni.manifests.errors import OpenUniError, did_you_mean, unknown_name
from openuni.training.randomness import uniform

TEXT = "text"
MAX_WEIGHT = 1e9  # keeps sums of weights finite
RELEASED_WEIGHTS = {"joint": 0.5, "estimate": 0.25, "control": 0.25}  # of the released UnityVideo training script

# UniVidX's families, and the letters of its published names for their partitions (R2AIN, PF2RB, t2RAIN, ...)
UNIVIDX_LETTERS = {
    "intrinsic": {"R": "rgb", "A": "albedo", "I": "irradiance", "N": "normal"},
    "alpha": {"R": "rgb", "P": "alpha", "F": "foreground", "B": "background"},
}
UNIVIDX_FAMILIES = {family: tuple(letters.values()) for family, letters in UNIVIDX_LETTERS.items()}
PUBLISHED = re.compile(r"(t|[A-Z]+)2([A-Z]+)")
# UnityVideo's tasks, written with their modalities (estimate:depth), and their names in the released script
UNITYVIDEO_NAMES = {"joint": "text2all", "estimate": "video2flow", "control": "flow2video"}
GROUP_OF = {name: group for group, released in UNITYVIDEO_NAMES.items() for name in (group, released)}
# Uni-ViGU's modes: video and caption are each a condition or a target
VIDEO_AND_TEXT = {"t2v": "text->rgb", "v2t": "rgb->text", "t2vt": "->rgb+text"}


@dataclass(frozen=True)
class Task:
    """Roles of streams, `conditions->targets`: `rgb->depth`, `rgb+depth->flow`, `text->rgb+depth`, `rgb->text`.

    `text` (or nothing) before the arrow means no condition streams; after it, the caption is a target. The order of
    names does not matter; at least one target is required.
    """

    conditions: tuple[str, ...]
    targets: tuple[str, ...]
    generates_text: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", _in_order(self.conditions))
        object.__setattr__(self, "targets", _in_order(self.targets))
        if not (self.targets or self.generates_text) or set(self.conditions) & set(self.targets):
            raise OpenUniError(f'task "{self}": at least one target is required, and no stream may be on both sides')
        if not self.streams:
            raise OpenUniError(f'task "{self}": at least one video stream is required, such as rgb->text or ->rgb+text')

    @classmethod
    def parse(cls, text: str) -> "Task":
        """Parse the form that `str` writes, or another name (R2AIN, t2v, estimate:depth). Raises `OpenUniError`."""
        named = published_task(text.strip())
        if named is not None:
            return named
        if ":" in text:
            return _of_group(text)
        before, arrow, after = text.replace(" ", "").partition("->")
        if not arrow:
            raise OpenUniError(f'task "{text}" is not known.{did_you_mean(text, list(TASK_GROUPS))} {_grammar()}')
        sides = [[name for name in side.split("+") if name] for side in (before, after)]
        _check_modalities(text, [name for name in sides[0] + sides[1] if name != TEXT])
        conditions, targets = (tuple(name for name in side if name != TEXT) for side in sides)
        return cls(conditions, targets, TEXT in sides[1])

    @property
    def streams(self) -> tuple[str, ...]:
        """All latent streams of the task, RGB first, then by name."""
        return _in_order(self.conditions + self.targets)

    @property
    def required_streams(self) -> frozenset[str]:
        """Streams that a clip must have: latents of all streams, and "text" if it is a target."""
        return frozenset(self.streams) | ({TEXT} if self.generates_text else frozenset())

    @property
    def published(self) -> str:
        """Name of the task in UniVidX, such as R2AIN or t2RPFB; empty for any other task."""
        for letters in UNIVIDX_LETTERS.values():
            of = {name: letter for letter, name in letters.items()}
            if not self.generates_text and set(self.streams) == set(of):
                conditions, targets = (
                    "".join(of[name] for name in of if name in side) for side in (self.conditions, self.targets)
                )
                return f"{conditions or 't'}2{targets}"
        return ""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `parse` reads: the arrow form first, then the published ones."""
        found = [str(self), *filter(None, [self.published])]
        found += [name for name, form in VIDEO_AND_TEXT.items() if form == str(self)]
        others = "+".join(name for name in self.streams if name != "rgb")
        if "rgb" in self.streams and others and not self.generates_text:
            groups = {"joint": not self.conditions, "estimate": self.conditions == ("rgb",)}
            groups["control"] = self.targets == ("rgb",) and bool(self.conditions)
            found += [
                f"{name}:{others}"
                for group, fits in groups.items()
                if fits
                for name in (group, UNITYVIDEO_NAMES[group])
            ]
        return tuple(found)

    def __str__(self) -> str:
        targets = [*self.targets, *([TEXT] if self.generates_text else [])]
        nothing = "" if self.generates_text else TEXT
        return f"{'+'.join(self.conditions) or nothing}->{'+'.join(targets)}"


def _of_group(text: str) -> Task:
    """The task of UnityVideo that `GROUP:MODALITIES` names, such as estimate:depth or joint:depth+flow."""
    group, _, rest = text.replace(" ", "").partition(":")
    if group not in GROUP_OF:
        raise OpenUniError(
            f'task "{text}": "{group}" is not known.{did_you_mean(group, list(GROUP_OF))} Allowed before the colon: '
            f"{', '.join(GROUP_OF)}; after it modalities, such as estimate:depth or joint:depth+flow."
        )
    others = tuple(name for name in rest.split("+") if name)
    _check_modalities(text, others)
    if not others or "rgb" in others:
        raise OpenUniError(
            f'task "{text}": name modalities other than rgb, such as {group}:depth or {group}:depth+flow'
        )
    sides = {"joint": ((), ("rgb", *others)), "estimate": (("rgb",), others), "control": (others, ("rgb",))}
    return Task(*sides[GROUP_OF[group]])


def _check_modalities(text: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in modality_names():
            raise OpenUniError(
                f'task "{text}": "{name}" is not a modality.{did_you_mean(name, modality_names())} '
                f"Known: {', '.join(modality_names())}."
            )


def published_task(name: str) -> Task | None:
    """The task of a published name of UniVidX or Uni-ViGU; None for any other text."""
    if name in VIDEO_AND_TEXT:
        return Task.parse(VIDEO_AND_TEXT[name])
    match = PUBLISHED.fullmatch(name)
    if match is None:
        return None
    before, after = match[1].replace("t", ""), match[2]
    for letters in UNIVIDX_LETTERS.values():
        if sorted(before + after) == sorted(letters):
            return Task(tuple(letters[letter] for letter in before), tuple(letters[letter] for letter in after))
    known = "; ".join(f"{''.join(letters)} ({family})" for family, letters in UNIVIDX_LETTERS.items())
    raise OpenUniError(
        f'task "{name}": published names use each letter of a family once, and t for no condition: {known}'
    )


def partitions(modalities: Sequence[str]) -> list[Task]:
    """All partitions of the modalities into conditions and targets: 2^n - 1 tasks, fewest conditions first."""
    ordered = list(modalities)
    return [
        Task(conditions, tuple(name for name in ordered if name not in conditions))
        for count in range(len(ordered))
        for conditions in combinations(ordered, count)
    ]


def _joint(modalities: Sequence[str]) -> list[Task]:
    return [Task((), ("rgb", name)) for name in _non_rgb("joint", modalities)]


def _estimate(modalities: Sequence[str]) -> list[Task]:
    return [Task(("rgb",), (name,)) for name in _non_rgb("estimate", modalities)]


def _control(modalities: Sequence[str]) -> list[Task]:
    return [Task((name,), ("rgb",)) for name in _non_rgb("control", modalities)]


# Groups of tasks, expanded over the model's modalities. UnityVideo's three pair RGB with one other stream; UniVidX's
# use all streams of the model, or those of a family.
TASK_GROUPS: dict[str, Callable[[Sequence[str]], list[Task]]] = {
    "joint": _joint,
    "estimate": _estimate,
    "control": _control,
    "partitions": partitions,
    "intrinsic": lambda _: partitions(UNIVIDX_FAMILIES["intrinsic"]),
    "alpha": lambda _: partitions(UNIVIDX_FAMILIES["alpha"]),
}


def expand(word: str, modalities: Sequence[str]) -> list[Task]:
    """Expand one of `TASK_GROUPS`, a published name or a task in arrow form to tasks over a model's `modalities`.

    "joint": text -> rgb + m; "estimate": rgb -> m; "control": m -> rgb; each for every modality m except rgb.
    "partitions": all partitions of the modalities; "intrinsic", "alpha": the partitions of a family.
    Raises `OpenUniError` for a modality that the model does not have.
    """
    tasks = TASK_GROUPS[word](modalities) if word in TASK_GROUPS else [Task.parse(word)]
    missing = sorted({name for task in tasks for name in task.streams if name not in modalities})
    if missing:
        raise OpenUniError(f'task "{word}" needs {", ".join(missing)}; the model has {", ".join(modalities)}')
    return tasks


def _non_rgb(word: str, modalities: Sequence[str]) -> list[str]:
    others = [name for name in modalities if name != "rgb"]
    if "rgb" not in modalities or not others:
        raise OpenUniError(f'task "{word}" needs rgb and another modality; the model has {", ".join(modalities)}')
    return others


@dataclass(frozen=True)
class TaskMix:
    """Tasks with their probabilities, which sum to 1. A draw depends only on the seed and its name."""

    weights: tuple[tuple[Task, float], ...]

    @classmethod
    def build(
        cls,
        tasks: Mapping[str, float],
        modalities: Sequence[str],
        modality_weights: Mapping[str, float] | None = None,
    ) -> "TaskMix":
        """Build a mix from `tasks`: groups, published names or arrow forms, with weights >= 0 that are normalized.

        A group's weight is distributed over its tasks by `modality_weights` of the non-RGB modality (1 if absent).
        """
        _check_weights(tasks, modality_weights or {})
        shares: dict[Task, float] = {}
        for word, weight in tasks.items():
            expanded = expand(word, modalities)
            parts = [_modality_weight(task, modality_weights or {}) for task in expanded]
            for task, part in zip(expanded, parts, strict=True):
                shares[task] = shares.get(task, 0.0) + (weight * part / fsum(parts) if fsum(parts) > 0 else 0.0)
        return cls._normalised(shares)

    @classmethod
    def averaged(cls, mixes: Sequence["TaskMix"]) -> "TaskMix":
        """All tasks of several mixes, each with its mean probability."""
        shares: dict[Task, float] = {}
        for task, weight in (pair for mix in mixes for pair in mix.weights):
            shares[task] = shares.get(task, 0.0) + weight
        return mixes[0] if len(mixes) == 1 else cls._normalised(shares)

    @classmethod
    def _normalised(cls, shares: Mapping[Task, float]) -> "TaskMix":
        """Sorted by number of conditions, so that the order of a recipe's tables and modalities has no effect."""
        total = fsum(shares.values())
        if total <= 0:
            raise OpenUniError(f"at least one task must have a weight above 0. {_grammar()}")
        ordered = sorted((task for task, share in shares.items() if share > 0), key=_place)
        return cls(tuple((task, shares[task] / total) for task in ordered))

    @property
    def tasks(self) -> list[Task]:
        """All tasks of the mix."""
        return [task for task, _ in self.weights]

    def available_tasks(self, available: Iterable[str]) -> list[tuple[Task, float]]:
        """Tasks whose `required_streams` are all `available`, with their weights (which sum to at most 1)."""
        return list(self._possible(frozenset(available)))

    def draw(self, available: Iterable[str], seed: int, *names: int | str) -> Task:
        """Draw the task of one sample among those its clip has the streams for. Raises `OpenUniError` if none."""
        possible = self._possible(frozenset(available))
        if not possible:
            raise OpenUniError(f"no task is available with streams: {', '.join(sorted(available)) or 'none'}")
        left = uniform(seed, "task", *names) * sum(weight for _, weight in possible)
        for task, weight in possible:
            left -= weight
            if left < 0:
                return task
        return possible[-1][0]

    def _possible(self, available: frozenset[str]) -> tuple[tuple[Task, float], ...]:
        if available not in self._cache:
            self._cache[available] = tuple(pair for pair in self.weights if available >= pair[0].required_streams)
        return self._cache[available]

    @cached_property
    def _cache(self) -> dict[frozenset[str], tuple[tuple[Task, float], ...]]:
        return {}


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=lambda name: (name != "rgb", name)))


def _place(task: Task) -> tuple[object, ...]:
    """Sort key of the tasks of a mix."""
    conditions, targets = ([(name != "rgb", name) for name in side] for side in (task.conditions, task.targets))
    return len(conditions), conditions, targets, task.generates_text


def _check_weights(tasks: Mapping[str, float], modality_weights: Mapping[str, float]) -> None:
    beside_rgb = [name for name in modality_names() if name != "rgb"]
    for name in modality_weights:
        if name not in beside_rgb:
            raise OpenUniError(f"modality_weights: {unknown_name('non-rgb modality', name, beside_rgb)}")
    for name, weight in (*tasks.items(), *modality_weights.items()):
        if not 0 <= weight <= MAX_WEIGHT:
            raise OpenUniError(f'the weight of "{name}" is {weight:g}. Allowed: 0 to {MAX_WEIGHT:g}.')


def _modality_weight(task: Task, weights: Mapping[str, float]) -> float:
    found = [weights.get(name, 1.0) for name in task.streams if name != "rgb"]
    return max(found, default=1.0)


def _grammar() -> str:
    return (
        f'Allowed: {", ".join(TASK_GROUPS)}; "conditions->targets" such as "rgb->depth" or "text->rgb+depth"; '
        "published names such as R2AIN, t2v or estimate:depth."
    )
