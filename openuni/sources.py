"""From what a user names (files, folders, globs, lists, URLs) to the sources to ingest."""

import glob
from pathlib import Path

from fsspec.core import url_to_fs

from manifests.errors import OpenUniError

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".ogv", ".wmv"]
)
LIST_SUFFIX = ".txt"


def find_sources(given: str | Path | list[str | Path]) -> list[str]:
    """Absolute paths and URLs, each once, sorted within each thing given.

    A folder (or `s3://bucket/folder/`) is searched with all its folders for files with a video's suffix; a glob is
    expanded; a `.txt` file holds one of these per line (`#` starts a comment); anything else is one source. Raises
    `OpenUniError` where something is not there or holds no video.
    """
    found: list[str] = []
    for item in given if isinstance(given, list | tuple) else [given]:
        found.extend(_expand(str(item)))
    return list(dict.fromkeys(found))


def is_url(source: str) -> bool:
    """Whether the source is read through fsspec rather than as a local path."""
    return "://" in source and not source.startswith("file://")


def _expand(item: str) -> list[str]:
    if is_url(item):
        return _expand_url(item)
    path = Path(item.removeprefix("file://")).expanduser()
    if path.is_dir():
        files = sorted(str(file.resolve()) for file in path.rglob("*") if _is_video(file.name) and file.is_file())
        return _not_empty(files, f'folder "{item}"')
    if path.suffix == LIST_SUFFIX and path.is_file():
        return _expand_list(path)
    if path.exists():
        return [str(path.resolve())]
    if glob.has_magic(item):
        fs, pattern = url_to_fs(str(path))
        files = [file for file in sorted(fs.glob(pattern)) if fs.isfile(file) and not Path(file).name.startswith(".")]
        return _not_empty(files, f'pattern "{item}"')
    raise OpenUniError(f'"{item}" does not exist. Give a video, a folder, a pattern in quotes, a .txt list or a URL.')


def _expand_url(item: str) -> list[str]:
    if item.startswith(("http://", "https://")):
        return [item]  # a web server has no listing to search
    fs, path = url_to_fs(item)
    if glob.has_magic(path):
        files = [file for file in fs.glob(path) if fs.isfile(file)]
    elif fs.isdir(path):
        files = [file for file in fs.find(path) if _is_video(file)]
    elif fs.exists(path):
        files = [path]
    else:
        raise OpenUniError(f'"{item}" does not exist (or these credentials cannot see it).')
    return _not_empty(sorted(fs.unstrip_protocol(file) for file in files), f'"{item}"')


def _expand_list(path: Path) -> list[str]:
    found: list[str] = []
    for line in path.read_text().splitlines():
        entry = line.split("#")[0].strip() if "://" not in line else line.strip()
        if not entry:
            continue
        if not is_url(entry) and not Path(entry).expanduser().is_absolute():
            entry = str(path.parent / entry)  # relative to the list, wherever the command runs
        found.extend(_expand(entry))
    return _not_empty(found, f'list "{path}"')


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES and not Path(name).name.startswith(".")


def _not_empty(files: list[str], what: str) -> list[str]:
    if not files:
        raise OpenUniError(f"{what} holds no video (looked for {' '.join(sorted(VIDEO_SUFFIXES))}).")
    return files
