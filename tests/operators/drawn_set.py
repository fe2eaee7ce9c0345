"""An importer of a format made for the tests: each `NAME.clip` holds a number, which draws frames and depth."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from openuni.exchange.importer import FoundClip, ImportedClip, Importer
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.rgb import RGB


class Drawn(NamedTuple):
    """What a clip of the format holds."""

    rgb: RGB
    depth: Depth | None
    number: Annotated[int, "what the file says"]


@dataclass(frozen=True)
class DrawnSet(Importer):
    """Reads `NAME.clip`: a number draws a clip, "deadly" kills the process, all else is a damaged file."""

    frames: Annotated[int, "frames per clip"] = 5
    log: Annotated[str, "file that gets a line per clip read; empty for none"] = ""

    origin = "made for the tests"

    def find(self, folder: Path) -> Iterable[FoundClip]:
        """The files with the suffix `.clip`."""
        return (FoundClip(path.stem, str(path)) for path in sorted(folder.glob("*.clip")))

    def read(self, found: FoundClip) -> ImportedClip[Drawn]:
        """Even numbers have depth too."""
        text = Path(found.location).read_text()
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{found.key}\n")
        if text == "deadly":
            os.abort()
        if not text.isdigit():
            raise ClipError(f"{found.key} holds {text!r}, no number")
        rng = np.random.default_rng(int(text))
        frames = rng.integers(0, 256, (self.frames, 32, 48, 3), np.uint8)
        depth = Depth(rng.random((self.frames, 32, 48, 1), np.float32) + 1, unit="metres")
        maps = Drawn(RGB(frames), depth if int(text) % 2 == 0 else None, int(text))
        return ImportedClip(maps, 12.0, caption=f"number {text}", origin=f"tens {int(text) // 10}")
