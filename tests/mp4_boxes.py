"""mp4 files written box by box, with whatever they declare."""

import struct
import zlib

MATRIX = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)


def box(kind: bytes, *contents: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, contents)), kind) + b"".join(contents)


def table(kind: bytes, *numbers: int) -> bytes:
    """A box with version and flags 0 and big-endian numbers of 32 bits."""
    return box(kind, struct.pack(f">{1 + len(numbers)}I", 0, *numbers))


def track(
    *tables: bytes,
    handler: bytes = b"vide",
    size_px: tuple[int, int] = (64, 48),
    timescale: int = 1000,
    reference: bytes = b"",
    before: bytes = b"",
) -> bytes:
    """A track in MPEG-4 with the given sample tables. `reference`: where its data is; `before`: boxes before `mdia`."""
    entry = box(
        b"mp4v", bytes(7), b"\1", bytes(16), struct.pack(">HHII", *size_px, 72 << 16, 72 << 16), bytes(6), bytes(36)
    )
    header = table(b"tkhd", 0, 0, 1, 0, 40, 0, 0, 0, 0)[:-4] + MATRIX + struct.pack(">II", 64 << 16, 48 << 16)
    header = struct.pack(">I", len(header)) + header[4:]
    data = box(b"dinf", box(b"dref", struct.pack(">II", 0, 1), reference or table(b"url ")))
    stbl = box(b"stbl", box(b"stsd", struct.pack(">II", 0, 1), entry), *tables)
    media = table(b"mdhd", 0, 0, timescale, 40, 0x55C40000)
    media += box(b"hdlr", bytes(8), handler, bytes(13))
    return box(b"trak", header, before, box(b"mdia", media, box(b"minf", table(b"vmhd", 0, 0), data, stbl)))


def samples(count: int, *, sizes: int | None = None, times: int | None = None) -> tuple[bytes, ...]:
    """Tables of `count` samples of one byte; `sizes`, `times`: other counts in their tables."""
    return (
        table(b"stts", 1, count if times is None else times, 40),
        table(b"stsc", 1, 1, count, 1),
        table(b"stsz", 1, count if sizes is None else sizes),
        table(b"stco", 1, 600),
    )


def movie(*contents: bytes) -> bytes:
    header = struct.pack(">IIIII", 0, 0, 0, 1000, 40) + struct.pack(">IH", 65536, 256) + bytes(10) + MATRIX + bytes(28)
    return box(b"moov", box(b"mvhd", header), *contents)


def file(*contents: bytes) -> bytes:
    return box(b"ftyp", b"isom", bytes(4), b"isomiso2") + b"".join(contents) + box(b"mdat", bytes(64))


def compressed(moov: bytes) -> bytes:
    packed = box(b"cmvd", struct.pack(">I", len(moov)), zlib.compress(moov))
    return box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), packed))


def fragment(count: int) -> bytes:
    header = box(b"tfhd", struct.pack(">III", 0x30, 1, 40), struct.pack(">I", 1))
    return box(b"moof", table(b"mfhd", 1), box(b"traf", header, table(b"trun", count)))
