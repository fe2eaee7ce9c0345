"""File storage of a corpus: a local folder or an fsspec URL."""

import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, get_args
from uuid import uuid4

import fsspec

from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.storage.address import file_system
from openuni.manifests.storage.checksums import parse_record
from openuni.manifests.storage.links import FOLLOW_LINKS, outside_target

MAX_TAILS_BYTES = 64 * 1024**2  # ends of files kept in memory
MAX_PARALLEL_FILES = 8
MAX_DEPTH = 6  # of files below the root: latents/FAMILY/MODALITY/superseded/VERSION/
TEMP_FILE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # names of incomplete files of `put`
LEFTOVER = re.compile(r"\..+\.tmp|\.(driver|workers)\.lock")  # all that a process killed in its first write leaves


class Tails:
    """The ends of remote files, which hold the footers of Parquet parts: read once while a file stays as it is.

    A listing tells the state of each file (size and entity tag). A file that was written since loses its entry.
    """

    def __init__(self) -> None:
        self.known: dict[str, tuple[int, Any]] = {}  # name -> state in the latest listing
        self.kept: OrderedDict[str, tuple[tuple[int, Any], bytes]] = OrderedDict()
        self.nbytes = 0
        self.guard = Lock()

    def listed(self, entries: Mapping[str, tuple[int, Any]]) -> None:
        """Note the state of files in a listing."""
        with self.guard:
            self.known.update(entries)

    def size(self, name: str) -> int | None:
        """Size of a file in the latest listing, bytes."""
        with self.guard:
            return self.known[name][0] if name in self.known else None

    def get(self, name: str) -> tuple[int, bytes] | None:
        """Size of the file and its end, unless the file was written since."""
        with self.guard:
            state, tail = self.kept.get(name, (None, b""))
            return (state[0], tail) if state is not None and state == self.known.get(name) else None

    def put(self, name: str, nbytes: int, tail: bytes) -> None:
        """Keep the end of a file of this size, if a listing has shown the same file."""
        with self.guard:
            state = self.known.get(name)
            self._drop(name)
            if state is None or state[0] != nbytes:
                return
            self.kept[name] = state, tail
            self.nbytes += len(tail)
            while self.nbytes > MAX_TAILS_BYTES:
                self._drop(next(iter(self.kept)))

    def forget(self, name: str) -> bool:
        """Drop what is known of a file; returns whether there was anything."""
        with self.guard:
            return self._drop(name) | (self.known.pop(name, None) is not None)

    def _drop(self, name: str) -> bool:
        state, tail = self.kept.pop(name, (None, b""))
        self.nbytes -= len(tail)
        return state is not None


