"""Small files that lie beside a source video: captions, supplied ground truth."""

import stat
from pathlib import Path

from fsspec.core import url_to_fs

from openuni.manifests.errors import ClipError


def is_url(source: str) -> bool:
    """Whether a source is read through fsspec rather than as a local path."""
    return "://" in source


def sidecar_path(source: str, suffix: str) -> str:
    """The path or URL of the file with the source's name and another suffix: `a/b.mp4`, ".txt" -> `a/b.txt`."""
    folder, slash, name = source.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return f"{folder}{slash}{stem}{suffix}"


def read_bounded(location: str, max_bytes: int) -> bytes | None:
    """All bytes of a file, None when there is none; raises `ClipError` when it is larger than `max_bytes`.

    Raises `ClipError` also for what is no file: a pipe would be waited for without end.
    """
    fs, path = url_to_fs(location)
    try:
        if not is_url(location) and not stat.S_ISREG(Path(location).stat().st_mode):
            raise ClipError(f"{location} is not a regular file: remove it")
        size = fs.size(path)
    except FileNotFoundError:
        return None
    if size is not None and size > max_bytes:
        raise ClipError(f"{location} has {size:,} bytes; at most {max_bytes:,} are read")
    return bytes(fs.cat_file(path))
