"""The result of an evaluation: figures of every clip, their means, as a table and as a record."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from openuni.console.text_table import format_columns
from openuni.manifests.contracts.options import recorded
from openuni.training.metric import Metric

MAX_LISTED = 3  # clips that could not be compared, by reason, in the table


class ClipResult(NamedTuple):
    """What was found for one clip."""

    clip_id: str
    figures: dict[str, float | None]  # by name; None: not defined for the clip; empty: could not be compared
    reason: str = ""  # why it could not be compared


class Comparison(NamedTuple):
    """Maps of one modality, from one annotator, against the truth."""

    subject: str  # name of the annotator
    modality: str
    metric: Metric
    clips: Sequence[ClipResult]

    @property
    def compared(self) -> list[ClipResult]:
        """Clips that could be compared."""
        return [clip for clip in self.clips if clip.figures]

    def values(self, figure: str) -> np.ndarray:
        """Values of a figure, float [N], of the N clips for which it is defined."""
        return np.array([value for clip in self.compared if (value := clip.figures[figure]) is not None], float)

    def mean(self, figure: str) -> float | None:
        """Mean over clips; None if the figure is defined for none."""
        values = self.values(figure)
        return float(values.mean()) if len(values) else None

    def ranked(self) -> list[ClipResult]:
        """Compared clips from the best to the worst, by the first figure of the metric."""
        first = self.metric.figures()[0]
        defined = [clip for clip in self.compared if clip.figures[first.name] is not None]
        return sorted(defined, key=lambda clip: clip.figures[first.name], reverse=first.better == "higher")  # type: ignore[arg-type, return-value]

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        figures = {}
        for figure in self.metric.figures():
            values = self.values(figure.name)
            figures[figure.name] = {
                "mean": self.mean(figure.name),
                "standard_deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
                "clips": len(values),
                "better": figure.better,
                "meaning": figure.doc,
            }
        return {
            "subject": self.subject,
            "modality": self.modality,
            "metric": self.metric.name(),
            "options": recorded(self.metric),
            "compared": len(self.compared),
            "not_compared": len(self.clips) - len(self.compared),
            "figures": figures,
            "clips": [clip._asdict() for clip in self.clips],
        }


class Evaluation(NamedTuple):
    """All comparisons with one truth."""

    truth: str
    comparisons: Sequence[Comparison]
    note: str = ""  # explains subjects

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {"truth": self.truth, "comparisons": [comparison.as_record() for comparison in self.comparisons]}

    def __str__(self) -> str:
        tables: dict[tuple[str, str], list[Comparison]] = {}
        for comparison in self.comparisons:
            tables.setdefault((comparison.modality, comparison.metric.name()), []).append(comparison)
        return "\n\n".join([*(self._table(group) for group in tables.values()), *([self.note] if self.note else [])])

    def _table(self, group: Sequence[Comparison]) -> str:
        """One line per subject, one column per figure."""
        metric = group[0].metric
        figures = metric.figures()
        options = ", ".join(f"{name} = {value}" for name, value in recorded(metric).items())
        arrows = {"lower": "lower is better", "higher": "higher is better"}
        head = ["", "clips", *(figure.name for figure in figures)]
        rows = [head]
        for one in group:
            rows.append([one.subject, f"{len(one.compared):,}", *(_text(one.mean(figure.name)) for figure in figures)])
        lines = [
            f"{group[0].modality}: mean over clips, compared with {self.truth}" + (f" ({options})" if options else "")
        ]
        lines += [f"  {line}" for line in format_columns(rows, right=range(1, len(head)))]
        lines += [f"  {figure.name}: {figure.doc}; {arrows[figure.better]}" for figure in figures]
        return "\n".join([*lines, *(line for one in group for line in _left_out(one))])


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _left_out(comparison: Comparison) -> list[str]:
    """Reasons for which clips could not be compared, with examples."""
    reasons: dict[str, list[str]] = {}
    for clip in comparison.clips:
        if clip.reason:
            reasons.setdefault(clip.reason, []).append(clip.clip_id)
    lines = []
    for reason, clip_ids in reasons.items():
        listed = ", ".join(clip_ids[:MAX_LISTED]) + (", ..." if len(clip_ids) > MAX_LISTED else "")
        clips = "1 clip" if len(clip_ids) == 1 else f"{len(clip_ids):,} clips"
        lines.append(f"  {comparison.subject}: {clips} not compared: {reason} ({listed})")
    return lines
