import contextlib
import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from openuni.filters.motion import Motion
from openuni.filters.motion_vectors import CodecMotion
from openuni.manifests.contracts.decoded_clip import DecodedClip, decode
from openuni.manifests.errors import ClipError, OpenUniError, Unavailable
from openuni.manifests.video.probe import make_clip, probe
from tests.coded_clips import encode
from tests.moving_pictures import panned, square_on_texture

ONE_REFERENCE = {"bf": "0", "refs": "1", "g": "250", "crf": "12"}
SHIFT_PX = (6, -4)  # right, down per frame; even: no sub-pixel search is needed
HEIGHT_PX, WIDTH_PX = 192, 256


def pan(frames=15):
    offsets = [(SHIFT_PX[0] * index, SHIFT_PX[1] * index) for index in range(frames)]
    return panned(offsets, HEIGHT_PX, WIDTH_PX)


def decoded(folder, pictures, codec="libx264", suffix="mp4", options=None, **how):
    path = encode(
        folder / f"x.{suffix}", codec, range(len(pictures)), options or ONE_REFERENCE, pictures=list(pictures)
    )
    clip = make_clip(str(path), probe(str(path)))
    return decode(clip, CodecMotion().sample, vectors=True, **how)


def contract_case(folder, frames):
    return CodecMotion(), decoded(folder, frames)


def test_a_known_shift_gives_its_length_in_widths_plus_heights(tmp_path):
    found = CodecMotion().run(None, decoded(tmp_path, pan()))
    expected = np.hypot(*SHIFT_PX) / (HEIGHT_PX + WIDTH_PX)
    assert found.length_sides == pytest.approx(expected, rel=0.05)
    assert found.least_patch_sides == pytest.approx(expected, rel=0.1)
    assert found.predicted_share == pytest.approx(3 / 4, abs=0.02)  # of two pairs, one frame is a key frame


@pytest.mark.parametrize("threads", [0, 1])
def test_vectors_point_where_the_picture_moves(tmp_path, threads):
    clip = decoded(tmp_path, pan(), threads=threads)
    assert [vectors is None for vectors in clip.vectors] == [True] + [False] * (len(clip.frames) - 1)
    for vectors in clip.vectors[1:]:
        assert (vectors.width_px, vectors.height_px) == (WIDTH_PX, HEIGHT_PX)
        assert not vectors.from_later.any()
        area = vectors.sizes_px.prod(axis=1)
        assert np.average(vectors.shifts_px, axis=0, weights=area) == pytest.approx(SHIFT_PX, rel=0.05)


@pytest.mark.parametrize(
    ("codec", "suffix", "options"), [("libx264", "mp4", {"bf": "3"}), ("mpeg4", "avi", {"bf": "2"})]
)
def test_vectors_do_not_depend_on_the_number_of_decoder_threads(tmp_path, codec, suffix, options):
    path = encode(tmp_path / f"x.{suffix}", codec, range(60), options, pictures=list(pan(60)))
    clip = make_clip(str(path), probe(str(path)))

    def listed(threads):
        vectors = [found for found in decode(clip, threads=threads, vectors=True).vectors if found is not None]
        return [(found.centres_px.tolist(), found.shifts_px.tolist()) for found in vectors]

    expected = listed(1)
    assert len(expected) > 50
    for threads in (2, 8, 8, 8, 16, 16, 16, 0):
        assert listed(threads) == expected, threads


def test_the_working_size_does_not_matter(tmp_path):
    whole, small = (CodecMotion().run(None, decoded(tmp_path, pan(), short_side_px=size)) for size in (0, 64))
    assert whole == small


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", "mp4"), ("mpeg2video", "mpg"), ("flv", "flv")])
def test_other_codecs_with_vectors(tmp_path, codec, suffix):
    found = CodecMotion().run(None, decoded(tmp_path, pan(), codec, suffix, {"bf": "0", "g": "250", "qscale": "2"}))
    assert found.length_sides == pytest.approx(
        np.hypot(*SHIFT_PX) / (HEIGHT_PX + WIDTH_PX), rel=0.15
    )  # some blocks are intra


@pytest.mark.parametrize(("codec", "suffix"), [("libx265", "mp4"), ("libvpx-vp9", "webm"), ("libsvtav1", "mkv")])
def test_codecs_that_keep_their_vectors_are_unavailable_not_zero_and_motion_measures_them(tmp_path, codec, suffix):
    options = {
        "libx265": {"x265-params": "log-level=none", "crf": "15"},
        "libvpx-vp9": {"crf": "15", "b": "0", "cpu-used": "8"},
        "libsvtav1": {"crf": "20", "preset": "10"},
    }
    clip = decoded(tmp_path, pan(), codec, suffix, options[codec])
    with pytest.raises(Unavailable, match="`motion` supports any codec"):
        CodecMotion().run(None, clip)
    speed = Motion(preset="medium").run(None, clip).speed_diag_per_s
    assert speed == pytest.approx(np.hypot(*SHIFT_PX) / np.hypot(HEIGHT_PX, WIDTH_PX) * 25, rel=0.05)


