"""What the phases of a run share: the items they work on, and a worker that writes to a corpus."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TextIO

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.writer import PartWriter
from openuni.manifests.storage.lock import worker_lock
from openuni.manifests.video.clip import Clip
from openuni.pipeline.planning.map_sources import MapSource
from openuni.pipeline.worker import Worker


@dataclass(frozen=True)
class ClipItem:
    """One clip, the operators or streams that have not seen it, and where the stored maps they start from lie."""

    clip: Clip
    todo: tuple[str, ...]  # in the order in which they are done
    stored: Mapping[MapSource, Mapping[str, Any] | None] = field(default_factory=dict)  # None: the clip has none

    @property
    def key(self) -> str:
        """What identifies the item in a run."""
        return self.clip.clip_id


class CorpusWorker(Worker):
    """A worker that writes to a corpus: it holds the corpus's worker lock and one writer per column group."""

    def __init__(self, url: str) -> None:
        self.corpus = Corpus.open(url)
        self.lock: TextIO = worker_lock(self.corpus.store)
        self.writers: dict[str, PartWriter] = {}

    def finish(self) -> None:
        """Seal all writers and release the lock, also if some of them fail."""
        with ExitStack() as last:
            last.callback(self.lock.close)
            for writer in reversed(self.writers.values()):
                last.callback(writer.finish)


def reader_on(device: str, reader: str) -> str:
    """What decodes the frames of a worker on this device: NVDEC only where it has a GPU, else its equal on the CPU."""
    return "pyav" if reader == "nvdec" and not device.startswith("cuda") else reader


def decoder_threads() -> int:
    """Threads of a worker's decoder: its share of the cores, which the runner states; all of them without a runner."""
    return int(os.environ.get("OPENUNI_THREADS", "0"))
