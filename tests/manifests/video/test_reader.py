"""Probing and decoding: every frame is the one asked for, in every codec and container we name."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import xxhash

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.clip import pts_hash
from openuni.manifests.video.probe import make_clip, matching_mp4_bytes, probe, probe_clip
from openuni.manifests.video.reader import iter_frames
from openuni.manifests.video.video_errors import CorruptVideo, SourceChanged, VideoError
from tests.coded_clips import encode, numbers, picture

B_FRAMES = {"bf": "3", "g": "12"}
QUIET_X265 = {"x265-params": "keyint=12:bframes=3:log-level=none"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3"}
CASES = {
    "h264.mp4": ("libx264", B_FRAMES),
    "h264.mkv": ("libx264", B_FRAMES),
    "h264.ts": ("libx264", B_FRAMES),
    "h264.flv": ("libx264", B_FRAMES),
    "h264.avi": ("libx264", B_FRAMES),
    "open_gop.mp4": ("libx264", OPEN_GOP),
    "open_gop.ts": ("libx264", OPEN_GOP),
    "open_gop.mkv": ("libx264", OPEN_GOP),
    "hevc.mp4": ("libx265", QUIET_X265),
    "vp8.webm": ("libvpx", {"g": "12"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12"}),
    "av1.mp4": ("libsvtav1", {"g": "12", "preset": "10"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "mpeg4_b.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
}
CODEC_NAMES = {"libx264": "h264", "libx265": "hevc", "libvpx": "vp8", "libvpx-vp9": "vp9", "libsvtav1": "av1"}


@pytest.fixture(scope="module", params=CASES)
def coded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, options = CASES[request.param]
    return encode(tmp_path_factory.mktemp("coded") / request.param, codec, options=options)


def test_probe_counts_and_times_every_frame(coded: Path) -> None:
    info = probe(str(coded))
    codec = CASES[coded.name][0]
    assert len(info.pts) == 40
    assert info.codec == CODEC_NAMES.get(codec, codec)
    assert (info.width_px, info.height_px) == (64, 48)
    assert info.fps == pytest.approx(25, rel=1e-3)
    assert info.duration_s == pytest.approx(1.6, rel=1e-3)
    seconds = (info.pts - info.pts[0]) * info.time_base_num / info.time_base_den
    np.testing.assert_allclose(seconds, np.arange(40) / 25, atol=1.1e-3)  # Matroska counts milliseconds


def test_decode_gives_each_frame_once_and_in_order(coded: Path) -> None:
    clip = make_clip(str(coded), probe(str(coded)))
    decoded = decode(clip)
    assert numbers(decoded.frames) == list(range(40))
    np.testing.assert_allclose(decoded.times_s, np.arange(40) / 25, atol=1.1e-3)


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (11, 13), (12, 24), (23, 39), (39, 40)])
def test_decode_of_a_span_is_exactly_that_span(coded: Path, start: int, stop: int) -> None:
    clip = make_clip(str(coded), probe(str(coded)), start, stop)
    assert clip.frame_count == stop - start
    decoded = decode(clip, threads=1)
    assert numbers(decoded.frames) == list(range(start, stop))
    assert decoded.times_s[0] == 0


def test_decode_at_indices_is_exact_within_the_span(coded: Path) -> None:
    clip = make_clip(str(coded), probe(str(coded)), 5, 40)
    for indices in ([0], [34], [0, 6, 7, 8, 30], [18, 19, 20], [1, 33]):
        decoded = decode(clip, np.array(indices))
        assert numbers(decoded.frames) == [5 + index for index in indices]
        np.testing.assert_allclose(decoded.times_s, np.array(indices) / 25, atol=1.1e-3)


def test_variable_rate_and_a_late_start_keep_their_instants(tmp_path: Path) -> None:
    times = [700, 710, 730, 735, 800, 1000, 1001, 1500]
    path = encode(tmp_path / "vfr.mp4", times=times, unit=Fraction(1, 1000), options={"bf": "2"})
    info = probe(str(path))
    unit_s = info.time_base_num / info.time_base_den
    np.testing.assert_allclose((info.pts - info.pts[0]) * unit_s, (np.array(times) - 700) / 1000, atol=1e-9)
    clip = make_clip(str(path), info, 2, 6)
    assert clip.duration_s == pytest.approx(0.271)
    assert clip.fps == pytest.approx(4 / 0.271)
    decoded = decode(clip)
    assert numbers(decoded.frames) == [2, 3, 4, 5]
    np.testing.assert_allclose(decoded.times_s, [0, 0.005, 0.07, 0.27], atol=1e-9)


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    path = encode(tmp_path / "one.mp4", times=[0])
    clip = make_clip(str(path), probe(str(path)))
    assert clip.frame_count == 1
    assert clip.duration_s == pytest.approx(0.04)
    assert numbers(decode(clip).frames) == [0]


def test_clip_of_states_span_identity_and_rejects_what_is_outside(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4", times=range(10)))
    info = probe(path)
    clip = make_clip(path, info, 3, 8, caption="bars")
    assert (clip.start_pts, clip.end_pts) == (info.pts[3], info.pts[8])
    assert clip.pts_hash == pts_hash(info.pts[3:8])
    assert clip.caption == "bars"
    assert clip.clip_id == make_clip(path, info, 3, 8).clip_id
    assert clip.clip_id != make_clip(path, info, 3, 9).clip_id
    for start, stop in ((5, 5), (-1, 3), (0, 11)):
        with pytest.raises(VideoError, match=r"are out of range: .* has 10 frames"):
            make_clip(path, info, start, stop)


@pytest.mark.parametrize("indices", [[], [3, 3], [4, 2], [-1, 2], [0, 10]])
def test_indices_outside_the_clip_or_out_of_order_are_named(tmp_path: Path, indices: list[int]) -> None:
    path = str(encode(tmp_path / "a.mp4", times=range(10)))
    clip = make_clip(path, probe(path))
    with pytest.raises(VideoError, match=r"be increasing within 0\.\.9"):
        decode(clip, np.array(indices, np.int64))


def test_working_size_scales_down_by_area_and_never_up(tmp_path: Path) -> None:
    images = [np.kron(np.indices((24, 32)).sum(0) % 2, np.ones((4, 4)))[..., None].repeat(3, -1) * 200 + 20] * 3
    path = str(encode(tmp_path / "a.mp4", times=range(3), pictures=[i.astype(np.uint8) for i in images]))
    clip = make_clip(path, probe(path))
    assert (clip.width_px, clip.height_px) == (128, 96)
    small = decode(clip, short_side_px=12).frames
    assert small.shape == (3, 12, 16, 3)
    assert np.abs(small.astype(int) - 120).max() <= 4  # squares of 4 px average out; picking pixels would not
    assert decode(clip, short_side_px=96).frames.shape == (3, 96, 128, 3)
    assert decode(clip, short_side_px=500).frames.shape == (3, 96, 128, 3)
    assert decode(clip, short_side_px=50).frames.shape == (3, 50, 67, 3)


def test_one_moved_instant_is_noticed(tmp_path: Path) -> None:
    times, unit = [0, 40, 80, 120, 160], Fraction(1, 1000)
    path = str(encode(tmp_path / "a.mp4", times=times, unit=unit))
    clip = make_clip(path, probe(path))
    encode(Path(path), times=[0, 40, 81, 120, 160], unit=unit)
    with pytest.raises(SourceChanged, match="other timestamps"):
        decode(clip, np.array([0]))


def test_indices_may_be_chosen_by_time(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4"))
    clip = make_clip(path, probe(path), 5, 30)
    decoded = decode(clip, lambda times_s: np.flatnonzero(np.rint(times_s * 25) % 5 == 0))
    assert numbers(decoded.frames) == [5, 10, 15, 20, 25]


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4", times=range(10)))
    clip = make_clip(path, probe(path))
    encode(Path(path), times=[0, 1, 2, 3, 5, 6, 7, 8, 9, 10])
    with pytest.raises(SourceChanged, match="changed after ingest"):
        decode(clip)
    with pytest.raises(SourceChanged, match="changed after ingest"):
        decode(clip, np.array([0]))
    encode(Path(path), times=range(8))
    with pytest.raises(SourceChanged, match="8 frames in the clip's span, expected 10"):
        decode(clip)
    with pytest.raises(SourceChanged, match="stream is 0, was 1"):
        decode(replace(clip, stream_index=1))


def test_thread_counts_do_not_change_pixels(tmp_path: Path) -> None:
    path = str(encode(tmp_path / "a.mp4", options=B_FRAMES))
    clip = make_clip(path, probe(path))
    np.testing.assert_array_equal(decode(clip, threads=1).frames, decode(clip, threads=3).frames)


def test_a_size_change_within_the_clip_is_an_error(tmp_path: Path) -> None:
    small = encode(tmp_path / "a.ts", times=range(5))
    large = encode(tmp_path / "b.ts", times=range(100, 105), pictures=[picture(1).repeat(2, 0).repeat(2, 1)] * 5)
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    clip = make_clip(str(path), probe(str(path)))
    assert clip.frame_count == 10
    with pytest.raises(CorruptVideo, match="frame 5 is 128x96, the clip is 64x48"):
        decode(clip)


def test_frames_one_by_one_are_those_of_decode(coded: Path) -> None:
    clip = make_clip(str(coded), probe(str(coded)), 11, 24)
    one_by_one = np.stack(list(iter_frames(clip, 24)))
    np.testing.assert_array_equal(one_by_one, decode(clip, short_side_px=24, threads=1).frames)
    with pytest.raises(SourceChanged):
        next(iter_frames(replace(clip, pts_hash="0" * 16)))


def test_a_whole_mp4_is_had_as_it_lies(coded: Path) -> None:
    info = probe(str(coded))
    data = matching_mp4_bytes(make_clip(str(coded), info))
    assert data == (coded.read_bytes() if coded.suffix == ".mp4" else None)
    assert matching_mp4_bytes(make_clip(str(coded), info, 0, 39)) is None


@pytest.mark.parametrize(
    "how",
    [
        {"rotation": (90, False, False)},
        {"rotation": (180, False, False)},
        {"rotation": (0, True, False)},
        {"options": {"sar": "4/3"}},
        {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}},
    ],
)
def test_an_mp4_that_others_may_show_otherwise_is_not_had_as_it_lies(tmp_path: Path, how: dict) -> None:
    assert matching_mp4_bytes(probe_clip(str(encode(tmp_path / "a.mp4", times=range(4))))) is not None
    assert matching_mp4_bytes(probe_clip(str(encode(tmp_path / "b.mp4", times=range(4), **how)))) is None


def test_a_whole_mp4_within_another_file_is_had_without_its_surroundings(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264")
    data = path.read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"x" * 512 + data + b"y" * 100)
    source = f"{tmp_path}/shard.tar#bytes=512-{511 + len(data)}"
    assert matching_mp4_bytes(make_clip(source, probe(source))) == data
    mov = encode(tmp_path / "a.mov", "libx264")
    assert matching_mp4_bytes(make_clip(str(mov), probe(str(mov)))) is None


def test_a_byte_range_with_a_checksum_is_verified(tmp_path: Path) -> None:
    data = encode(tmp_path / "a.mp4", "libx264").read_bytes()
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"x" * 512 + data + b"y" * 100)
    source = f"{shard}#bytes=512-{511 + len(data)}&xxh3={xxhash.xxh3_64_hexdigest(data)}"
    whole = decode(make_clip(source, probe(source))).frames
    np.testing.assert_array_equal(whole, decode(probe_clip(str(tmp_path / "a.mp4"))).frames)
    shard.write_bytes(b"x" * 512 + data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    with pytest.raises(CorruptVideo, match="checksum mismatch"):
        probe(source)
