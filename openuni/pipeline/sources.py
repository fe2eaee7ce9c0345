"""From what a user names (files, folders, globs, lists, URLs) to the sources to ingest."""

import glob
import os
import re
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.names import shown
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.storage.address import file_system
from openuni.manifests.text_files import decode_text
from openuni.manifests.video.source_file import ALLOWED_ADDRESSES, URL_PROTOCOLS
from openuni.pipeline.folder_scan import VIDEO_SUFFIXES, FolderScan, is_source_name, is_video, mode_of, suffix_of

LIST_SUFFIX = ".txt"
# credentials before the host; without a password, `abfs://container@account` is an address like any other
PASSWORD = re.compile(r"(https?://)[^/?#]*@|(\w+://)[^/?#@:]*:[^/?#@]*@")


class FoundSources(NamedTuple):
    """Sources, and which of them are links."""

    names: list[str]  # absolute paths and URLs
    links: dict[str, str]  # source that is a link -> the file it leads to


def find_sources(given: str | Path | Sequence[str | Path]) -> list[str]:
    """Absolute paths and URLs, each once, sorted within each thing given.

    A folder (or `s3://bucket/folder/`) is searched with all its folders for files with a video's suffix, maps that lie
    beside a video (`NAME.depth.mkv`) left out; a glob is expanded; a `.txt` file holds one of these per line (`#`
    begins a comment, unless a file of that name exists); anything else is one source, also a picture. A name that
    exists is never taken for a glob. A link to a file keeps its own name, unless the file it leads to is found too.
    Raises `OpenUniError` where something is not there or holds no video. Only URLs of videos and pictures in a list are
    taken at their word, since there may be millions: a missing one fails at ingest.
    """
    return find_with_links(given).names


def find_with_links(given: str | Path | Sequence[str | Path]) -> FoundSources:
    """As `find_sources`, with the links among the sources."""
    _real_folder.cache_clear()
    search = _Search()
    found: list[str] = []
    for item in [given] if isinstance(given, str | Path) else given:
        found.extend(search.expand(str(item)))
    names, links = dict.fromkeys(found), search.scan.links
    if links:
        names = dict.fromkeys(links[name] if links.get(name) in names else name for name in names)
    texts = list(dict.fromkeys(map(_as_text, names)))
    return FoundSources(texts, {name: links[name] for name in texts if name in links})


def as_recorded(found: FoundSources, corpus: Corpus) -> list[str]:
    """The sources by the names that the corpus knows: corpora of version 0.1 contain the target of a link instead."""
    if not found.links or not corpus.parts("clips"):
        return found.names
    known = corpus.table("clips", ["source"]).column("source")
    asked = pa.array([*found.links, *found.links.values()], pa.string())
    recorded = frozenset(asked.filter(pc.is_in(asked, value_set=known.combine_chunks())).to_pylist())
    former = {name: target for name, target in found.links.items() if target in recorded and name not in recorded}
    return list(dict.fromkeys(former.get(name, name) for name in found.names))


def _as_text(source: str) -> str:
    """The name; of a file whose name is no text, its bytes as escapes: it fails at ingest, and has a row."""
    return source if source.isascii() else source.encode("utf-8", "backslashreplace").decode()


def is_url(source: str) -> bool:
    """Whether the source is read through fsspec rather than as a local path."""
    return "://" in source and not source.startswith("file://")


class _Search:
    """Expands what is given. Within one search the links that lead to the same file are known."""

    def __init__(self) -> None:
        self.scan = FolderScan()
        self.lists: list[str] = []  # those being read, each named in the one before

    def expand(self, item: str) -> list[str]:
        if "\0" in item:
            raise OpenUniError(f"{item!a}: names of sources cannot contain a NUL character")
        if is_url(item):
            _check_no_password(item)
            return _expand_url(item)
        path = _local(item)
        if suffix_of(path) != LIST_SUFFIX and (file := self._file(path)):
            return [file]  # asked first, and asked little: a list may hold millions
        mode = mode_of(path)
        if stat.S_ISDIR(mode):
            return _not_empty(self.scan.videos(path), f'folder "{item}"')
        if stat.S_ISREG(mode):
            return self._expand_list(path)
        if mode:
            return [str(Path(path).resolve())]  # a pipe or the like: a failed row
        if glob.has_magic(path):
            files = _matches(path)
            for file in files:
                self.scan.file(file)
            return _not_empty(files, f'pattern "{item}"')
        raise OpenUniError(f'"{item}" not found. Pass a video, a folder, a quoted glob pattern, a .txt list or a URL.')

    def _file(self, path: str) -> str | None:
        """A file by its own name in its real folder, asking the system once per file and once per folder."""
        mode = mode_of(path, follow_links=False)
        is_link = stat.S_ISLNK(mode)
        if not stat.S_ISREG(mode_of(path) if is_link else mode):
            return None
        folder, _, name = path.rpartition("/")
        found = f"{_real_folder(folder if path.startswith('/') else f'{Path.cwd()}/{folder}')}/{name}"
        if is_link:
            self.scan.file(found)
        return found

    def _expand_list(self, path: str) -> list[str]:
        real = os.path.realpath(path)
        if real in self.lists:
            raise OpenUniError(f'list "{path}" contains itself, through {" -> ".join([*self.lists, real])}')
        try:
            text = decode_text(Path(path).read_bytes(), f'list "{path}"')
        except ClipError as error:
            raise OpenUniError(str(error)) from error
        self.lists.append(real)
        found: list[str] = []
        for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
            entry = _entry(line, path.rpartition("/")[0] or ("/" if path.startswith("/") else "."))
            is_video_url = is_url(entry) and is_source_name(entry) and not glob.has_magic(entry)
            if is_video_url and not PASSWORD.match(entry):
                found.append(entry)
            elif entry:
                try:
                    found.extend(self.expand(entry))
                except OpenUniError as error:
                    raise OpenUniError(f'list "{path}", line {number}: {error}') from error
        self.lists.pop()
        return _not_empty(found, f'list "{path}"')


