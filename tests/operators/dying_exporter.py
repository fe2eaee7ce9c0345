"""An exporter that ends its process in the middle of a batch: the first time that it meets each clip, or always."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from openuni.exchange.exporter import ExportBatch, ExportContext, ExportFailure
from openuni.exchange.exporters.univid import UniVid


@dataclass(frozen=True)
class DyingExporter(UniVid):
    """As `univid`."""

    marks: Annotated[str, "folder with a file for each clip that was met"] = ""
    always: Annotated[str, "clip_id with which the process always ends"] = ""

    def write(self, batch: ExportBatch, folder: Path, contents: ExportContext) -> list[ExportFailure]:
        """See `Exporter.write`."""
        failures = super().write(batch, folder, contents)
        clip_id = batch.clips[0].clip_id
        mark = Path(self.marks) / clip_id
        if clip_id == self.always or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return failures