@pytest.mark.parametrize(("codec", "suffix"), [("libx265", "mp4"), ("libvpx-vp9", "webm"), ("libsvtav1", "mkv")])
def test_vectors_estimated_by_ffmpeg_from_such_codecs_are_the_same(tmp_path, codec, suffix):
    """FFmpeg's mestimate: blocks found in the frame before (source -1) and the one after, whatever the codec."""
    options = {
        "libx265": {"x265-params": "log-level=none", "crf": "15"},
        "libvpx-vp9": {"crf": "15", "b": "0", "cpu-used": "8"},
        "libsvtav1": {"crf": "20", "preset": "10"},
    }
    frames = decode(decoded(tmp_path, pan(8), codec, suffix, options[codec]).clip).frames
    tables = np.concatenate(mestimate(frames)[1:])
    here, there = (np.stack([tables[f"{side}_x"], tables[f"{side}_y"]], axis=1).astype(int) for side in ("dst", "src"))
    inside = (np.abs(here / (WIDTH_PX, HEIGHT_PX) - 0.5) < 0.35).all(axis=1) & (tables["source"] < 0)
    assert (here - there)[inside].mean(axis=0) == pytest.approx(SHIFT_PX, rel=0.05)


def mestimate(frames):
    """The tables of vectors that FFmpeg finds for uint8 [T, H, W, 3], of all frames but the last."""
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=WIDTH_PX, height=HEIGHT_PX, format=av.VideoFormat("yuv420p"), time_base=Fraction(1, 25)
    )
    search, sink = graph.add("mestimate", "method=umh:mb_size=16:search_param=16"), graph.add("buffersink")
    source.link_to(search)
    search.link_to(sink)
    graph.configure()
    found = []
    for number, image in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        graph.push(frame)
        with contextlib.suppress(av.error.BlockingIOError):
            found.append(graph.pull().side_data.get("MOTION_VECTORS"))
    return [vectors.to_ndarray() for vectors in found if vectors is not None]


def test_a_small_thing_that_moves_ranks_between_rest_and_a_pan(tmp_path):
    still = CodecMotion().run(None, decoded(tmp_path, square_on_texture([60] * 8)))
    object_ = CodecMotion().run(None, decoded(tmp_path, square_on_texture([40 + 4 * index for index in range(8)])))
    moving = CodecMotion().run(None, decoded(tmp_path, panned([(4 * index, 0) for index in range(8)])))
    assert 10 * still.length_sides <= object_.length_sides < 0.5 * moving.length_sides


def test_a_corner_at_rest_is_the_least_patch(tmp_path):
    pictures = np.repeat(pan(1), 8, axis=0).repeat(3, axis=1).repeat(3, axis=2)  # 576 x 768: two by three patches
    for index, picture in enumerate(pictures):
        picture[:, 384:] = panned([(-4 * index, 0)], 576, 384)[0]
    found = CodecMotion().run(None, decoded(tmp_path, pictures))
    assert found.least_patch_sides < 0.05 * found.length_sides


def test_frames_that_are_all_coded_by_themselves_have_no_score(tmp_path):
    found = CodecMotion().run(None, decoded(tmp_path, pan(6), options={"g": "1"}))
    assert found == (None, None, 0.0)


def test_frames_without_vectors_asked_for_are_unavailable():
    with pytest.raises(Unavailable, match="rawvideo"):
        CodecMotion().run(None, DecodedClip.from_frames(pan(2)))


def test_taking_frames_takes_their_vectors(tmp_path):
    clip = decoded(tmp_path, pan(9))
    assert clip.take(np.array([1])).vectors[0] is clip.vectors[1]
    assert dataclasses.replace(clip, vectors=None).take(np.array([0])).vectors is None


def test_it_asks_for_the_frames_that_motion_asks_for():
    times_s = np.arange(200) / 30
    assert CodecMotion().sample(times_s).tolist() == Motion().sample(times_s).tolist()


@pytest.mark.parametrize("wrong", [{"pairs_per_s": 0.0}, {"max_pairs": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        CodecMotion(**wrong)


def test_unavailable_is_an_error_of_the_clip():
    assert issubclass(Unavailable, ClipError)
