"""Weights & Biases: `pip install 'openuni[wandb]'`, then `wandb login`, or mode = "offline"."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from openuni.manifests.errors import MissingRequirement
from openuni.training.tracker import TrackedRun, Tracker, TrackerSession, filmstrip

ID_FILE = "openuni-run-id"  # in the folder that wandb writes to


@dataclass(frozen=True)
class Wandb(Tracker):
    """Log to Weights & Biases. A resumed training continues the same run there."""

    origin: ClassVar[str] = "wandb"
    licence: ClassVar[str] = "MIT"
    project: Annotated[str, "project"] = "openuni"
    entity: Annotated[str, "user or team; empty: the default of the account"] = ""
    run_name: Annotated[str, "name of the run; empty: that of the run folder"] = ""
    mode: Annotated[Literal["online", "offline"], "offline: write to RUN/wandb/, for `wandb sync`"] = "online"

    def check(self) -> None:
        """See `Tracker.check`."""
        if find_spec("wandb") is None:
            raise MissingRequirement("tracker wandb: not installed. Install it with: pip install 'openuni[wandb]'")

    def start(self, run: TrackedRun) -> TrackerSession:
        """See `Tracker.start`."""
        import wandb

        folder = run.folder.absolute()
        opened = wandb.init(
            project=self.project,
            entity=self.entity or None,
            name=self.run_name or folder.name,
            id=_run_id(folder / "wandb" / ID_FILE),
            resume="allow" if self.mode == "online" else None,
            mode=self.mode,
            dir=str(folder),
            config=run.recipe,
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )
        opened.define_metric("step")
        opened.define_metric("*", step_metric="step")  # wandb's own steps cannot go back to a checkpoint
        return _Session(opened)


class _Session:
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `TrackerSession.log`."""
        self.run.log({"step": step, **scalars})

    def video(self, step: int, name: str, frames: np.ndarray) -> None:
        """See `TrackerSession.video`: a row of up to eight frames, as videos would need another package."""
        import wandb

        self.run.log({"step": step, name: wandb.Image(filmstrip(frames))})

    def close(self) -> None:
        """See `TrackerSession.close`."""
        self.run.finish()


def _run_id(path: Path) -> str:
    """The id of the run at the service: drawn at its start, and kept in the run folder."""
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = uuid.uuid4().hex
    path.write_text(drawn, encoding="utf-8")
    return drawn
