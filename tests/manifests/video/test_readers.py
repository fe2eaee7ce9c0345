"""Other readers than PyAV on the CPU: the same frames, or an error that says so; never other frames."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from openuni.manifests.video import reader
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.container import Limits, demux, list_packets, open_video
from openuni.manifests.video.decoder import progress
from openuni.manifests.video.frames import FrameReader, to_rgb24
from openuni.manifests.video.probe import make_clip, probe, probe_clip
from openuni.manifests.video.reader import iter_windows
from openuni.manifests.video.readers import nvdec_reader
from openuni.manifests.video.readers.clip_images import Attempt, attempts_of, displayed_images, hardware_images
from openuni.manifests.video.readers.nvdec_reader import HardwareRefused, nvdec_problem
from openuni.manifests.video.readers.reader_check import Difference, compared, sampled_timestamps
from openuni.manifests.video.video_errors import ReaderMismatch, SourceChanged, VideoError
from openuni.report import doctor
from tests.coded_clips import encode, numbers, picture

CLOSED_GOP = {"x265-params": "open-gop=0:keyint=12:bframes=3:log-level=none"}
OPEN_GOP = {"x265-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:log-level=none"}
READABLE = {  # by decord
    "b_frames.mp4": ("libx264", {"bf": "3", "g": "12"}),
    "b_frames.mkv": ("libx264", {"bf": "3", "g": "12"}),
    "deep.mp4": ("libx265", CLOSED_GOP | {"pix_fmt": "yuv420p10le"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "ffv1.mkv": ("ffv1", {}),
}


def moving(count: int, height_px: int = 48, width_px: int = 64) -> list[np.ndarray]:
    """Pictures of which no two are near each other."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, height_px // 8, width_px // 8, 3)).astype(np.uint8)
    return [np.kron(one, np.ones((8, 8, 1), np.uint8)) for one in coarse]


@pytest.fixture(scope="module", params=READABLE)
def readable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, options = READABLE[request.param]
    return encode(tmp_path_factory.mktemp("coded") / request.param, codec, options=options)


# ---------------------------------------------------------------------- decord


def test_decord_gives_the_frames_and_times_of_pyav(readable: Path) -> None:
    info = probe(str(readable))
    for start, stop in ((0, 40), (11, 30)):
        clip = make_clip(str(readable), info, start, stop)
        expected, found = decode(clip), decode(clip, reader="decord")
        assert numbers(found.frames) == list(range(start, stop))
        np.testing.assert_array_equal(found.times_s, expected.times_s)
        assert np.abs(found.frames.astype(int) - expected.frames).mean() < 2.5


def test_decord_gives_chosen_frames_windows_and_the_working_size(readable: Path) -> None:
    clip = make_clip(str(readable), probe(str(readable)), 5, 40)
    chosen = decode(clip, np.array([0, 6, 20, 34]), 24, reader="decord")
    assert chosen.frames.shape == (4, 24, 32, 3) and numbers(chosen.frames) == [5, 11, 25, 39]
    windows = list(iter_windows(clip, frames_per_window=16, overlap_frames=1, reader="decord"))
    assert [numbers(window.frames) for window in windows] == [
        list(range(5, 21)),
        list(range(20, 37)),
        list(range(36, 40)),
    ]


