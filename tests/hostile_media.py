"""Tiny media files that attack whoever opens them: each with what it tries."""

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np

from tests.coded_clips import encode, picture, write_tone
from tests.mp4_boxes import box, compressed, file, fragment, movie, samples, table, track

SECRET = "the content of another file"
TRUNCATED = {"mp4": "libx264", "mov": "mpeg4", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "ts": "mpeg2video"}
TRUNCATED |= {"flv": "flv"}
MANY = 60_000_000
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 33\n"
GREATEST = 2**63 - 1


def ebml(number: str, *contents: bytes) -> bytes:
    """An element of Matroska. `number`: its id in hexadecimal."""
    data = b"".join(contents)
    return bytes.fromhex(number) + struct.pack(">Q", 1 << 56 | len(data)) + data


def integer(number: str, value: int) -> bytes:
    return ebml(number, struct.pack(">Q", value))


def matroska(*segment: bytes, doc_type: bytes = b"matroska") -> bytes:
    return ebml("1A45DFA3", ebml("4282", doc_type)) + ebml("18538067", *segment)


def picture_track(number: int = 1, size_px: tuple[int, int] = (64, 48), codec: bytes = b"V_MJPEG") -> bytes:
    size = ebml("E0", integer("B0", size_px[0]), integer("BA", size_px[1]))
    return ebml("AE", integer("D7", number), integer("73C5", number), integer("83", 1), ebml("86", codec), size)


def block(data: bytes, time: int = 0) -> bytes:
    return ebml("A3", b"\x81" + struct.pack(">hB", time, 0x80) + data)


def pictures(*frames: bytes, scale: int = 1_000_000, time: int = 0, more: bytes = b"", **how: object) -> bytes:
    """A Matroska file of JPEG frames, 40 units apart."""
    blocks = [block(frame, 40 * number) for number, frame in enumerate(frames)]
    tracks = ebml("1654AE6B", picture_track(**how))  # type: ignore[arg-type]
    return matroska(
        ebml("1549A966", integer("2AD7B1", scale)), tracks, ebml("1F43B675", integer("E7", time), *blocks), more
    )


def jpeg(width_px: int = 64, height_px: int = 48, scale: int = 1) -> bytes:
    """A picture of 64 x 48 pixels, times `scale`, that declares the given size, times `scale`."""
    image = picture(5).repeat(scale, 0).repeat(scale, 1)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64 * scale, 48 * scale, "yuvj420p"
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *stream.encode(None)]:
            container.mux(packet)
    data = bytearray(buffer.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height_px * scale, width_px * scale)
    return bytes(data)


