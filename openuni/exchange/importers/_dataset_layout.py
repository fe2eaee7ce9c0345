"""Layout of a dataset: clip folders, splits, small files, and containment of all paths in the dataset folder."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openuni.exchange.export_job import RECORD
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.storage.links import snapshot_blobs
from openuni.manifests.text_files import decode_text

# folder name -> split of the corpus
SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
SPLITS |= {"validation": "validation", "test": "test", "testing": "test"}
MAX_DEPTH = 6  # of folders below the dataset folder
MAX_CAPTION_BYTES = 64 * 1024
MAX_JSON_BYTES = 1 << 20


class ClipLocation(NamedTuple):
    """Where a clip is stored."""

    root: str  # the dataset folder; nothing outside it is read
    folder: str  # the clip's folder, below `root`
    split: str | None


def clip_folders(root: Path, is_clip: Callable[[Path], bool]) -> Iterator[tuple[str, ClipLocation]]:
    """Key and location of every folder below `root` that is a clip, sorted by name.

    Hidden folders and links are skipped; folders within a clip are not searched.
    """
    for folder in _folders(root, is_clip, MAX_DEPTH):
        key = folder.relative_to(root).as_posix()
        yield key, ClipLocation(str(root), str(folder), split_of(key))


def _folders(folder: Path, is_clip: Callable[[Path], bool], depth: int) -> Iterator[Path]:
    for inner in subfolders(folder):
        if is_clip(inner):
            yield inner
        elif depth > 1:
            yield from _folders(inner, is_clip, depth - 1)


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name; links are skipped."""
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The files in a folder that match `pattern`, sorted by name; hidden files and folders are skipped."""
    found = (path for path in folder.glob(pattern) if not _is_hidden(path.relative_to(folder)))
    try:
        return sorted(path for path in found if path.is_file())
    except RecursionError:
        raise OpenUniError(
            f'{folder}: folders are nested too deeply to search for "{pattern}". Move the dataset out of them.'
        ) from None


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def check_finished(folder: Path, files: Iterable[Path]) -> None:
    """Raise `OpenUniError` if one of the files, or `folder` itself, belongs to an unfinished export."""
    folders = {folder, *(parent for path in files for parent in path.parents if parent.is_relative_to(folder))}
    for parent in sorted(folders):
        if (parent / RECORD).is_file() and _is_stopped_export(parent / RECORD):
            raise OpenUniError(
                f"{parent} is an unfinished export (see {RECORD}): clips are missing. Rerun the same "
                "openuni export to resume it."
            )


def _is_stopped_export(record: Path) -> bool:
    try:
        found = read_json(record, record.parent)
    except ClipError:  # another program's file of that name
        return False
    return found.get("finished") is False and "made_from" in found


def split_of(key: str) -> str | None:
    """The split that a folder above the clip names: `train/room/0001` -> "train"."""
    named = (SPLITS[part.lower()] for part in key.split("/")[:-1] if part.lower() in SPLITS)
    return next(named, None)


def resolve_inside(path: Path, root: str | Path) -> Path:
    """The path with links resolved; raises `ClipError` if it is outside the dataset folder.

    Files of a Hugging Face snapshot are links to the `blobs/` of the same repository, whose names say nothing: they
    keep their own name, in their real folder.
    """
    real, inside = path.resolve(), Path(root).resolve()
    if not real.is_relative_to(inside):
        blobs = snapshot_blobs(inside)
        named = path.parent.resolve() / path.name
        if blobs is not None and real.parent == blobs and named.is_relative_to(inside):
            return named
        raise ClipError(
            f"{path} resolves to {real}, outside the dataset folder {root}. Copy the file into the dataset."
        )
    return real


def read_text(path: Path, root: str | Path) -> str | None:
    """A caption: the file's text, stripped; None if the file is missing or empty."""
    if not path.is_file():
        return None
    return decode_text(_small(path, root, MAX_CAPTION_BYTES), str(path)).strip() or None


def read_json(path: Path, root: str | Path) -> dict[str, Any]:
    """The JSON object in a file; raises `ClipError` if it is not one."""
    return parse_json(_small(path, root, MAX_JSON_BYTES), str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`; raises `ClipError` if it is not one. `where`: name for errors."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise ClipError(f"{where} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ClipError(f"{where} must contain a JSON object, got {type(found).__name__}")
    return found


def _small(path: Path, root: str | Path, max_bytes: int) -> bytes:
    real = resolve_inside(path, root)
    try:
        size = real.stat().st_size
        if size > max_bytes:
            raise ClipError(f"{path} has {size:,} bytes; the limit is {max_bytes:,}")
        return real.read_bytes()
    except OSError as error:  # a folder, a broken link, no permission
        raise ClipError(f"{path} cannot be read: {error.strerror}") from error


def one_group(pattern: str, option: str) -> re.Pattern[str] | None:
    """A regex with one group, or None for an empty string; raises `OpenUniError` that names the option."""
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise OpenUniError(f"{option} = {pattern!r} is not a valid regular expression: {error}") from error
    if compiled.groups != 1:
        raise OpenUniError(f'{option} = {pattern!r} has {compiled.groups} groups; expected one, as in "(.+)_[0-9]+"')
    return compiled