def test_decord_keeps_variable_frame_rates(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", times=[0, 1, 2, 5, 9, 10, 11, 20, 21, 30])
    clip = probe_clip(str(path))
    found = decode(clip, reader="decord")
    assert numbers(found.frames) == list(range(10))
    np.testing.assert_array_equal(found.times_s, decode(clip).times_s)


def rotated(folder: Path) -> Path:
    return encode(folder / "a.mp4", rotation=(90.0, False, False))


def upside_down(folder: Path) -> Path:
    return encode(folder / "a.mp4", rotation=(180.0, False, False))


def stretched(folder: Path) -> Path:
    return encode(folder / "a.mp4", options={"sar": "2/1"})


def interlaced(folder: Path) -> Path:
    return encode(folder / "a.mp4", options={"flags": "+ildct+ilme", "x264-params": "tff=1"})


def transport_stream(folder: Path) -> Path:  # of which decord gives frames 32, 33, ... as 0, 1, ...
    return encode(folder / "a.ts")


def program_stream(folder: Path) -> Path:
    return encode(folder / "a.mpg", "mpeg2video")


def av1(folder: Path) -> Path:
    return encode(folder / "a.mp4", "libsvtav1", options={"preset": "10"})


def edited(folder: Path) -> Path:
    """An edit list hides the first seven frames."""
    path = encode(folder / "whole.mp4", options={"bf": "0", "g": "20", "sc_threshold": "0"})
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(path)) as source, av.open(str(folder / "a.mp4"), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 7 * 512, packet.dts - 7 * 512
                packet.stream = stream
                target.mux(packet)
    return folder / "a.mp4"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (rotated, "rotated or mirrored"),
        (upside_down, "rotated or mirrored"),
        (stretched, "not square"),
        (interlaced, "interlaced"),
        (transport_stream, "not for mpegts"),
        (program_stream, "not for mpeg"),
        (av1, "decord cannot read it"),
        (edited, "decord finds|decord has frame|is not the CPU decoder's"),
    ],
)
def test_what_decord_would_show_otherwise_is_an_error(make, reason: str, tmp_path: Path) -> None:
    clip = probe_clip(str(make(tmp_path)))
    assert decode(clip).frames.shape[0] == clip.frame_count
    with pytest.raises(VideoError, match=reason) as caught:
        decode(clip, reader="decord")
    assert 'reader = "pyav"' in str(caught.value)


