"""Folder scans: the videos in a folder and its sub-folders, linked ones too, and a count of the files passed over."""

import logging
import os
import stat
from collections import Counter
from functools import lru_cache
from pathlib import Path

from openuni.manifests.contracts.modality import modality_names

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".mk3d", ".webm", ".avi", ".divx", ".flv", ".ogv"]
) | frozenset([".mpg", ".mpeg", ".mpe", ".vob", ".ts", ".m2ts", ".mts", ".asf", ".wmv", ".ivf", ".mxf"])
# Pictures are sources where they are named. Folders of videos hold thumbnails and maps, so scans pass over them.
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp"])
# nobody takes these for videos: they are counted, but alone they are no reason for a warning
DOCUMENT_SUFFIXES = frozenset(
    [".txt", ".json", ".jsonl", ".csv", ".tsv", ".toml", ".yaml", ".yml", ".md", ".log", ".srt", ".vtt", ".parquet"]
)

logger = logging.getLogger(__name__)


def is_video(name: str) -> bool:
    """By its name. The maps of a clip (`NAME.depth.mkv` beside `NAME.mp4`) are not sources themselves."""
    file = name.rpartition("/")[2]
    return suffix_of(file) in VIDEO_SUFFIXES and not file.startswith(".") and not _map_suffix(file)


def is_source_name(name: str) -> bool:
    """Whether a video or a picture, by its name."""
    return is_video(name) or (suffix_of(name) in IMAGE_SUFFIXES and not name.rpartition("/")[2].startswith("."))


def suffix_of(name: str) -> str:
    """The suffix in lower case with its dot, empty if there is none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def mode_of(path: str, *, follow_links: bool = True) -> int:
    """Type and permissions of a file, as of `stat`; 0 if there is none, or its name is not possible."""
    try:
        return Path(path).stat(follow_symlinks=follow_links).st_mode
    except (OSError, ValueError):
        return 0


class FolderScan:
    """Searches folders. Every folder is searched once, whichever links lead to it.

    `links`: found links to video files -> the file; the link's name is the source, because its caption and its maps lie
    beside the link (a Hugging Face snapshot consists of links to files without a suffix).
    """

    def __init__(self) -> None:
        self.links: dict[str, str] = {}

    def videos(self, folder: str) -> list[str]:
        """Paths of the videos below `folder`, sorted: the folder with links resolved, then the file's own name.

        Links to folders are followed, except to a folder that contains one that is being searched. Logs what is
        passed over.
        """
        root = os.path.realpath(folder)
        pending, linked, roots = [root], list[str](), [root]
        seen: set[tuple[int, int]] = set()
        found: list[str] = []
        passed: Counter[str] = Counter()
        while pending or linked:
            if pending:
                current = pending.pop()
            else:  # after all plain folders, so that their files keep their plain names
                current = os.path.realpath(linked.pop())
                if any(f"{known}/".startswith(f"{current.rstrip('/')}/") for known in roots):
                    passed["links to a parent folder"] += 1
                    continue
                roots.append(current)
            status = Path(current).stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                self._scan(current, found, pending, linked, passed)
        _report(folder, passed)
        return sorted(found)

    def file(self, path: str) -> bool:
        """Note where a path leads to if it is a link. Returns False for a link to something that is not a file."""
        if not Path(path).is_symlink():
            return True
        try:
            target = os.path.realpath(path, strict=True)
        except OSError:
            return True  # leads nowhere: ingest says so in its row
        if not stat.S_ISREG(mode_of(target)):
            return False
        self.links[path] = target
        return True

    def _scan(self, folder: str, found: list[str], pending: list[str], linked: list[str], passed: Counter[str]) -> None:
        others: list[str] = []
        stems: set[str] = set()
        with os.scandir(folder) as entries:
            for entry in entries:
                if stat.S_ISDIR(mode_of(entry.path)) if entry.is_symlink() else entry.is_dir():
                    (linked if entry.is_symlink() else pending).append(entry.path)
                elif not is_video(entry.name):
                    others.append(entry.name)
                elif self.file(entry.path) if entry.is_symlink() else entry.is_file():
                    found.append(entry.path)
                    stems.add(entry.name.rpartition(".")[0])
                else:
                    passed["not regular files"] += 1
        for name in others:
            suffix = _map_suffix(name) or suffix_of(name)
            if not name.startswith(".") and name[: len(name) - len(suffix)] not in stems:  # not a sidecar file
                passed[suffix or "without a suffix"] += 1


def _report(folder: str, passed: Counter[str]) -> None:
    if not passed:
        return
    level = logging.INFO if DOCUMENT_SUFFIXES.issuperset(passed) else logging.WARNING
    counts = ", ".join(f"{count:,} {what}" for what, count in passed.most_common())
    logger.log(
        level,
        'folder "%s": passed over %s. A file with another suffix is used if it is named: by path, by a "pattern" or in '
        "a list.",
        folder,
        counts,
    )


def _map_suffix(file: str) -> str:
    """`.depth.mkv` of a map `NAME.depth.mkv`, else an empty string."""
    stem, _, suffix = file.rpartition(".")
    name, dot, modality = stem.rpartition(".")
    is_map = dot and f".{suffix.lower()}" in VIDEO_SUFFIXES and modality in _modalities()
    return file[len(name) :] if is_map else ""


@lru_cache(maxsize=1)
def _modalities() -> frozenset[str]:
    return frozenset(modality_names())