def attachment(name: str, mime: bytes, data: bytes) -> bytes:
    parts = ebml("466E", name.encode()), ebml("4660", mime), ebml("465C", data), integer("46AE", 7)
    return ebml("1941A469", ebml("61A7", *parts))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width_px: int, height_px: int, pixels: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def webp(width_px: int, height_px: int) -> bytes:
    size = struct.pack("<I", width_px - 1)[:3] + struct.pack("<I", height_px - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def tarred(name: str, link: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, link
        archive.addfile(entry)
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    """Boxes within boxes."""
    sizes = range(8 * depth, 0, -8)
    return b"".join(struct.pack(">I4s", size, b"moov" if size == 8 * depth else b"udta") for size in sizes)


def edits(count: int, *entries: int) -> bytes:
    return file(movie(track(*samples(10), before=box(b"edts", table(b"elst", count, *entries)))))


def reference(kind: bytes, where: str) -> bytes:
    """A QuickTime file whose frames are in another file. Alias records hold the path as text of type 2."""
    path = where.encode()
    if kind == b"alis":
        name = path.rpartition(b"/")[2][:27]
        record = bytes(6) + struct.pack(">H", 0) + bytes(2) + bytes(28) + bytes(12)
        record += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">hh", -1, -1) + bytes(16)
        record += (
            struct.pack(">hh", 2, len(path))
            + path
            + struct.pack(">hh", 18, len(path))
            + path
            + struct.pack(">hh", -1, 0)
        )
        entry = box(b"alis", bytes(4), struct.pack(">I", 0), record)
    else:
        entry = box(kind, bytes(4), path + b"\0")
    return file(movie(track(*samples(10), reference=entry)))


def riff(frames: int, width_px: int, height_px: int) -> bytes:
    """An AVI header that declares frames of a size and has none."""
    main = struct.pack("<14I", 40000, 0, 0, 0x10, frames, 0, 1, 0, width_px, height_px, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack("<10I4H", 0, 0, 0, 1, 25, 0, frames, 0, 0, 0, 0, 0, 0, 0)
    form = struct.pack("<3I2H6I", 40, width_px, height_px, 1, 24, 0x47504A4D, 0, 0, 0, 0, 0)
    part = lambda kind, data: kind + struct.pack("<I", len(data)) + data  # noqa: E731
    lists = part(
        b"LIST", b"hdrl" + part(b"avih", main) + part(b"LIST", b"strl" + part(b"strh", stream) + part(b"strf", form))
    )
    return part(b"RIFF", b"AVI " + lists + part(b"LIST", b"movi"))


def ivf(width_px: int, height_px: int, frames: int, nbytes: int) -> bytes:
    head = b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, b"VP90", width_px, height_px, 25, 1, frames, 0)
    return head + struct.pack("<IQ", nbytes, 0) + bytes(100)


def flv(tag_bytes: int) -> bytes:
    return b"FLV\x01\x01" + struct.pack(">II", 9, 0) + b"\x09" + struct.pack(">I", tag_bytes)[1:] + bytes(7) + bytes(50)


def scripts(canary: str, server: str) -> dict[str, bytes]:
    """Files that ask for others by name, and containers that do."""
    found = {}
    for name, target in {"file": canary, "http": f"{server}/secret.ts"}.items():
        listed = f"#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
        found |= {
            f"hls_{name}.mp4": f"#EXTM3U\n{listed}".encode(),
            f"hls_marked_{name}.ts": f"\ufeff#EXTM3U\n{listed}".encode(),
            f"hls_in_ts_{name}.ts": bytes([0x47]) + f"#EXTM3U\n{listed}".encode(),
            f"concat_{name}.mkv": f"ffconcat version 1.0\nfile '{target}'\n".encode(),
            f"concat_plain_{name}.mkv": f"file '{target}'\n".encode(),
            f"sdp_{name}.mp4": f"{SDP}a=control:{target}\n".encode(),
            f"dash_{name}.webm": f"<?xml version='1.0'?><MPD><BaseURL>{target}</BaseURL></MPD>".encode(),
            f"asx_{name}.wmv": f"<asx version='3.0'><entry><ref href='{target}'/></entry></asx>".encode(),
            f"ffmeta_{name}.mkv": f";FFMETADATA1\ntitle={target}\n".encode(),
            f"avs_{name}.avi": f'AviSource("{target}")\n'.encode(),
            f"url_{name}.mov": reference(b"url ", target),
            f"alias_{name}.mov": reference(b"alis", target),
            f"rmra_{name}.mov": box(
                b"moov",
                box(
                    b"rmra", box(b"rmda", table(b"rdrf", int.from_bytes(b"url ", "big"), len(target)) + target.encode())
                ),
            ),
            f"reference_{name}.flv": b"FLV\x01\x01" + struct.pack(">II", 9, 0) + target.encode(),
        }
    found["link.mkv"] = pictures(jpeg(), more=attachment(canary, b"text/plain", SECRET.encode()))
    return found


def declared() -> dict[str, bytes]:
    """Files that declare more than they hold, or what cannot be."""
    huge = (65535, 65535)
    noise = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint8).tobytes()
    long = track(*samples(10))
    return {
        "huge.mp4": file(movie(track(*samples(10), size_px=huge))),
        "huge_frames.mkv": pictures(jpeg(*huge)),
        "huge_track.mkv": pictures(jpeg(), size_px=huge),
        "huge_track.webm": pictures(bytes(100), size_px=(2**31, 2**31), codec=b"V_VP9"),
        "huge.avi": riff(2**32 - 1, *huge),
        "huge.ivf": ivf(*huge, 2**32 - 1, 2**32 - 1),
        "huge_tag.flv": flv(2**24 - 1),
        "endless_boxes.mp4": box(b"ftyp", b"isom", bytes(4)) + 5000 * struct.pack(">I4sQ", 1, b"free", 16),
        "empty_boxes.mp4": box(b"ftyp", b"isom", bytes(4)) + 20000 * box(b"moov"),
        "box_of_2_63.mp4": box(b"ftyp", b"isom", bytes(4)) + struct.pack(">I4sQ", 1, b"moov", GREATEST) + bytes(50),
        "nested.mp4": box(b"ftyp", b"isom", bytes(4)) + nested(10_000),
        "many_samples.mp4": file(movie(track(*samples(MANY)))),
        "many_in_fragment.mp4": file(movie(track(*samples(0))), fragment(MANY)),
        "header_bomb.mov": file(compressed(movie(long) + box(b"free", bytes(2**27)))),
        "negative_edit.mp4": edits(1, 40, 2**32 - 1000, 65536),
        "huge_edit.mp4": edits(1, 2**32 - 1, 2**31 - 1, 65536),
        "many_edits.mp4": edits(2**32 - 1, *(40, 0, 65536) * 500),
        "no_timescale.mp4": file(movie(track(*samples(10), timescale=0))),
        "no_timescale.mkv": pictures(jpeg(), jpeg(), scale=0),
        "last_time.mkv": pictures(jpeg(), jpeg(), time=GREATEST),
        "time_of_2_64.mkv": pictures(jpeg(), jpeg(), time=2**64 - 1),
        "slow_time.mkv": pictures(jpeg(), jpeg(), scale=GREATEST),
        "streams.mkv": matroska(ebml("1654AE6B", *(picture_track(number) for number in range(1, 5001)))),
        "tracks.mp4": file(movie(*2000 * [track(*samples(1))]), bytes(3000)),
        "void.mkv": ebml("1A45DFA3", ebml("4282", b"matroska"))
        + bytes.fromhex("18538067 01FFFFFFFFFFFFFF EC 01FFFFFFFFFFFFFE"),
        "nested.mkv": matroska(b"".join(struct.pack(">IQ", 0x1254C367, 1 << 56 | 12 * n) for n in range(3000, 0, -1))),
        "noise.ts": b"".join(b"\x47" + noise[at : at + 187] for at in range(0, 18_700, 187)),
        "noise.flv": b"FLV\x01\x05" + struct.pack(">II", 9, 0) + noise,
        "noise.mpg": b"\0\0\1\xba" + noise,
        "noise.ogv": b"OggS" + noise,
        "noise.wmv": bytes.fromhex("3026B2758E66CF11A6D900AA0062CE6C") + noise,
        "noise.mxf": bytes.fromhex("060E2B34020501010D01020101020400") + noise,
        "cover_only.mkv": matroska(attachment("cover.png", b"image/png", png(8, 8, 8 * bytes(25)))),
    }


