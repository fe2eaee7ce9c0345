"""Damaged samples that a training skips, up to a limit: which they are, why, and how many."""

import logging
from collections.abc import Mapping
from typing import Any

from openuni.training.data.index import TensorError

NAMED = 20  # samples that an error names with their reasons
logger = logging.getLogger(__name__)


class SkippedSamples:
    """The distinct samples that a run has skipped. Equal on all ranks."""

    def __init__(self, limit: int, found: Any = None) -> None:
        """`limit`: `data.max_skipped_samples`. `found`: `reasons` of the checkpoint that is resumed."""
        self.limit = limit
        known = found if isinstance(found, dict) else {}
        self.reasons = {str(sample): str(reason) for sample, reason in known.items()}  # by sample id

    def add(self, reasons: Mapping[str, str], step: int) -> dict[str, str]:
        """Count samples that a step skips; returns the new ones. Raises `TensorError` if they exceed the limit."""
        new = {sample: reason for sample, reason in sorted(reasons.items()) if sample not in self.reasons}
        if new:
            check_limit(self.reasons | new, self.limit)
        for sample, reason in new.items():
            logger.warning("step %d: sample %s is skipped: %s", step, sample, reason)
        self.reasons |= new
        return new

    def summary(self) -> str:
        """Number and names of all skipped samples; empty if there are none."""
        if not self.reasons:
            return ""
        return f"{len(self.reasons):,} damaged samples were skipped: {', '.join(self.reasons)}"


def check_limit(reasons: Mapping[str, str], limit: int) -> None:
    """Raise `TensorError` that names the samples, if they are more than `limit`."""
    if len(reasons) <= limit:
        return
    lines = [f"\n  {reason}" for reason in list(reasons.values())[:NAMED]]
    more = [f"\n  and {len(reasons) - NAMED:,} more, see log.jsonl"] if len(reasons) > NAMED else []
    raise TensorError(
        f"{len(reasons):,} samples are damaged, and data.max_skipped_samples = {limit} allows {limit}:"
        f"{''.join(lines + more)}\nRepair the corpus, or raise data.max_skipped_samples to train on other samples in "
        "their place."
    )
