"""UniVidX's layout: a folder of videos per clip, and their paths in the YAML of its inference scripts."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from openuni.exchange.exporter import ExportClip, ExportContext, write_lines, yaml_string
from openuni.exchange.exporters._rendered import CLIPS, RGB, ClipFiles
from openuni.manifests.errors import OpenUniError

# modality set -> letter in a task's name -> name in the YAML, in the order of its rows
SETS = {
    "intrinsic": {"R": "rgb", "A": "albedo", "I": "irradiance", "N": "normal"},
    "alpha": {"R": "rgb", "P": "pha", "F": "fgr", "B": "bgr"},
}


@dataclass(frozen=True)
class UniVid(ClipFiles):
    """A folder per clip with rgb, albedo, irradiance, normal, pha, fgr, bgr.mp4 as available, and inference YAML."""

    intrinsic_mode: Annotated[
        str, "task of intrinsic.yaml: CONDITIONS2TARGETS over the letters R, A, I, N, or t2RAIN"
    ] = "R2AIN"
    alpha_mode: Annotated[str, "task of alpha.yaml: CONDITIONS2TARGETS over the letters R, P, F, B, or t2RPFB"] = (
        "R2PFB"
    )
    prefix: Annotated[str, "prefix of the paths in YAML; empty: absolute path of the output directory"] = ""

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
            conditions, two, targets = mode.partition("2")
            # every letter occurs once, on one side
            partitioned = sorted(conditions.replace("t", "") + targets) == sorted(letters)
            if not (two and targets and partitioned and re.fullmatch("t|[A-Z]+", conditions)):
                allowed = f"each of {', '.join(letters)} once, before or after the 2, or t2{''.join(letters)}"
                raise OpenUniError(f'{kind}_mode = "{mode}" is not a task. Allowed: {allowed}.')

    def streams(self, clip: ExportClip) -> dict[str, str]:
        """See `ClipFiles.streams`."""
        files = {RGB: "rgb"} | {name: self.names[name] for name in clip.maps}
        return {stream: f"{clip.clip_id}/{file}.mp4" for stream, file in files.items()}

    def texts(self, clip: ExportClip, out: Path) -> dict[str, str]:
        """See `ClipFiles.texts`: one YAML per modality set of which the clip has a map and all conditions."""
        available = {Path(file).stem: file for file in self.streams(clip).values()}
        texts = {}
        for kind, mode in self._modes().items():
            letters = SETS[kind]
            conditions = [letters[letter] for letter in mode.partition("2")[0] if letter != "t"]
            if (available.keys() & letters.values()) - {RGB} and available.keys() >= set(conditions):
                paths = {name: f"{self.prefix or out}/{available[name]}" for name in conditions}
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
    """A flat YAML mapping of strings and nulls."""
    return "".join(f"{key}: {'null' if value is None else yaml_string(value)}\n" for key, value in values.items())