def mislabelled() -> dict[str, bytes]:
    """Other files under the name of a video, and bombs among them."""
    gif = (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
        + bytes(6)
        + b","
        + struct.pack("<4HB", 0, 0, 65535, 65535, 0)
    )
    exr = bytes.fromhex("762f3101 02000000") + b"dataWindow\0box2i\0" + struct.pack("<5i", 16, 0, 0, 65534, 65534)
    return {
        "gif.mp4": gif + b"\x02\x02\x4c\x01\0;",
        "png.mkv": png(65535, 65535),
        "png_bomb.mov": png(10_000, 10_000, bytes(10_000_000)),
        "webp.webm": webp(2**24, 2**24),
        "jpeg.avi": jpeg(65535, 65535),
        "exr.mov": exr,
        "zip_bomb.mkv": zipped("a.mp4", bytes(20_000_000)),
        "tar.ts": tarred("a.mp4", "/etc/passwd"),
        "page.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
        "program.mp4": b"\x7fELF" + bytes(200),
        "empty.mp4": b"",
        "zeros.mp4": bytes(100_000),
    }


def whole(folder: Path) -> dict[str, bytes]:
    """Files that are videos, or would be with a different name."""
    encode(folder / "video.mkv", times=range(10))
    return {
        "matroska.avi": (folder / "video.mkv").read_bytes(),
        "attached.mkv": pictures(jpeg(), jpeg(), more=attachment("../../../escaped.ttf", b"font/ttf", SECRET.encode())),
        "size_changes.mkv": pictures(*50 * [jpeg()], *50 * [jpeg(scale=4)]),
        "sound.mp4": write_tone(folder / "tone.mp4").read_bytes(),
    }


def truncated(folder: Path) -> dict[str, bytes]:
    """Every container, cut at each quarter."""
    found = {}
    for suffix, codec in TRUNCATED.items():
        data = encode(folder / f"whole.{suffix}", codec, range(20)).read_bytes()
        found |= {f"cut_{quarter}.{suffix}": data[: len(data) * quarter // 4] for quarter in (1, 2, 3)}
    return found


def all_files(folder: Path, canary: str, server: str) -> dict[str, bytes]:
    """Every hostile file by name. `folder`: made for what is encoded; `canary`, `server`: what must not be read."""
    folder.mkdir()
    return declared() | mislabelled() | whole(folder) | truncated(folder) | scripts(canary, server)
