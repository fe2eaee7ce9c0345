"""Tasks: which streams are given (clean) and which are made (noisy, a target), and whether text is made too."""

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
MAX_WEIGHT = 1e9  # sums of weights stay numbers
RELEASED_WEIGHTS = {"joint": 0.5, "estimate": 0.25, "control": 0.25}  # of the released UnityVideo training script

# UniVidX's families, and the letters of its published names for their partitions (R2AIN, PF2RB, t2RAIN, ...)
UNIVIDX_LETTERS = {
    "intrinsic": {"R": "rgb", "A": "albedo", "I": "irradiance", "N": "normal"},
    "alpha": {"R": "rgb", "P": "alpha", "F": "foreground", "B": "background"},
}
UNIVIDX_FAMILIES = {family: tuple(letters.values()) for family, letters in UNIVIDX_LETTERS.items()}
PUBLISHED = re.compile(r"(t|[A-Z]+)2([A-Z]+)")
# Uni-ViGU's modes: the caption is given or made, so is the video
VIDEO_AND_TEXT = {"t2v": "text->rgb", "v2t": "rgb->text", "t2vt": "->rgb+text"}


@dataclass(frozen=True)
class Task:
    """An assignment of roles, written `given->made`: `rgb->depth`, `rgb+depth->flow`, `text->rgb+depth`, `rgb->text`.

    `text` (or nothing) before the arrow means that no stream is given; behind it, that the caption is made. Order does
    not matter; something is always made.
    """

    conditions: tuple[str, ...]
    targets: tuple[str, ...]
    generates_text: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", _in_order(self.conditions))
        object.__setattr__(self, "targets", _in_order(self.targets))
        if not (self.targets or self.generates_text) or set(self.conditions) & set(self.targets):
            raise OpenUniError(f'task "{self}" must make something, and nothing that it is given')
        if not self.streams:
            raise OpenUniError(f'task "{self}" has no video: say what is given, such as rgb->text, or made beside it')

    @classmethod
    def parse(cls, text: str) -> "Task":
        """From the form that `str` writes, or a published name (R2AIN, t2v). Raises `OpenUniError`."""
        named = published_task(text.strip())
        if named is not None:
            return named
        before, arrow, after = text.replace(" ", "").partition("->")
        if not arrow:
            raise OpenUniError(f'task "{text}" is not known.{did_you_mean(text, list(TASK_GROUPS))} {_grammar()}')
        sides = [[name for name in side.split("+") if name] for side in (before, after)]
        for name in sides[0] + sides[1]:
            if name not in (TEXT, *modality_names()):
                known = ", ".join(modality_names())
                raise OpenUniError(
                    f'task "{text}": "{name}" is no modality.{did_you_mean(name, modality_names())} Known: {known}.'
                )
        given, made = (tuple(name for name in side if name != TEXT) for side in sides)
        return cls(given, made, TEXT in sides[1])

    @property
    def streams(self) -> tuple[str, ...]:
        """All streams of latents of the task, RGB first, then by name."""
        return _in_order(self.conditions + self.targets)

    @property
    def required_streams(self) -> frozenset[str]:
        """What a clip must have for it: latents of all streams, and a "text" where that is made."""
        return frozenset(self.streams) | ({TEXT} if self.generates_text else frozenset())

    @property
    def published(self) -> str:
        """Its name in UniVidX, such as R2AIN or t2RPFB; empty where it is none of the 30."""
        for letters in UNIVIDX_LETTERS.values():
            of = {name: letter for letter, name in letters.items()}
            if not self.generates_text and set(self.streams) == set(of):
                given, made = (
                    "".join(of[name] for name in of if name in side) for side in (self.conditions, self.targets)
                )
                return f"{given or 't'}2{made}"
        return ""

    def __str__(self) -> str:
        made = [*self.targets, *([TEXT] if self.generates_text else [])]
        nothing = "" if self.generates_text else TEXT
        return f"{'+'.join(self.conditions) or nothing}->{'+'.join(made)}"


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
    raise OpenUniError(f'task "{name}": published names use each letter of a family once, t for none given: {known}')


def partitions(modalities: Sequence[str]) -> list[Task]:
    """All ways to give some of the modalities and make all the others: 2^n - 1, fewest given first."""
    ordered = list(modalities)
    return [
        Task(given, tuple(name for name in ordered if name not in given))
        for count in range(len(ordered))
        for given in combinations(ordered, count)
    ]


def _joint(modalities: Sequence[str]) -> list[Task]:
    return [Task((), ("rgb", name)) for name in _non_rgb("joint", modalities)]