def test_a_source_that_changed_is_not_read_by_decord(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4")
    clip = probe_clip(str(path))
    encode(path, pictures=moving(40))
    with pytest.raises(SourceChanged):
        decode(clip, reader="decord")


def test_decord_reads_urls_up_to_a_quarter_of_the_decoder_memory(tmp_path: Path) -> None:
    import fsspec

    data = encode(tmp_path / "a.mp4").read_bytes()
    fsspec.filesystem("memory").pipe("/readers/a.mp4", data)
    clip = probe_clip("memory://readers/a.mp4")
    assert numbers(decode(clip, reader="decord").frames) == list(range(40))
    with pytest.raises(VideoError, match="a quarter of"):
        decode(clip, limits=Limits(max_decoder_bytes=3 * len(data)), reader="decord")


def test_decord_runs_in_the_decoder_process_and_within_its_limits(tmp_path: Path) -> None:
    clip = probe_clip(str(encode(tmp_path / "a.mp4", pictures=moving(10, 240, 320), times=range(10))))
    with pytest.raises(ClipError, match=r"longer than|no packet or frame"):
        decode(clip, limits=Limits(max_decode_s=1e-4), reader="decord")


def test_motion_vectors_are_not_to_be_had_of_decord(tmp_path: Path) -> None:
    clip = probe_clip(str(encode(tmp_path / "a.mp4")))
    with pytest.raises(VideoError, match="motion vectors"):
        decode(clip, vectors=True, reader="decord")


# ---------------------------------------------------------------------- the check


def test_the_first_frame_and_two_keyframes_are_compared() -> None:
    wanted, keys = np.arange(5, 40), np.array([0, 12, 24, 36, 48])
    assert sampled_timestamps(wanted, keys) == [5, 24, 36]
    assert sampled_timestamps(np.array([5, 6]), keys) == [5]
    assert sampled_timestamps(np.array([12]), keys) == [12]


def test_spans_of_open_groups_of_pictures_are_the_right_frames_or_an_error(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx265", times=range(60), options=OPEN_GOP)
    info, refused = probe(str(path)), 0
    for start in range(0, 50, 3):
        clip = make_clip(str(path), info, start, start + 10)
        try:
            found = decode(clip, reader="decord").frames
        except VideoError:
            refused += 1
        else:
            assert numbers(found) == list(range(start, start + 10))
    assert 0 < refused < 17  # decord loses its place in some


@pytest.mark.parametrize("shift", [0, 1])
def test_a_frame_that_differs_is_an_error(shift: int) -> None:
    pictures = [picture(number) for number in range(20)]
    given = iter(pictures[shift:] + pictures[:shift])
    checked = compared("a.mp4", "x", given, np.arange(20), {12: picture(12)}, Difference(2.0, 255))
    if not shift:
        assert numbers(np.stack(list(checked))) == list(range(20))
        return
    with pytest.raises(ReaderMismatch, match="timestamp 12 that x gives is not"):
        list(checked)


# ---------------------------------------------------------------------- NVDEC


def by_hardware_path(clip: Clip, source: str, size_px: tuple[int, int] = (48, 64)) -> np.ndarray:
    """The frames as the NVDEC path gives them, with a CPU decoder in the place of NVDEC that reads `source`."""
    with open_video(source, Limits()) as (container, stream):
        packets = list_packets(container, demux(container, stream), source, Limits())
        decoder = FrameReader(source, container, stream, packets, Limits())
        return np.stack(list(hardware_images(clip, decoder, packets.pts, size_px, Limits(), on_gpu=False)))


@pytest.mark.parametrize("name", ["b_frames.mp4", "deep.mp4", "vp9.webm"])
def test_the_path_of_nvdec_gives_the_frames_of_the_cpu_decoder(name: str, tmp_path: Path) -> None:
    codec, options = READABLE[name]
    clip = probe_clip(str(encode(tmp_path / name, codec, options=options)))
    np.testing.assert_array_equal(by_hardware_path(clip, clip.source), decode(clip).frames)
    np.testing.assert_array_equal(by_hardware_path(clip, clip.source, (24, 32)), decode(clip, None, 24).frames)


def test_frames_that_are_not_the_cpu_decoders_are_an_error(tmp_path: Path) -> None:
    clip = probe_clip(str(encode(tmp_path / "a.mp4")))
    other = str(encode(tmp_path / "b.mp4", pictures=moving(40)))
    with pytest.raises(ReaderMismatch, match="NVDEC gives is not the CPU decoder's"):
        by_hardware_path(clip, other)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mpg", "mpeg2video"), ("a.mkv", "ffv1")])
def test_codecs_without_exact_decoding_are_left_to_the_cpu(name: str, codec: str, tmp_path: Path) -> None:
    clip = probe_clip(str(encode(tmp_path / name, codec)))
    with pytest.raises(HardwareRefused):
        by_hardware_path(clip, clip.source)


def test_interlaced_clips_are_left_to_the_cpu(tmp_path: Path) -> None:
    clip = probe_clip(str(interlaced(tmp_path)))
    with pytest.raises(HardwareRefused, match="interlaced"):
        by_hardware_path(clip, clip.source)


@pytest.mark.parametrize(("stored", "given"), [("yuv420p", "nv12"), ("yuv420p10le", "p010le")])
def test_the_formats_that_nvdec_gives_become_the_same_rgb(stored: str, given: str) -> None:
    from av.video.reformatter import VideoReformatter

    rng = np.random.default_rng(0)
    levels, kind = (256, np.uint8) if stored == "yuv420p" else (1024, np.uint16)
    frame = av.VideoFrame.from_ndarray(rng.integers(0, levels, (72, 64)).astype(kind), format=stored)
    hardware = frame.reformat(format=given, threads=1)
    for size in ((64, 48), (43, 32)):
        expected = to_rgb24(frame, *size, VideoReformatter())
        np.testing.assert_array_equal(to_rgb24(hardware, *size, VideoReformatter()), expected)


def test_what_nvdec_refuses_is_tried_on_the_cpu_and_counted_once(tmp_path: Path) -> None:
    attempts = attempts_of("nvdec", 4, False)
    assert attempts == [Attempt("nvdec", 1), Attempt("pyav", 4, True), Attempt("pyav", 1)]
    assert attempts_of("nvdec", 4, True) == [Attempt("pyav", 4), Attempt("pyav", 1)]
    assert attempts_of("decord", 4, False) == [Attempt("decord", 4)]  # never by another reader
    clip = probe_clip(str(encode(tmp_path / "a.mp4")))
    before = progress.fallback_count()
    for attempt in attempts[1:]:
        assert numbers(reader._decode(clip, None, 0, Limits(), attempt, False).frames) == list(range(40))
    assert progress.fallback_count() == before + 1


@pytest.mark.skipif(not nvdec_problem(), reason="NVDEC works here")
def test_without_a_gpu_nvdec_is_a_missing_requirement(tmp_path: Path) -> None:
    clip = probe_clip(str(encode(tmp_path / "a.mp4")))
    with pytest.raises(MissingRequirement, match=r"reader = \"nvdec\": FFmpeg cannot open an NVIDIA GPU here"):
        decode(clip, reader="nvdec")
    assert nvdec_reader.device_bytes() == 0
    checks = doctor.run_checks(openuni.CorpusRecipe.parse({"work": {"reader": "nvdec"}}), gpus=1.0)
    assert [check.level for check in checks if "nvdec" in check.what] == ["unavailable"]


@pytest.mark.skipif(bool(nvdec_problem()), reason="no GPU")
def test_nvdec_gives_the_frames_of_the_cpu_decoder(tmp_path: Path) -> None:
    for name in ("b_frames.mp4", "deep.mp4", "vp9.webm"):
        codec, options = READABLE[name]
        path = encode(tmp_path / name, codec, options=options, pictures=moving(40, 256, 320))
        clip = probe_clip(str(path))
        before = progress.fallback_count()
        np.testing.assert_array_equal(decode(clip, reader="nvdec").frames, decode(clip).frames)
        assert progress.fallback_count() == before, name


def test_an_unknown_reader_is_an_error(tmp_path: Path) -> None:
    clip = probe_clip(str(encode(tmp_path / "a.mp4")))
    with pytest.raises(VideoError, match="Known: pyav, decord, nvdec"):
        decode(clip, reader="opencv")


# ---------------------------------------------------------------------- in a run

RECIPE = {
    "filters": {"luminance": {}},
    "annotators": {"dis": {"preset": "ultrafast"}},
    "encode": {"modalities": ["rgb"], "size_px": [32, 48], "frames": 5},
}


def run(tables: dict[str, object], raw: Path, out: Path) -> openuni.Corpus:
    return openuni.run(tables, raw, out=out, reporter=Reporter(quiet=True))


def test_the_reader_is_part_of_the_version_unless_it_is_the_default(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    encode(raw / "a.mp4", times=range(6))
    upside_down(raw).rename(raw / "b.mp4")
    encode(raw / "a.mp4", times=range(6))
    corpus = run(RECIPE, raw, tmp_path / "corpus")
    before = corpus[0].row("luminance")["version"]
    again = run(RECIPE | {"work": {"reader": "pyav"}}, raw, tmp_path / "corpus")
    assert again[0].row("luminance")["version"] == before
    other = run(RECIPE | {"work": {"reader": "decord"}}, raw, tmp_path / "corpus")
    rows = {Path(clip.clip.source).name: clip.row("luminance") for clip in other}
    assert rows["a.mp4"]["status"] == "ok" and rows["a.mp4"]["version"] != before
    assert rows["b.mp4"]["status"] == "failed" and "rotated or mirrored" in rows["b.mp4"]["error"]
    back = run(RECIPE, raw, tmp_path / "corpus")
    assert {clip.row("luminance")["status"] for clip in back} == {"ok"}


def test_motion_vectors_by_decord_are_refused_before_the_run() -> None:
    tables = {"work": {"reader": "decord"}, "filters": {"motion_vectors": {}}}
    with pytest.raises(OpenUniError, match=r"\[filters.motion_vectors\] requires"):
        openuni.CorpusRecipe.parse(tables)


def test_a_run_by_nvdec_without_a_gpu_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    encode(tmp_path / "raw" / "a.mp4", times=range(6))
    with pytest.raises(MissingRequirement, match="nvdec: requires a GPU"):
        run(RECIPE | {"work": {"reader": "nvdec"}}, tmp_path / "raw", tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_frames_of_another_size_are_not_the_clips(tmp_path: Path) -> None:
    clip = probe_clip(str(encode(tmp_path / "a.mp4")))
    with open_video(clip.source, Limits()) as (container, stream):
        packets = list_packets(container, demux(container, stream), clip.source, Limits())
        frames = FrameReader(clip.source, container, stream, packets, Limits()).frames(packets.pts)
        with pytest.raises(VideoError, match="frame 0 is 64x48, the clip is 66x48"):
            next(displayed_images(replace(clip, width_px=66), frames, (48, 64), 1))
