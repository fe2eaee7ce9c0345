"""Sidecar files of a source video: captions and supplied ground truth."""

import re
import stat
from pathlib import Path

from openuni.manifests.errors import ClipError
from openuni.manifests.storage.address import file_system
from openuni.manifests.video.container import translate_errors
from openuni.manifests.video.http_file import read_http
from openuni.manifests.video.source_file import BYTE_RANGE, HTTP_PROTOCOLS

# what follows the path of a URL; object stores allow ? and # in names, but s3fs reads a version from the end
QUERIES = {
    "http": re.compile(r"[?#].*", re.DOTALL),
    "https": re.compile(r"[?#].*", re.DOTALL),
    "s3": re.compile(r"\?versionId=[^?]*$"),
    "s3a": re.compile(r"\?versionId=[^?]*$"),
}


def is_url(source: str) -> bool:
    """Whether a source is a URL, read through fsspec, rather than a local path."""
    return "://" in source


def sidecar_path(source: str, suffix: str) -> str | None:
    """Path or URL of a sidecar file: the source with another suffix, such as `a/b.mp4`, ".txt" -> `a/b.txt`.

    Query and fragment of a URL are left out: `https://host/b.mp4?v=1.2` -> `https://host/b.txt`. None where no sidecar
    can be named: URLs whose path has no suffix (`https://host/watch?v=1`), byte ranges of a file that contains several
    videos, and sources that have this suffix themselves.
    """
    if BYTE_RANGE.search(source):
        return None
    query = QUERIES.get(source.partition("://")[0])
    path = query.sub("", source) if query and is_url(source) else source
    folder, slash, name = path.rpartition("/")
    stem = name.rpartition(".")[0]
    if is_url(source) and not stem:
        return None
    location = f"{folder}{slash}{stem or name}{suffix}"
    return location if location != path else None


def read_bounded(location: str, max_bytes: int, timeout_s: float = 120.0) -> bytes | None:
    """Read a whole file; None if it does not exist. URLs without access and web pages count as missing.

    `timeout_s`: for HTTP, where the size is not known before.
    Raises `ClipError` if it is larger than `max_bytes` or not a regular file (reading a pipe could block forever).
    """
    if location.startswith(tuple(f"{protocol}://" for protocol in HTTP_PROTOCOLS)):
        return _read_http(location, max_bytes, timeout_s)
    fs, path = file_system(location)
    try:
        if not is_url(location) and not stat.S_ISREG(Path(location).stat().st_mode):
            raise ClipError(f"{location} is not a regular file; remove it")
        size = fs.size(path)
    except FileNotFoundError:
        return None
    except PermissionError:
        if is_url(location):  # S3 hides what is missing from those who may not list the bucket
            return None
        raise
    if size is not None and size > max_bytes:
        raise ClipError(f"{location} has {size:,} bytes; at most {max_bytes:,} are allowed")
    return bytes(fs.cat_file(path))


def _read_http(url: str, max_bytes: int, timeout_s: float) -> bytes | None:
    with translate_errors(url):
        data = read_http(url, max_bytes, timeout_s)
    if data is not None and len(data) > max_bytes:
        raise ClipError(f"{url} has more than {max_bytes:,} bytes; at most {max_bytes:,} are allowed")
    return data