class Store:
    """Files under one root. Names are relative paths with forward slashes; names outside the root are rejected."""

    def __init__(self, url: str) -> None:
        self.fs, path = file_system(str(url), **_no_listing_cache(str(url)))
        self.is_local = isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)
        self.root = str(Path(path).resolve()) if self.is_local else path.rstrip("/")
        self.url = self.root if self.is_local else self.fs.unstrip_protocol(self.root)
        self._inside: set[str] = set()  # folders that no link leads out of
        self.tails = Tails()
        self.kept_rows: dict[str, tuple[Any, Any]] = {}  # column group -> state and rows of its small parts
        # files processed at a time: they hide the latency of an object store; a disk has none, and threads cost time
        self.parallel_files = min(MAX_PARALLEL_FILES, os.cpu_count() or 1) if self.is_local else MAX_PARALLEL_FILES
        self.measured_texts: dict[tuple[str, int], dict[str, int]] = {}  # part and its size -> see `part_texts.py`
        self.fence: Callable[[], None] | None = None  # raises if this process may no longer write

    @staticmethod
    def is_name(name: str) -> bool:
        """Whether it is a relative path that stays inside the root."""
        return not (name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"))

    def path(self, name: str) -> str:
        """The full path of a name. Raises `OpenUniError` for names outside the root."""
        if not self.is_name(name):
            raise OpenUniError(f'"{name}" is not a name inside {self.url}; the manifest that contains it is damaged')
        full = f"{self.root}/{name}" if name else self.root
        if self.is_local and name:
            self._check_links(full)
        return full

    def _check_links(self, path: str) -> None:
        """Raise `OpenUniError` for a link that leads out of the root. Folders are looked at once."""
        folder = path.rpartition("/")[0]
        if folder not in self._inside:
            self._require_inside(folder)
            self._inside.add(folder)
        if os.path.islink(path):  # noqa: PTH114 - called for every access; a `Path` takes ten times as long
            self._require_inside(path)

    def _require_inside(self, place: str) -> None:
        target = outside_target(place, self.root)
        if target is not None and os.environ.get(FOLLOW_LINKS) != "1":
            raise OpenUniError(
                f"{place} leads to {target}, outside {self.url}. Replace the link by what it leads to. If you made "
                f"the link yourself, set the environment variable {FOLLOW_LINKS}=1."
            )

    def location(self, name: str) -> str:
        """The absolute path or URL of a name, for other programs."""
        return self.path(name) if self.is_local else str(self.fs.unstrip_protocol(self.path(name)))

    def local(self, name: str) -> Path:
        """The full path of a name as a `Path`; only for local stores."""
        return Path(self.path(name))

    def name_of(self, path: str) -> str:
        """The name of a full path; the inverse of `path`."""
        return path.removeprefix(f"{self.root}/")

    def names(self, folder: str, suffix: str | tuple[str, ...]) -> list[str]:
        """Names (relative to the root) of the entries directly in `folder` that end in one of `suffix`, sorted."""
        try:
            if self.is_local:
                with os.scandir(self.path(folder)) as entries:
                    return sorted(f"{folder}/{entry.name}" for entry in entries if entry.name.endswith(suffix))
            found = self.fs.ls(self.path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        states = {
            f"{folder}/{str(entry['name']).rstrip('/').rsplit('/', 1)[1]}": (entry["size"], entry.get("ETag"))
            for entry in found
        }
        self.tails.listed({name: state for name, state in states.items() if state[1] is not None})
        return sorted(name for name in states if name.endswith(suffix))

    def folders(self, folder: str) -> list[str]:
        """Names (last component) of the folders directly in `folder`, sorted; hidden folders are skipped."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        names = [str(entry["name"]).rstrip("/").rsplit("/", 1)[1] for entry in entries if entry["type"] == "directory"]
        return sorted(name for name in names if not name.startswith("."))

    def is_empty(self) -> bool:
        """Whether the root is missing, or holds nothing but what a process killed in its first write left.

        Raises `OpenUniError` if it is a file, or below one.
        """
        if self.is_local:
            require_folder(Path(self.root))
        try:
            names = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(self.root, detail=False)]
        except FileNotFoundError:
            return True
        return all(LEFTOVER.fullmatch(name) for name in names)

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        return bool(self.fs.exists(self.path(name)))

    def nbytes(self, name: str) -> int:
        """Size of a file, bytes. Raises `FileNotFoundError`."""
        if self.is_local:
            return self.local(name).stat().st_size
        return int(self.fs.info(self.path(name))["size"])

    def state(self, name: str) -> Any:
        """A value that changes whenever a file is written. Raises `FileNotFoundError`."""
        if self.is_local:
            facts = self.local(name).stat()
            return facts.st_size, facts.st_mtime_ns, facts.st_ino
        return self.tails.known.get(name) or uuid4()

    def size(self, name: str) -> int:
        """Size of a file in the latest listing if there was one, bytes. Raises `FileNotFoundError`."""
        listed = self.tails.size(name)
        return self.nbytes(name) if listed is None else listed

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        return bytes(self.fs.cat_file(self.path(name)))

    def read_json(
        self, name: str, kinds: Mapping[str, Any], remedy: str, optional: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """A JSON object, without its checksum. `kinds`: its required keys and the types of their values.

        `optional`: the same of keys that may be absent.

        Raises `DamagedFile` with the `remedy` if it is not valid JSON, its checksum differs, or it has other types.
        """
        from pydantic import TypeAdapter, ValidationError

        where = self.location(name)
        try:
            found = parse_record(self.read(name), where)
        except DamagedFile as error:
            raise DamagedFile(where, error.reason, remedy) from error
        for key, kind in {**kinds, **{name: optional[name] for name in optional if name in found}}.items():
            if key not in found:
                raise DamagedFile(where, f'key "{key}" is missing', remedy)
            try:
                TypeAdapter(kind).validate_python(found[key], strict=True)
            except ValidationError as error:
                text = f'"{key}" is {json.dumps(found[key])[:60]}, expected {_type_name(kind)}'
                raise DamagedFile(where, text, remedy) from error
        return found

    def read_range(self, name: str, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes from `offset`: one pread on local disks, one ranged GET on object stores."""
        if self.is_local:
            with Path(self.path(name)).open("rb", buffering=0) as file:
                left = max(0, os.fstat(file.fileno()).st_size - offset)  # a manifest may declare any size
                return os.pread(file.fileno(), min(nbytes, left), offset)
        return bytes(self.fs.cat_file(self.path(name), start=offset, end=offset + nbytes))

    def put(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        self.check_fence()
        self.tails.forget(name)
        if not self.is_local:
            self.fs.pipe_file(self.path(name), data)
            return
        target = self.local(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_atomically(target, data)
        except FileNotFoundError:
            # another process that has just locked the corpus took it for a leftover: see `delete_temp_files`
            _write_atomically(target, data)

    def put_file(self, source: Path, name: str) -> None:
        """Move a finished local file into the store atomically."""
        self.check_fence()
        self.tails.forget(name)
        if not self.is_local:
            self.fs.put_file(str(source), self.path(name))
            source.unlink()
            return
        target = self.local(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as file:
            os.fsync(file.fileno())
        source.replace(target)

    def move(self, name: str, to: str) -> None:
        """Rename within the store."""
        self.check_fence()
        self.tails.forget(name)
        self.tails.forget(to)
        if self.is_local:
            self.local(to).parent.mkdir(parents=True, exist_ok=True)
            self.local(name).replace(self.local(to))
        else:
            self.fs.mv(self.path(name), self.path(to))

    def copy_to(self, other: "Store", name: str) -> None:
        """Copy an immutable file to another store: a hard link if both are on the same file system, else a copy."""
        if other.is_local:
            target = other.local(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = temp_path(target)
            try:
                self._copy_to_local(name, temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)  # also where the target is the same file already: nothing is renamed
        elif self.is_local:
            other.fs.put_file(str(self.local(name)), other.path(name))
        elif self.fs is other.fs:
            self.fs.cp_file(self.path(name), other.path(name))  # within the object store
        else:
            other.put(name, self.read(name))

    def _copy_to_local(self, name: str, target: Path) -> None:
        if not self.is_local:
            self.fs.get_file(self.path(name), str(target))
            return
        try:
            os.link(self.local(name), target)
        except OSError:  # another file system, or no support for hard links
            shutil.copyfile(self.local(name), target)

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        self.check_fence()
        self.tails.forget(name)
        if self.exists(name):
            self.fs.rm_file(self.path(name))

    def delete_temp_files(self) -> None:
        """Delete incomplete files of killed processes. Call it only while no other process writes to the store."""
        for name in self.temp_files():
            self.local(name).unlink(missing_ok=True)

    def temp_files(self) -> list[str]:
        """Names of incomplete files of `put`, of live or killed processes; none on object stores."""
        if not self.is_local:
            return []
        levels = [f"{'*/' * depth}.*.tmp" for depth in range(MAX_DEPTH + 1)]  # not deeper: folders may be a trap
        found = [path for level in levels for path in Path(self.root).glob(level)]
        return sorted(self.name_of(str(path)) for path in found if TEMP_FILE.fullmatch(path.name))

    def withdraw(self, name: str) -> None:
        """Delete a file that this process alone has written, also if it may no longer write."""
        self.tails.forget(name)
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def check_fence(self) -> None:
        """Raise if this process may no longer write: see `lease.py`."""
        if self.fence is not None:
            self.fence()

    def free_bytes(self) -> int | None:
        """Free disk space, bytes; None for object stores."""
        if not self.is_local:
            return None
        folder = Path(self.root)
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free


def require_folder(out: Path) -> None:
    """Raise `OpenUniError` if an output folder cannot exist because it, or one of its parents, is a file."""
    for path in (out, *out.parents):
        if path.is_dir():
            return
        if path.exists() or path.is_symlink():
            what = "is a file" if path.exists() else "is a broken link"
            raise OpenUniError(f"{path} {what}, so {out} cannot be a folder. Choose another path.")


def is_unused(folder: Path) -> bool:
    """Whether a local folder may become the output of a command: see `Store.is_empty`."""
    return Store(str(folder)).is_empty()


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def temp_path(target: Path) -> Path:
    """Where a file is written before it is renamed to `target`; `delete_temp_files` knows the name."""
    return target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")


def _no_listing_cache(url: str) -> dict[str, Any]:
    # a cached listing could hide a later commit of another worker
    return {"use_listings_cache": False} if "://" in url and not url.startswith(("file:", "local:")) else {}


def _write_atomically(target: Path, data: bytes) -> None:
    temporary = temp_path(target)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
