"""Video files as hostile input: what is refused, what is reported, and that nothing else is read."""

import dataclasses
import functools
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.errors import ClipError
from openuni.manifests.video.container import Limits
from openuni.manifests.video.encode import write_video
from openuni.manifests.video.probe import make_clip, probe
from openuni.manifests.video.reader import decode_count
from openuni.manifests.video.video_errors import (
    CorruptVideo,
    LimitExceeded,
    NotAVideo,
    SourceChanged,
    UnsafeSource,
    VideoError,
)
from tests.coded_clips import encode, numbers, write_tone


def test_every_failure_is_a_clip_error() -> None:
    for kind in (NotAVideo, CorruptVideo, LimitExceeded, UnsafeSource, SourceChanged):
        assert issubclass(kind, VideoError)
        assert issubclass(kind, ClipError)


def test_files_that_are_no_videos_are_named_as_what_they_are(tmp_path: Path) -> None:
    empty, text, folder = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "folder.mp4"
    empty.write_bytes(b"")
    text.write_text("this is not a video\n" * 50)
    folder.mkdir()
    tone = write_tone(tmp_path / "tone.mp4")
    for path, kind, words in (
        (empty, NotAVideo, "0 bytes"),
        (text, NotAVideo, "not a readable video"),
        (folder, NotAVideo, "not a regular file"),
        (tone, NotAVideo, "no video stream .* it contains audio"),
        (tmp_path / "none.mp4", VideoError, "cannot open .*Check the path"),
    ):
        with pytest.raises(kind, match=words):
            probe(str(path))


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux([*sound.encode(frame), *sound.encode(None)])
        container.mux([*cover.encode(av.VideoFrame(64, 48, "yuvj420p")), *cover.encode(None)])
    with av.open(str(path)) as container:
        assert container.streams.video  # the container library does call it one
    with pytest.raises(NotAVideo, match="cover art"):
        probe(str(path))


@pytest.mark.parametrize("name", ["cut.mp4", "front.mp4", "cut.mkv", "cut.avi"])
def test_truncated_files_are_reported(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / name, "mpeg4" if name.endswith("avi") else "libx264")
    if name == "front.mp4":  # index in front: the file opens and only its frames are missing
        clip = make_clip(str(path), probe(str(path)))
        write_video(path, decode(clip).frames, 25)
    whole = path.read_bytes()
    probe(str(path))
    path.write_bytes(whole[: int(len(whole) * (0.95 if name == "front.mp4" else 0.5))])
    kind = NotAVideo if name == "cut.mp4" else CorruptVideo
    with pytest.raises(kind, match="or is truncated" if name == "cut.mp4" else "is truncated: "):
        probe(str(path))


