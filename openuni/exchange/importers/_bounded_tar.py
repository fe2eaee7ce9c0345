"""Members of a tar that may come from anybody: Python's tarfile with bounds on time and memory.

tarfile reads one extension header after another by recursion, takes any size that a header declares, and keeps all
members. Nothing is unpacked: only names and positions of regular files are used, so links and devices have no effect.
"""

import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_EXTENSIONS = 16  # headers before a member; GNU and POSIX writers use at most three
MAX_EXTENSION_BYTES = 1 << 20  # of one such header, which holds a long name or extended attributes
MAX_SHARED = 256  # entries that global headers add to every member
EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class Member(NamedTuple):
    """A regular file in a tar."""

    suffix: str  # of its name: "mp4", "depth.mkv"
    offset: int
    nbytes: int


class BoundedTarInfo(tarfile.TarInfo):
    """A header that is refused with `tarfile.ReadError` before it can take memory or recursion without bound."""

    def _proc_member(self, tar: Any) -> Any:  # tarfile's documented entry point for subclasses
        if self.size < 0:
            raise tarfile.ReadError(f"a size of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file: write the tar without --sparse")
        extensions = getattr(tar, "extensions", 0) + 1 if self.type in EXTENSIONS else 0
        tar.extensions = extensions
        if extensions > MAX_EXTENSIONS:
            raise tarfile.ReadError(f"more than {MAX_EXTENSIONS} extended headers for one file")
        if extensions and self.size > MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(f"an extended header of {self.size:,} bytes; the limit is {MAX_EXTENSION_BYTES:,}")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _proc_gnusparse_00(self, *_: Any) -> None:
        raise tarfile.ReadError("a sparse file: write the tar without --sparse")

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def members(file: Any) -> Iterator[tuple[str, Member | None]]:
    """Name and location of the regular files; finally (error, None) if the tar does not end properly.

    tarfile takes a damaged header for the end, so the block after the last member is checked.
    """
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedTarInfo) as tar:
            while (info := tar.next()) is not None:
                if tar.offset <= end or info.size < 0:  # an extended header may declare a size below zero
                    raise tarfile.ReadError(f"a size of {info.size} bytes")
                if len(tar.pax_headers) > MAX_SHARED:
                    raise tarfile.ReadError(f"more than {MAX_SHARED} entries in global headers")
                end = tar.offset
                kept: list[Any] = getattr(tar, "members", [])
                kept.clear()  # tarfile would keep all of them in memory
                if info.isreg():
                    yield info.name.removeprefix("./"), Member("", info.offset_data, info.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        yield f"the tar is damaged after byte {end} ({error})", None
        return
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        yield f"the tar is damaged at byte {end}: neither a file header nor the end", None
