"""Archives made to harm whoever reads them: a failed row or exit code 2, within bounds, and nothing elsewhere."""

import io
import resource
import sys
import tarfile
import time
from pathlib import Path

import pytest

from openuni.exchange.importers import _bounded_tar
from tests.command_line import cli
from tests.hostile import files_under
from tests.openuni.exchange.importers.made_sets import bring_in, reasons
from tests.openuni.exchange.importers.test_webdataset import mp4  # noqa: F401  # a fixture

BLOCK = tarfile.BLOCKSIZE


def header(name: str, kind: bytes, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % BLOCK)


def pax(text: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("pax", kind, len(text)) + padded(text)


def record(key: str, value: str) -> bytes:
    for digits in (1, 2, 3, 4):
        length = digits + len(f" {key}={value}\n")
        if len(str(length)) == digits:
            return f"{length} {key}={value}\n".encode()
    raise AssertionError


FILE = header("late.mp4", tarfile.REGTYPE, 4) + padded(b"late")
END = b"\0" * (2 * BLOCK)
TARS = {
    "20,000 PAX headers": pax(record("comment", "x")) * 20_000 + FILE + END,
    "20,000 long names": (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 4) + padded(b"abc\0")) * 20_000
    + FILE
    + END,
    "20,000 global headers": pax(record("comment", "x"), tarfile.XGLTYPE) * 20_000 + FILE + END,
    "a huge PAX header": header("pax", tarfile.XHDTYPE, 1 << 34) + FILE + END,
    "a huge long name": header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1 << 34) + FILE + END,
    "a negative size in PAX, back to itself": FILE + pax(record("size", "-1536")) + FILE + END,
    "a negative size": header("a.mp4", tarfile.REGTYPE, -1024) + FILE + END,
    "sparse": header("a.mp4", tarfile.GNUTYPE_SPARSE, 4) + padded(b"late") + END,
    "sparse in PAX": pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")) + FILE + END,
    "many shared entries": pax(b"".join(record(f"k{n}", "v") for n in range(300)), tarfile.XGLTYPE) + FILE + END,
    "an infinite time": pax(record("mtime", "inf") + record("size", "9" * 5000)) + FILE + END,
}


@pytest.fixture(autouse=True)
def _bounded_memory():
    """2 GB above what the process has: what exceeds it is a MemoryError, not a machine that swaps."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_would_exhaust_the_reader_is_a_failed_row(tmp_path, name):
    (tmp_path / "set").mkdir()
    path = tmp_path / "set/a.tar"
    path.write_bytes(TARS[name])
    if "huge" in name:  # as long as it says: otherwise reading would stop at the end of the file
        with path.open("r+b") as file:
            file.truncate(1 << 34)  # takes no space on disk
    start = time.monotonic()
    done = cli("import", "webdataset", tmp_path / "set", "--out", tmp_path / "corpus", "--workers", 0)
    assert time.monotonic() - start < 20
    assert done.returncode in (1, 2), done.stderr
    if done.returncode == 1:
        assert " 0 ok" in done.stdout


def test_members_are_names_and_positions_and_never_files(tmp_path, mp4):  # noqa: F811
    """`..`, absolute names, links and devices: only regular files are clips, and nothing is unpacked."""
    (tmp_path / "deep/set").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(mp4)
    with tarfile.open(tmp_path / "deep/set/a.tar", "w") as tar:
        for name in ("../../up.mp4", "/tmp/absolute.mp4", "a\nb.mp4", "esc\x1b[2J.mp4", "x" * 5000 + ".mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(mp4)
            tar.addfile(info, io.BytesIO(mp4))
        for kind in (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.FIFOTYPE,
            tarfile.DIRTYPE,
        ):
            info = tarfile.TarInfo(f"special{kind.decode()}.mp4")
            info.type, info.linkname = kind, "../../secret.mp4"
            tar.addfile(info)
    before = files_under(tmp_path)
    corpus = bring_in("webdataset", tmp_path / "deep/set", tmp_path / "corpus")
    found = files_under(tmp_path)
    assert {name: found[name] for name in before} == before
    assert all(name in before or name.startswith("corpus/") for name in found)
    assert len(corpus) == 5 and reasons(corpus) == {}
    assert all(clip.clip.source.startswith(f"{tmp_path}/deep/set/a.tar#bytes=") for clip in corpus)


def test_a_member_that_declares_more_than_there_is_and_a_clip_of_too_many_files(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/huge.tar").write_bytes(header("a.mp4", tarfile.REGTYPE, 1 << 40) + b"x" * BLOCK)
    many = b"".join(header(f"a.x{number}", tarfile.REGTYPE) for number in range(1500))
    (tmp_path / "set/many.tar").write_bytes(many + END)
    found = reasons(bring_in("webdataset", tmp_path / "set", tmp_path / "corpus"))
    assert "ends at byte" in found["huge/a"] and "more than 1000 files" in found["many/a"]


def test_ordinary_extensions_are_read():
    """Long names and PAX headers as tar programs write them, also many members in a row."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        names = [f"{'long/' * 60}{number}é.mp4" for number in range(50)]
        with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers={"comment": "x"}) as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.mtime = 1.5
                tar.addfile(info)
        buffer.seek(0)
        assert [name for name, _ in _bounded_tar.members(buffer)] == names
