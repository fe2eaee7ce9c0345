"""Trackio: a local dashboard, or one in a Hugging Face Space. `pip install trackio`, then `trackio show`."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

import numpy as np

from openuni.manifests.errors import MissingRequirement
from openuni.training.tracker import TrackedRun, Tracker, TrackerSession, filmstrip


@dataclass(frozen=True)
class Trackio(Tracker):
    """Log to Trackio's local database (TRACKIO_DIR), or to a Space. A resumed training continues the same run."""

    origin: ClassVar[str] = "trackio"
    licence: ClassVar[str] = "MIT"
    project: Annotated[str, "project"] = "openuni"
    run_name: Annotated[str, "name of the run; empty: that of the run folder"] = ""
    space_id: Annotated[str, "Hugging Face Space, OWNER/NAME; empty: this machine"] = ""

    def check(self) -> None:
        """See `Tracker.check`."""
        if find_spec("trackio") is None:
            raise MissingRequirement("tracker trackio: not installed. Install it with: pip install 'openuni[trackio]'")

    def start(self, run: TrackedRun) -> TrackerSession:
        """See `Tracker.start`."""
        import trackio

        opened = trackio.init(
            project=self.project,
            name=self.run_name or run.folder.absolute().name,
            space_id=self.space_id or None,
            config=run.recipe,
            resume="allow",
        )
        return _Session(trackio, opened)


class _Session:
    def __init__(self, trackio: Any, run: Any) -> None:
        self.trackio, self.run = trackio, run

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `TrackerSession.log`."""
        self.run.log(dict(scalars), step=step)

    def video(self, step: int, name: str, frames: np.ndarray) -> None:
        """See `TrackerSession.video`: a row of up to eight frames."""
        self.run.log({name: self.trackio.Image(filmstrip(frames))}, step=step)

    def close(self) -> None:
        """See `TrackerSession.close`."""
        self.run.finish()
