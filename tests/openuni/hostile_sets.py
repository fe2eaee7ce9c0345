"""Datasets made to harm `openuni import`: in the folder `set` of a place, next to `raw/` and `outside/secret.txt`."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Change = Callable[[Path], object]
SECRET, VIDEO = "outside/secret.txt", "outside/video.mp4"  # the video could be imported
MARKUP = "\x1b]0;owned\x07<script>=1+1"
DEPTH = {"file": "depth.mkv", "constants": {"near": 1.0, "far": 2.0}}
CODE = {"modalities": {"evil.module": DEPTH}}


class HostileSet(NamedTuple):
    """`make` writes the dataset into a place; `code`: exit code of `openuni import FORMAT set`."""

    format: str
    make: Change
    code: int


def folder_set(**changes: Any) -> Change:
    """One folder per clip. `changes`: file of the clip -> bytes, the record of a clip.json, or a link's target."""

    def make(place: Path) -> None:
        shutil.copy(place / "raw/clip-000.mp4", place / VIDEO)
        clip = place / "set/a"
        clip.mkdir(parents=True)
        shutil.copy(place / "raw/clip-000.mp4", clip / "rgb.mp4")
        for name, value in changes.items():
            path = clip / name.replace("__", ".")
            path.unlink(missing_ok=True)
            if isinstance(value, bytes):
                path.write_bytes(value)
            elif isinstance(value, dict):
                path.write_text(json.dumps(value))
            else:
                path.symlink_to(place / value)

    return make


def csv_set(video: str = "a.mp4", prompt: str = "a", **more: str) -> Change:
    """A metadata.csv of one row; PLACE stands for the path of the place."""

    def make(place: Path) -> None:
        shutil.copy(place / "raw/clip-000.mp4", place / VIDEO)
        (place / "set").mkdir()
        shutil.copy(place / "raw/clip-000.mp4", place / "set/a.mp4")
        row = {"video": video.replace("PLACE", str(place)), "prompt": prompt} | more
        with (place / "set/metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)

    return make


def tar_set(*members: tuple[str, bytes | None], link: str = "") -> Change:
    """A shard with these files (None: the video), and a link of the name `link` to the secret."""

    def make(place: Path) -> None:
        (place / "set").mkdir()
        with tarfile.open(place / "set/0.tar", "w") as tar:
            for name, given in members:
                data = (place / "raw/clip-000.mp4").read_bytes() if given is None else given
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            if link:
                info = tarfile.TarInfo(link)
                info.type, info.linkname = tarfile.SYMTYPE, str(place / SECRET)
                tar.addfile(info)

    return make


def linked(*names: str) -> Change:
    """Every file of the dataset is a link to a file outside: the first to the secret, the others to a video."""

    def make(place: Path) -> None:
        for number, name in enumerate(names):
            path = place / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(place / (SECRET if number == 0 else "raw/clip-000.mp4"))

    return make


def huge_array() -> bytes:
    """A NumPy file of 128 bytes that declares an exabyte."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (6, 10**9, 10**8)})
    return file.getvalue()


SETS: dict[str, HostileSet] = {
    # paths
    "folder: a picture is a link to a secret": HostileSet("folder", folder_set(rgb__mp4=SECRET), 1),
    "folder: a picture is a link outside": HostileSet("folder", folder_set(rgb__mp4=VIDEO), 1),
    "folder: a caption is a link to a secret": HostileSet("folder", folder_set(caption__txt=SECRET), 1),
    "folder: a map outside": HostileSet(
        "folder", folder_set(clip__json={"modalities": {"depth": DEPTH | {"file": f"../../{SECRET}"}}}), 1
    ),
    "csv: a video outside": HostileSet("openuni_csv", csv_set(video=f"../{VIDEO}"), 1),
    "csv: a video elsewhere": HostileSet("openuni_csv", csv_set(video=f"PLACE/{VIDEO}"), 1),
    "csv: a playlist of secrets": HostileSet("openuni_csv", csv_set(video=f"concat:PLACE/{SECRET}|PLACE/{SECRET}"), 1),
    "csv: a map outside": HostileSet("openuni_csv", csv_set(depth=f"../{SECRET}"), 1),
    "tar: names outside": HostileSet("webdataset", tar_set(("../../up.mp4", None), ("/tmp/up.mp4", None)), 0),
    "tar: a link to a secret": HostileSet("webdataset", tar_set(("a.mp4", None), link="a.txt"), 0),
    "interiorvid: links to a secret": HostileSet(
        "interiorvid", linked("a/rgb.mp4", "a/albedo.mp4", "a/irradiance.mp4", "a/normal.mp4"), 1
    ),
    "videomatte: links to a secret": HostileSet("videomatte", linked("fgr/a.mp4", "pha/a.mp4"), 1),
    # names of code
    "folder: a modality is code": HostileSet(
        "folder", folder_set(clip__json={"modalities": {"evil.module": DEPTH}}), 1
    ),
    "tar: a modality is code": HostileSet(
        "webdataset",
        tar_set(("a.mp4", None), ("a.json", json.dumps(CODE).encode())),
        1,
    ),
    # sizes
    "folder: an array of an exabyte": HostileSet("folder", folder_set(depth__npy=huge_array()), 1),
    "folder: a record 10,000 deep": HostileSet("folder", folder_set(clip__json=b"[" * 10_000), 1),
    "tar: a record 10,000 deep": HostileSet("webdataset", tar_set(("a.mp4", None), ("a.json", b"[" * 10_000)), 1),
    # markup
    "folder: a caption that controls the terminal": HostileSet("folder", folder_set(caption__txt=MARKUP.encode()), 0),
    "csv: a caption that controls the terminal": HostileSet("openuni_csv", csv_set(prompt=MARKUP), 0),
    "tar: a name that controls the terminal": HostileSet("webdataset", tar_set((f"{MARKUP[:12]}.mp4", None)), 0),
}