def _entry(line: str, folder: str) -> str:
    """What a line of a list names, empty for a comment. Local names are relative to the list's folder."""
    stripped = line.strip(" \t")
    if is_url(stripped):
        return _url_entry(stripped)
    parts = stripped.split("#")
    names = ["#".join(parts[:count]).rstrip(" \t") for count in range(len(parts), 0, -1)]
    if stripped and stripped != line:
        names.insert(0, line)
    entries = [entry for name in names for entry in _readings(name, folder)]
    if len(entries) == 1:
        return entries[0]
    # names may contain "#", and blanks at their ends: the longest that exists, else the shortest
    return next((entry for entry in entries if entry and _exists(_local(entry))), entries[-1])


def _readings(name: str, folder: str) -> list[str]:
    """The path of a name in a list; two of one that begins with `~`: a file of the folder, and a user's home."""
    if not name or name.startswith(("/", "file://")):
        return [name]
    return [f"{folder}/{name}", name] if name.startswith("~") else [f"{folder}/{name}"]


def _exists(path: str) -> bool:
    return bool(mode_of(path, follow_links=False)) or (glob.has_magic(path) and bool(_matches(path)))


def _local(item: str) -> str:
    """The path that a local item names."""
    path = item.removeprefix("file://")
    if path != item and "%" in path and not mode_of(path, follow_links=False):
        return unquote(path, errors="surrogateescape")  # a file URI, as browsers and file managers write it
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # no such user
        return path


def _matches(pattern: str) -> list[str]:
    """The visible files that match a local pattern, sorted; absolute."""
    fs, path = file_system(pattern)
    files = [file for file in sorted(fs.glob(_literal_folders(fs, path))) if fs.isfile(file)]
    return [file for file in files if not file.rpartition("/")[2].startswith(".")]


def _url_entry(line: str) -> str:
    """A URL without the comment behind it. Names in object stores may contain blanks and `#`, web addresses may not."""
    cut = re.split(r"\s+#", line, maxsplit=1)[0]
    is_web = line.startswith(("http://", "https://"))
    return cut if is_web or (is_source_name(cut) and not is_source_name(line)) else line


def _expand_url(item: str) -> list[str]:
    protocol = item.partition("://")[0]
    if protocol not in URL_PROTOCOLS:
        hint = f" Write it in lower case: {protocol.lower()}://" if protocol.lower() in URL_PROTOCOLS else ""
        raise OpenUniError(f'"{item}": protocol {shown(protocol)} is not allowed.{hint} {ALLOWED_ADDRESSES}')
    if item.startswith(("http://", "https://")):
        return [item]  # a web server has no listing to search
    fs, path = file_system(item)
    if fs.isdir(path):
        files = [file for file in fs.find(path) if is_video(file)]
    elif fs.exists(path):
        files = [path]
    elif glob.has_magic(path):
        files = [file for file in fs.glob(_literal_folders(fs, path)) if fs.isfile(file)]
    else:
        raise OpenUniError(f'"{item}" not found, or not accessible with these credentials.')
    return _not_empty(sorted(fs.unstrip_protocol(file) for file in files), f'"{item}"')


def _check_no_password(url: str) -> None:
    """Raise `OpenUniError` for credentials in a URL: sources are stored in every table, export and log."""
    found = PASSWORD.match(url)
    if found:
        rest = url[found.end() :].partition("?")[0]
        raise OpenUniError(
            f"{found[1] or found[2]}...@{rest}: the URL contains credentials, which tables and logs would show. Remove "
            "them, and set them in the environment, such as "
            """FSSPEC_HTTPS='{"headers": {"Authorization": "Basic ..."}}'"""
        )


def _literal_folders(fs: Any, pattern: str) -> str:
    """The pattern, with names of folders that exist and contain a glob's characters escaped: `take[1]/*.mp4`."""
    escaped, literal = list[str](), ""
    parts = pattern.split("/")
    for number, part in enumerate(parts[:-1]):
        literal = f"{literal}/{part}" if number else part
        if glob.has_magic(part):
            if not fs.isdir(literal):
                return "/".join([*escaped, *parts[number:]])
            part = glob.escape(part)
        escaped.append(part)
    return "/".join([*escaped, parts[-1]])


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder or "/").rstrip("/")


def _not_empty(files: list[str], what: str) -> list[str]:
    if not files:
        raise OpenUniError(
            f"{what} contains no video (looked for {' '.join(sorted(VIDEO_SUFFIXES))}). Pictures are sources if "
            'they are named, such as by the pattern "FOLDER/*.jpg".'
        )
    return files
