"""From what a user names (files, folders, globs, lists, URLs) to the sources to ingest."""

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from fsspec.core import url_to_fs

from openuni.manifests.contracts.modality import modality_names
from openuni.manifests.errors import OpenUniError

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".ogv", ".wmv"]
)
LIST_SUFFIX = ".txt"


def find_sources(given: str | Path | Sequence[str | Path]) -> list[str]:
    """Absolute paths and URLs, each once, sorted within each thing given.

    A folder (or `s3://bucket/folder/`) is searched with all its folders for files with a video's suffix, maps that lie
    beside a video (`NAME.depth.mkv`) left out; a glob is expanded; a `.txt` file holds one of these per line (`#`
    begins a comment); anything else is one source. Raises `OpenUniError` where something is not there or holds no
    video. Only URLs of videos in a list are taken at their word, since there may be millions: a missing one fails at
    ingest.
    """
    _real_folder.cache_clear()
    found: list[str] = []
    for item in [given] if isinstance(given, str | Path) else given:
        try:
            found.extend(_expand(str(item)))
        except RecursionError:
            raise OpenUniError(
                f'"{str(item)[:200]}": folders are nested too deeply to search. Pass folders further down, or files.'
            ) from None
    return list(dict.fromkeys(_as_text(source) for source in found))


def _as_text(source: str) -> str:
    """The name; of a file whose name is no text, its bytes as escapes: it fails at ingest, and has a row."""
    return source if source.isascii() else source.encode("utf-8", "backslashreplace").decode()


def is_url(source: str) -> bool:
    """Whether the source is read through fsspec rather than as a local path."""
    return "://" in source and not source.startswith("file://")


def _expand(item: str) -> list[str]:
    if is_url(item):
        return _expand_url(item)
    if _is_video(item) and (plain := _plain_file(item)):
        return [plain]  # asked first, and asked little: a list may hold millions
    path = Path(item.removeprefix("file://")).expanduser()
    if path.is_dir():
        return _not_empty(sorted(_videos_in(str(path.resolve()))), f'folder "{item}"')
    if path.suffix == LIST_SUFFIX and path.is_file():
        return _expand_list(path)
    if path.exists():
        return [str(path.resolve())]
    if glob.has_magic(item):
        fs, pattern = url_to_fs(str(path))
        files = [file for file in sorted(fs.glob(pattern)) if fs.isfile(file) and not Path(file).name.startswith(".")]
        return _not_empty(files, f'pattern "{item}"')
    raise OpenUniError(f'"{item}" not found. Pass a video, a folder, a quoted glob pattern, a .txt list or a URL.')


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
        raise OpenUniError(f'"{item}" not found, or not accessible with these credentials.')
    return _not_empty(sorted(fs.unstrip_protocol(file) for file in files), f'"{item}"')


def _expand_list(path: Path) -> list[str]:
    found: list[str] = []
    for line in path.read_text().splitlines():
        entry = line.split("#")[0].strip() if "://" not in line else line.strip()
        if not entry:
            continue
        if is_url(entry) and _is_video(entry) and not glob.has_magic(entry):
            found.append(entry)
            continue
        if not is_url(entry) and not entry.startswith(("/", "~", "file://")):
            entry = str(path.parent / entry)  # relative to the list, wherever the command runs
        found.extend(_expand(entry))
    return _not_empty(found, f'list "{path}"')


def _is_video(name: str) -> bool:
    """By its name. The maps of a clip (`NAME.depth.mkv` beside `NAME.mp4`) are no sources of their own."""
    file = name.rpartition("/")[2]
    stem, _, suffix = file.rpartition(".")
    is_map = stem.rpartition(".")[2] in _modalities() and "." in stem
    return f".{suffix.lower()}" in VIDEO_SUFFIXES and not file.startswith(".") and not is_map


@lru_cache(maxsize=1)
def _modalities() -> frozenset[str]:
    return frozenset(modality_names())


def _videos_in(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _videos_in(entry.path)
            elif _is_video(entry.name) and entry.is_symlink():
                yield from _linked(entry.path)
            elif _is_video(entry.name) and entry.is_file():
                yield entry.path


def _linked(path: str) -> Iterator[str]:
    """The file that a link leads to; the link itself where that is nowhere, so that ingest says so in its row."""
    try:
        target = Path(path).resolve(strict=True)
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 say RuntimeError of a loop
        yield path
        return
    if target.is_file():
        yield str(target)


def _plain_file(path: str) -> str | None:
    """`Path.resolve` of a file that is no link itself, asking the system once per file and once per folder."""
    folder, _, name = path.rpartition("/")
    try:
        is_plain = stat.S_ISREG(Path(path).lstat().st_mode)
    except OSError:
        return None
    return f"{_real_folder(folder if path.startswith('/') else f'{Path.cwd()}/{folder}')}/{name}" if is_plain else None


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return str(Path(folder or "/").resolve()).rstrip("/")


def _not_empty(files: list[str], what: str) -> list[str]:
    if not files:
        raise OpenUniError(f"{what} contains no video (looked for {' '.join(sorted(VIDEO_SUFFIXES))}).")
    return files
