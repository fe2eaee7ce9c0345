"""UniVidX's layout: a folder of videos per clip, and their paths as its inference scripts take them in YAML."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from openuni.exchange.exporter import ExportClip, ExportContext, write_lines
from openuni.exchange.exporters._rendered import CLIPS, RGB, ClipFiles
from openuni.manifests.errors import OpenUniError

# set -> letter of a task's name -> what the set's YAML calls it, in its order of rows
SETS = {
    "intrinsic": {"R": "rgb", "A": "albedo", "I": "irradiance", "N": "normal"},
    "alpha": {"R": "rgb", "P": "pha", "F": "fgr", "B": "bgr"},
}


@dataclass(frozen=True)
class UniVid(ClipFiles):
    """A folder per clip: rgb, albedo, irradiance, normal, pha, fgr, bgr.mp4 as far as there, and YAML to run them."""

    intrinsic_mode: Annotated[str, "task of intrinsic.yaml: GIVEN2MADE of R, A, I, N, or t2RAIN"] = "R2AIN"
    alpha_mode: Annotated[str, "task of alpha.yaml: GIVEN2MADE of R, P, F, B, or t2RPFB"] = "R2PFB"
    prefix: Annotated[str, "what the paths in YAML begin with; empty: this folder's absolute path"] = ""

    names: ClassVar[Mapping[str, str]] = {
        "albedo": "albedo",
        "irradiance": "irradiance",
        "normal": "normal",
        "alpha": "pha",
        "foreground": "fgr",
        "background": "bgr",
    }
    origin: ClassVar[str] = "UniVidX's inference scripts"

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, mode in self._modes().items():
            letters = SETS[kind]
            given, two, made = mode.partition("2")
            parted = sorted(given.replace("t", "") + made) == sorted(letters)  # each letter once, on one side
            if not (two and made and parted and re.fullmatch("t|[A-Z]+", given)):
                allowed = f"each of {', '.join(letters)} once, before or after the 2, or t2{''.join(letters)}"
                raise OpenUniError(f'{kind}_mode = "{mode}" is no task. Allowed: {allowed}.')

    def streams(self, clip: ExportClip) -> dict[str, str]:
        """See `ClipFiles.streams`."""
        files = {RGB: "rgb"} | {name: self.names[name] for name in clip.maps}
        return {stream: f"{clip.clip_id}/{file}.mp4" for stream, file in files.items()}

    def texts(self, clip: ExportClip, out: Path) -> dict[str, str]:
        """See `ClipFiles.texts`: a YAML per set that the clip has any map of and all given videos."""
        there = {Path(file).stem: file for file in self.streams(clip).values()}
        texts = {}
        for kind, mode in self._modes().items():
            letters = SETS[kind]
            given = [letters[letter] for letter in mode.partition("2")[0] if letter != "t"]
            if (there.keys() & letters.values()) - {RGB} and there.keys() >= set(given):
                paths = {name: f"{self.prefix or out}/{there[name]}" for name in given}
                values: dict[str, str | None] = {"experiment_name": f"{clip.clip_id}_{kind}", "mode": mode}
                values |= {f"inference_{name}_path": paths.get(name) for name in letters.values()}
                values["prompt"] = clip.clip.caption or ""
                texts[f"{clip.clip_id}/{kind}.yaml"] = yaml_text(values)
        return texts

    def finish(self, clips: Iterable[ExportClip], folder: Path, contents: ExportContext) -> None:
        """clips.jsonl."""
        write_lines(folder / CLIPS, (self.describe(clip) for clip in clips))

    def _modes(self) -> dict[str, str]:
        return {"intrinsic": self.intrinsic_mode, "alpha": self.alpha_mode}


def yaml_text(values: Mapping[str, str | None]) -> str:
    """A flat YAML mapping; JSON's texts and null are YAML's too."""
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