def test_a_damaged_frame_is_named_and_never_replaced(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", options={"bf": "0", "g": "10", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][25]
    damaged = bytearray(path.read_bytes())
    damaged[packet.pos + 8 : packet.pos + packet.size] = b"\xff" * (packet.size - 8)
    path.write_bytes(damaged)
    clip = make_clip(str(path), probe(str(path)))
    for threads in (1, 4):
        with pytest.raises(CorruptVideo, match=r"frame 25 of 40 .*cannot be decoded"):
            decode(clip, threads=threads)
        with pytest.raises(CorruptVideo, match="frame 1 of 2"):  # frame 27 builds on 25
            decode(clip, np.array([3, 27]), threads=threads)
        intact = decode(clip, np.array([0, 24, 30, 39]), threads=threads)
        assert numbers(intact.frames) == [0, 24, 30, 39]


@pytest.mark.parametrize("threads", [1, 4])
def test_a_frame_the_decoder_would_paint_over_is_an_error(tmp_path: Path, threads: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 40, 3), dtype=np.uint8)
    pictures = list(noise[np.arange(20) // 4].repeat(8, axis=1).repeat(8, axis=2))
    options = {"bf": "0", "g": "20", "sc_threshold": "0"}
    path = encode(tmp_path / "a.mp4", times=range(20), pictures=pictures, options=options)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][12]
    damaged = bytearray(path.read_bytes())
    place = packet.pos + packet.size // 3
    damaged[place : place + 60] = np.random.default_rng(5).bytes(60)
    path.write_bytes(damaged)
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 20  # FFmpeg conceals the damage
    clip = make_clip(str(path), probe(str(path)))
    with pytest.raises(CorruptVideo, match="frame 12 of 20"):
        decode(clip, threads=threads)
    with pytest.raises(CorruptVideo, match="frame 0 of 1"):
        decode(clip, np.array([15]), threads=threads)
    assert len(decode(clip, np.arange(12), threads=threads).frames) == 12


@pytest.mark.parametrize("threads", [1, 4])
def test_a_frame_that_is_gone_is_not_replaced_by_the_next(tmp_path: Path, threads: int) -> None:
    path = encode(tmp_path / "a.webm", "libvpx-vp9", options={"g": "40", "auto-alt-ref": "0"})
    with av.open(str(path)) as container:
        hidden = bytes([packet for packet in container.demux(video=0) if packet.size][17])
    whole = path.read_bytes()
    assert whole.count(hidden) == 1
    path.write_bytes(whole.replace(hidden, bytes([hidden[0] & ~0x02]) + hidden[1:]))  # VP9's show_frame
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 39  # FFmpeg says nothing
    clip = make_clip(str(path), probe(str(path)))
    with pytest.raises(CorruptVideo, match="frame 17 of 40"):
        decode(clip, threads=threads)
    with pytest.raises(CorruptVideo, match="frame 1 of 3"):
        decode(clip, np.array([1, 17, 39]), threads=threads)
    assert numbers(decode(clip, np.arange(17), threads=threads).frames) == list(range(17))


def test_a_playlist_cannot_reach_other_files(tmp_path: Path) -> None:
    canary = encode(tmp_path / "canary.ts", times=range(5))
    scripts = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n",
        "a.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile {canary.name}\n",
        "concat.mp4": f"  \n  ffconcat version 1.0\nfile {canary.name}\n",
        "a.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    }
    with av.open(str(_written(tmp_path / "b.m3u8", scripts["a.m3u8"]))) as container:
        assert len(list(container.decode(video=0))) == 5  # unguarded, the canary is read
    for name, script in scripts.items():
        path = _written(tmp_path / name, script)
        with pytest.raises(UnsafeSource, match="playlist"):
            probe(str(path))


def test_a_playlist_is_refused_by_the_demuxer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = encode(tmp_path / "canary.ts", times=range(5))
    monkeypatch.setenv("OPENUNI_DECODER", "in-process")
    monkeypatch.setattr("openuni.manifests.video.container.check_head", lambda source, file: None)
    path = _written(tmp_path / "a.ffconcat", f"ffconcat version 1.0\nfile {canary.name}\n")
    with pytest.raises(UnsafeSource, match="container format is not allowed"):
        probe(str(path))
    path = _written(tmp_path / "a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{canary}\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        probe(str(path))


def test_a_playlist_cannot_reach_the_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/secret.ts"
        path = _written(tmp_path / "a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(VideoError):
            probe(str(path))
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "source", ["rtsp://127.0.0.1/x", "ftp://127.0.0.1/x.mp4", "simplecache::http://127.0.0.1/x.mp4"]
)
def test_other_protocols_are_refused(source: str) -> None:
    with pytest.raises(UnsafeSource, match=r"Allowed: .*https"):
        probe(source)


def test_a_path_that_looks_like_a_protocol_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "a.mp4", times=range(5))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match=r"cannot open .*concat:a\.mp4"):
        probe("concat:a.mp4|a.mp4")
    (tmp_path / "a.mp4").rename(tmp_path / "data:a%20b.mp4")
    assert len(probe("data:a%20b.mp4").pts) == 5
    assert len(probe(f"file://{tmp_path}/data:a%20b.mp4").pts) == 5


