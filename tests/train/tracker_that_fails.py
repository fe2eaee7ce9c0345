"""A tracker that fails where it is told to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from openuni.training.tracker import TrackedRun, Tracker, TrackerSession


@dataclass(frozen=True)
class Failing(Tracker):
    """Fails in one of its calls, and notes all of them."""

    calls: ClassVar[list[str]] = []
    at: Annotated[Literal["start", "log", "video", "close"], "the call that fails"] = "log"

    def check(self) -> None:
        pass

    def start(self, run: TrackedRun) -> TrackerSession:
        self.call("start")
        return Session(self)

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise ConnectionError("the service does not answer")


class Session:
    def __init__(self, tracker: Failing) -> None:
        self.tracker = tracker

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.tracker.call("log")

    def video(self, step: int, name: str, frames: np.ndarray) -> None:
        self.tracker.call("video")

    def close(self) -> None:
        self.tracker.call("close")
