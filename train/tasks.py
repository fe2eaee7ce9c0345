"""Tasks: which streams are given (clean) and which are made (noisy, a target). Text is always there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from manifests.errors import OpenUniError, did_you_mean
from manifests.modality import modality_names
from train.randomness import uniform

WORDS = ("joint", "estimate", "control")
RELEASED_WEIGHTS = {"joint": 0.5, "estimate": 0.25, "control": 0.25}  # of the released UnityVideo training script


@dataclass(frozen=True)
class Task:
    """An assignment of roles, written `given->made`: `rgb->depth`, `rgb+depth->flow`, `text->rgb+depth`.

    `text` (or nothing) before the arrow means that no stream is given. Order does not matter; `made` is never empty.
    """

    given: tuple[str, ...]
    made: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", _in_order(self.given))
        object.__setattr__(self, "made", _in_order(self.made))
        if not self.made or set(self.given) & set(self.made):
            raise OpenUniError(f'task "{self}" must make something, and nothing that it is given')

    @classmethod
    def parse(cls, text: str) -> "Task":
        """From the form that `str` writes; raises `OpenUniError` on an unknown modality."""
        before, arrow, after = text.replace(" ", "").partition("->")
        if not arrow:
            raise OpenUniError(f'task "{text}" is not known.{did_you_mean(text, WORDS)} {_grammar()}')
        sides = [[name for name in side.split("+") if name not in ("", "text")] for side in (before, after)]
        for name in sides[0] + sides[1]:
            if name not in modality_names():
                known = ", ".join(modality_names())
                raise OpenUniError(
                    f'task "{text}": "{name}" is no modality.{did_you_mean(name, modality_names())} Known: {known}.'
                )
        return cls(tuple(sides[0]), tuple(sides[1]))

    @property
    def streams(self) -> tuple[str, ...]:
        """All streams of the task, RGB first, then by name."""
        return _in_order(self.given + self.made)

    def __str__(self) -> str:
        return f"{'+'.join(self.given) or 'text'}->{'+'.join(self.made)}"


def expand(word: str, modalities: Sequence[str]) -> list[Task]:
    """One of UnityVideo's three words, or a task in the arrow form, as tasks over a model's `modalities`.

    "joint": text -> rgb + m; "estimate": rgb -> m; "control": m -> rgb; each for every modality m but rgb, because
    UnityVideo trains RGB with one other stream at a time. All streams at once are written out: `text->rgb+depth+flow`.
    """
    others = [name for name in modalities if name != "rgb"]
    if word not in WORDS:
        task = Task.parse(word)
        if missing := [name for name in task.streams if name not in modalities]:
            raise OpenUniError(f'task "{word}" needs {", ".join(missing)}; the model has {", ".join(modalities)}')
        return [task]
    if "rgb" not in modalities or not others:
        raise OpenUniError(f'task "{word}" needs rgb and another modality; the model has {", ".join(modalities)}')
    made = {
        "joint": lambda name: Task((), ("rgb", name)),
        "estimate": lambda name: Task(("rgb",), (name,)),
        "control": lambda name: Task((name,), ("rgb",)),
    }
    return [made[word](name) for name in others]


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
        shares: dict[Task, float] = {}
        for word, weight in tasks.items():
            expanded = expand(word, modalities)
            parts = [_modality_weight(task, modality_weights or {}) for task in expanded]
            for task, part in zip(expanded, parts, strict=True):
                if weight < 0 or part < 0:
                    raise OpenUniError(f'task "{task}" has a negative weight')
                shares[task] = shares.get(task, 0.0) + (weight * part / sum(parts) if sum(parts) else 0.0)
        total = sum(shares.values())
        if total <= 0:
            raise OpenUniError(f"no task has a weight above 0. {_grammar()}")
        return cls(tuple((task, share / total) for task, share in shares.items() if share > 0))

    @property
    def tasks(self) -> list[Task]:
        """All tasks of the mix."""
        return [task for task, _ in self.weights]

    def possible(self, available: Iterable[str]) -> list[tuple[Task, float]]:
        """The tasks whose streams are all `available`, with their weights (which then sum to at most 1)."""
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
            self._cache[available] = tuple(pair for pair in self.weights if available >= set(pair[0].streams))
        return self._cache[available]

    @cached_property
    def _cache(self) -> dict[frozenset[str], tuple[tuple[Task, float], ...]]:
        return {}


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=lambda name: (name != "rgb", name)))


def _modality_weight(task: Task, weights: Mapping[str, float]) -> float:
    found = [weights.get(name, 1.0) for name in task.streams if name != "rgb"]
    return max(found, default=1.0)


def _grammar() -> str:
    return f'Write {", ".join(WORDS)}, or "given->made" such as "rgb->depth" or "text->rgb+depth".'