def test_limits_hold(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4"))
    clip = make_clip(path, probe(path))
    for limits, name in (
        (Limits(max_pixels=64 * 48 - 1), "max_pixels"),
        (Limits(max_duration_s=1.5), "max_duration_s"),
        (Limits(max_frame_count=39), "max_frame_count"),
        (Limits(max_probe_s=1e-9), "max_probe_s"),
    ):
        with pytest.raises(LimitExceeded, match=name):
            probe(path, limits)
    with pytest.raises(LimitExceeded, match="max_decoded_bytes"):
        decode(clip, limits=Limits(max_decoded_bytes=40 * 64 * 48 * 3 - 1))
    opened = decode_count()
    with pytest.raises(LimitExceeded, match=r"1000000 frames of 64x48 need 9\.22 GB, over .* 4 GB"):
        decode(dataclasses.replace(clip, frame_count=1_000_000), limits=Limits(max_decoded_bytes=4 * 10**9))
    with pytest.raises(LimitExceeded, match=r"\[work\] max_decoded_gb"):
        decode(clip, vectors=True, limits=Limits(max_decoded_bytes=1000))
    assert decode_count() == opened, "the size is checked before the file is opened"
    with pytest.raises(LimitExceeded, match="30 frames of 64x48"):
        decode(clip, lambda times_s: np.arange(30), limits=Limits(max_decoded_bytes=1000))
    decode(clip, short_side_px=24, limits=Limits(max_decoded_bytes=40 * 32 * 24 * 3))
    probe(path, Limits(max_pixels=64 * 48, max_duration_s=1.6, max_frame_count=40))


def test_raw_streams_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.h264", times=range(5))
    with pytest.raises(VideoError, match="Remux"):
        probe(str(path))


def test_frames_before_the_first_key_frame_do_not_count(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", options={"bf": "2", "g": "10", "sc_threshold": "0"})
    data = path.read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(data[: 188 * 3] + data[188 * 12 :])  # the tables, then from somewhere within the first run on
    with av.open(str(cut)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert not packets[0].is_keyframe
    info = probe(str(cut))
    assert numbers(decode(make_clip(str(cut), info)).frames) == list(range(10, 40))


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", options={"bf": "0", "g": "20", "sc_threshold": "0"})
    cut = tmp_path / "cut.mp4"
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(path)) as source, av.open(str(cut), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 7 * 512, packet.dts - 7 * 512
                packet.stream = stream
                target.mux(packet)
    with av.open(str(cut)) as container:
        assert [packet.is_discard for packet in container.demux(video=0) if packet.size][:8] == [True] * 7 + [False]
    clip = make_clip(str(cut), probe(str(cut)))
    assert numbers(decode(clip).frames) == list(range(7, 40))
    assert numbers(decode(clip, np.array([0, 20])).frames) == [7, 27]


def test_hidden_vp8_frames_do_not_count(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.webm", "libvpx", options={"g": "40"})
    with av.open(str(path)) as container:
        shown = bytes([packet for packet in container.demux(video=0) if packet.size][17])
    whole = path.read_bytes()
    assert whole.count(shown) == 1
    path.write_bytes(whole.replace(shown, bytes([shown[0] & ~0x10]) + shown[1:]))  # VP8's show_frame
    clip = make_clip(str(path), probe(str(path)))
    assert numbers(decode(clip).frames) == [*range(17), *range(18, 40)]


def test_frames_that_lead_a_first_open_key_frame_do_not_count(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "a.mkv", options={"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"}
    )
    cut = tmp_path / "cut.mkv"
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        second = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        first_pts = packets[second].pts
        assert packets[second + 1].pts < first_pts  # shown earlier, and built on what the cut removes
        for packet in packets[second:]:
            packet.stream = stream
            target.mux(packet)
    clip = make_clip(str(cut), probe(str(cut)))
    shown = numbers(decode(clip).frames)
    assert shown == list(range(shown[0], 40))
    assert shown[0] == sorted(packet.pts for packet in packets).index(first_pts)


class _Ranged(http.server.SimpleHTTPRequestHandler):
    """A static server that honours one byte range, as object stores do."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.exists():
            self.send_error(404)
            return
        data = path.read_bytes()
        wanted = self.headers.get("Range")
        start, stop = 0, len(data)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(len(data), int(last) + 1 if last else len(data))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start:stop])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(_Ranged, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_remote_sources_give_the_same_frames(tmp_path: Path, server: str) -> None:
    path = encode(tmp_path / "a.mp4", options={"bf": "2", "g": "12"})
    with fsspec.open("memory://clips/a.mp4", "wb") as file:
        file.write(path.read_bytes())
    local = probe(str(path))
    for url in (f"{server}/a.mp4", "memory://clips/a.mp4"):
        info = probe(url)
        np.testing.assert_array_equal(info.pts, local.pts)
        decoded = decode(make_clip(url, info, 15, 30), np.array([0, 7, 14]))
        assert numbers(decoded.frames) == [15, 22, 29]


def test_remote_failures_are_video_errors(tmp_path: Path, server: str) -> None:
    (tmp_path / "list.mp4").write_text("#EXTM3U\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(VideoError, match=r"none\.mp4"):
        probe(f"{server}/none.mp4")
    with pytest.raises(UnsafeSource, match="playlist"):
        probe(f"{server}/list.mp4")
    with pytest.raises(NotAVideo, match="0 bytes"):
        probe(f"{server}/empty.mp4")
    with pytest.raises(VideoError, match=r"reading http://127\.0\.0\.1:9/a\.mp4 failed|cannot open"):
        probe("http://127.0.0.1:9/a.mp4")


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
