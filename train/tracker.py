"""The tracker contract: a service or program that shows the log of a training run. One file per tracker."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import OpenUniError

logger = logging.getLogger(__name__)


class TrackedRun(NamedTuple):
    """What a tracker is told of a training run."""

    folder: Path  # the run folder
    recipe: dict[str, Any]  # all options, JSON-able
    step: int  # number of finished steps; 0: a new run


class TrackerSession(Protocol):
    """An open tracker. Any exception of its methods disables it, with a warning; the training goes on."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Values of a row of the log, such as `loss` and `task_loss/rgb->depth`. Steps repeat after a restart."""

    def video(self, step: int, name: str, frames: np.ndarray) -> None:
        """A sample: uint8 [T, H, W, 3]."""

    def close(self) -> None:
        """The training has ended."""


def filmstrip(frames: np.ndarray) -> np.ndarray:
    """Up to eight frames side by side, evenly spaced: uint8 [T, H, W, 3] -> [H, n W, 3]. It needs no video codec."""
    shown = np.linspace(0, len(frames) - 1, min(len(frames), 8)).round().astype(int)
    return np.concatenate(list(frames[shown]), axis=1)


@dataclass(frozen=True)
class Tracker(Component, ABC):
    """Base of all trackers: a component whose `start` opens a session. Called on rank 0 only."""

    @abstractmethod
    def check(self) -> None:
        """Raise `MissingRequirement` if its package is not installed."""

    @abstractmethod
    def start(self, run: TrackedRun) -> TrackerSession:
        """Open a session: a new one, or that of the run before it was resumed."""


def parse_tracker(table: Mapping[str, Any]) -> Tracker | None:
    """The tracker of a recipe's `[tracking]` table, ready to start; None if the table is empty.

    Raises `OpenUniError` for an unknown tracker or option, `MissingRequirement` if its package is not installed.
    """
    if not table:
        return None
    if not isinstance(table.get("name"), str):
        raise OpenUniError('recipe: [tracking] needs a name, such as name = "wandb"')
    base: Any = Tracker
    kind = find_component("trackers", base, table["name"], imports=True)
    tracker: Tracker = parse_options(kind, {key: value for key, value in table.items() if key != "name"}, "tracking")
    tracker.check()
    return tracker


class Tracking:
    """A session that cannot end the training: its first exception is a warning, and disables it."""

    def __init__(self, tracker: Tracker | None, run: TrackedRun) -> None:
        self.name = tracker.name() if tracker is not None else ""
        self.session: TrackerSession | None = None
        if tracker is not None:
            self._try(lambda: setattr(self, "session", tracker.start(run)))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `TrackerSession.log`."""
        if self.session is not None and scalars:
            session = self.session
            self._try(lambda: session.log(step, scalars))

    def video(self, step: int, name: str, frames: np.ndarray) -> None:
        """See `TrackerSession.video`."""
        if self.session is not None:
            session = self.session
            self._try(lambda: session.video(step, name, frames))

    def close(self) -> None:
        """See `TrackerSession.close`."""
        if self.session is not None:
            self._try(self.session.close)
            self.session = None

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # of any package; the training does not depend on it
            logger.warning(
                "tracker %s failed: %s: %s. The training continues without it; log.jsonl has all rows.",
                self.name,
                type(error).__name__,
                error,
            )
            session, self.session = self.session, None
            if session is not None and call != session.close:
                with suppress(Exception):
                    session.close()