def _estimate(modalities: Sequence[str]) -> list[Task]:
    return [Task(("rgb",), (name,)) for name in _non_rgb("estimate", modalities)]


def _control(modalities: Sequence[str]) -> list[Task]:
    return [Task((name,), ("rgb",)) for name in _non_rgb("control", modalities)]


# Words that stand for several tasks, by the model's modalities. UnityVideo's three take RGB with one other stream at a
# time; UniVidX's take all streams of the model, or those of a family.
TASK_GROUPS: dict[str, Callable[[Sequence[str]], list[Task]]] = {
    "joint": _joint,
    "estimate": _estimate,
    "control": _control,
    "partitions": partitions,
    "intrinsic": lambda _: partitions(UNIVIDX_FAMILIES["intrinsic"]),
    "alpha": lambda _: partitions(UNIVIDX_FAMILIES["alpha"]),
}


def expand(word: str, modalities: Sequence[str]) -> list[Task]:
    """One of `TASK_GROUPS`, a published name, or a task in the arrow form, as tasks over a model's `modalities`.

    "joint": text -> rgb + m; "estimate": rgb -> m; "control": m -> rgb; each for every modality m but rgb.
    "partitions": some of all the modalities given, all the others made; "intrinsic", "alpha": the same within a family.
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
    """Tasks with their probabilities (they sum to 1). Frozen and pure: a draw depends on its name only."""

    weights: tuple[tuple[Task, float], ...]

    @classmethod
    def build(
        cls,
        tasks: Mapping[str, float],
        modalities: Sequence[str],
        modality_weights: Mapping[str, float] | None = None,
    ) -> "TaskMix":
        """`tasks`: words or arrow forms with weights >= 0, normalised.

        A word's share is divided over its tasks by the `modality_weights` of the modality beside RGB (1 if absent).
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
        """All tasks of several mixes, each with the mean of its probabilities."""
        shares: dict[Task, float] = {}
        for task, weight in (pair for mix in mixes for pair in mix.weights):
            shares[task] = shares.get(task, 0.0) + weight
        return mixes[0] if len(mixes) == 1 else cls._normalised(shares)

    @classmethod
    def _normalised(cls, shares: Mapping[Task, float]) -> "TaskMix":
        """In an order of its own, fewest given first: that of a recipe's tables and modalities must not matter."""
        total = fsum(shares.values())
        if total <= 0:
            raise OpenUniError(f"no task has a weight above 0. {_grammar()}")
        ordered = sorted((task for task, share in shares.items() if share > 0), key=_place)
        return cls(tuple((task, shares[task] / total) for task in ordered))

    @property
    def tasks(self) -> list[Task]:
        """All tasks of the mix."""
        return [task for task, _ in self.weights]

    def available_tasks(self, available: Iterable[str]) -> list[tuple[Task, float]]:
        """The tasks whose `needs` are all `available`, with their weights (which then sum to at most 1)."""
        return list(self._possible(frozenset(available)))

    def draw(self, available: Iterable[str], seed: int, *names: int | str) -> Task:
        """The task of one sample, among those its clip has the streams for; raises when there is none."""
        possible = self._possible(frozenset(available))
        if not possible:
            raise OpenUniError(f"no task can be done with {', '.join(sorted(available)) or 'no stream at all'}")
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
    """What tasks of a mix are sorted by."""
    given, made = ([(name != "rgb", name) for name in side] for side in (task.conditions, task.targets))
    return len(given), given, made, task.generates_text


def _check_weights(tasks: Mapping[str, float], modality_weights: Mapping[str, float]) -> None:
    beside_rgb = [name for name in modality_names() if name != "rgb"]
    for name in modality_weights:
        if name not in beside_rgb:
            raise OpenUniError(f"modality_weights: {unknown_name('modality beside rgb', name, beside_rgb)}")
    for name, weight in (*tasks.items(), *modality_weights.items()):
        if not 0 <= weight <= MAX_WEIGHT:
            raise OpenUniError(f'the weight of "{name}" is {weight:g}. Allowed: 0 to {MAX_WEIGHT:g}.')


def _modality_weight(task: Task, weights: Mapping[str, float]) -> float:
    found = [weights.get(name, 1.0) for name in task.streams if name != "rgb"]
    return max(found, default=1.0)


def _grammar() -> str:
    return (
        f'Write {", ".join(TASK_GROUPS)}, "given->made" such as "rgb->depth" or "text->rgb+depth", or R2AIN, t2v, ...'
    )
