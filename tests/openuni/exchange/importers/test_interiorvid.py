"""Rendered interiors: what comes out is what was rendered, and every planted fault is found and named."""

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.arrays.srgb import linear_to_srgb
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.encode import write_video
from tests.openuni.exchange.importers.made_sets import (
    bring_in,
    clips_by_key,
    imported,
    levels16,
    reasons,
    results,
    write_exr,
    write_planes,
    write_png,
)
from tests.openuni.exchange.importers.rooms import Room, render

FRAMES = 12
HALF = 2.0**-11  # relative error of a 16-bit float


@pytest.fixture(scope="module")
def room() -> Room:
    return render(FRAMES)


def write_clip(folder: Path, room: Room, **replaced: np.ndarray) -> Path:
    """A clip as EXR sequences; `replaced`: other frames for some of the folders."""
    for name, frames in (room._asdict() | replaced).items():
        write_exr(folder / name, frames)
    return folder


def degrees_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Between unit vectors; by their distance, as the cosine of a small angle is lost in float32."""
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(one - other, axis=-1) / 2, 0, 1)))


def shown(room: Room) -> np.ndarray:
    return np.rint(np.clip(linear_to_srgb(np.clip(room.rgb.astype(np.float16).astype(np.float32), 0, 1)), 0, 1) * 255)


def test_exr_clips_come_in_within_half_a_level(tmp_path, room):
    write_clip(tmp_path / "set/train/attic_001", room)
    write_clip(tmp_path / "set/train/attic_002", render(FRAMES, phase=0.3))
    write_clip(tmp_path / "set/test/cellar_001", render(FRAMES, phase=0.6))
    (tmp_path / "set/train/attic_001/caption.txt").write_text("an attic\n")
    (tmp_path / "set/test/cellar_001.txt").write_text("a cellar")
    corpus = bring_in("interiorvid", tmp_path / "set", tmp_path / "corpus", scene="([a-z]+)_[0-9]+$")
    rows = clips_by_key(corpus, "interiorvid", ["train/attic_001", "train/attic_002", "test/cellar_001"])
    facts = [(row["split"], row["origin"], row["caption"], row["status"]) for row in rows.values()]
    assert facts == [
        ("train", "attic", "an attic", "ok"),
        ("train", "attic", None, "ok"),
        ("test", "cellar", "a cellar", "ok"),
    ]
    clip = imported(corpus, "interiorvid", "train/attic_001")
    assert np.array_equal(clip.rgb, shown(room))
    assert np.abs(clip.albedo - room.albedo).max() <= HALF + 1 / 131070
    assert np.abs(clip.irradiance / room.irradiance - 1).max() <= 2 * HALF
    assert degrees_apart(clip.normal, room.normal).max() < 0.1
    row = clip.row("interiorvid")
    assert row["exposure"] == 1.0 and row["transfer"] == "srgb" and row["aligned_by_motion"]
    assert abs(row["product_gain"] - 1) < 0.02 and row["product_correlation"] > 0.99
    assert row["renormalised_share"] == 0
    assert row["overexposed_share"] == pytest.approx((room.rgb.astype(np.float16) > 1).mean())


def test_exposure_goes_to_picture_and_light(tmp_path, room):
    dim = write_clip(tmp_path / "set/dim", room, rgb=room.rgb / 8, irradiance=room.irradiance / 8)
    corpus = bring_in("interiorvid", dim.parent, tmp_path / "times 8", exposure=8.0)
    clip = imported(corpus, "interiorvid", "dim")
    assert np.abs(clip.rgb - shown(room)).max() <= 1
    assert np.abs(clip.irradiance / room.irradiance - 1).max() <= 3 * HALF
    auto = imported(bring_in("interiorvid", dim.parent, tmp_path / "auto", exposure=0.0), "interiorvid", "dim")
    exposure = auto.row("interiorvid")["exposure"]
    assert ((room.rgb / 8).max(-1) * exposure > 1).mean() == pytest.approx(0.01, abs=0.004)
    assert np.abs(auto.irradiance / (room.irradiance / 8 * exposure) - 1).max() <= 3 * HALF


def test_png_and_video_clips(tmp_path, room):
    pictures = shown(room).astype(np.uint8)
    opencv = room.normal * [1, -1, -1]
    folder = tmp_path / "set/png"
    write_png(folder / "rgb", pictures)
    write_png(folder / "albedo", levels16(linear_to_srgb(room.albedo)))
    write_png(folder / "irradiance", levels16(room.irradiance / 4))
    write_png(folder / "normal", levels16((opencv + 1) / 2))
    folder = tmp_path / "set/video"
    folder.mkdir()
    write_video(folder / "rgb.mp4", pictures, 24.0, crf=10)
    write_planes(folder / "albedo.mkv", levels16(linear_to_srgb(room.albedo)), 24.0)
    write_planes(folder / "irradiance.mkv", levels16(room.irradiance / 4), 24.0)
    write_video(folder / "normal.mp4", np.rint((opencv + 1) / 2 * 255).astype(np.uint8), 24.0, crf=4, pixels="yuv444p")
    corpus = bring_in(
        "interiorvid",
        tmp_path / "set",
        tmp_path / "corpus",
        albedo_coding="srgb",
        irradiance_scale=4.0,
        normal_frame="opencv",
        fps=12.0,
    )
    assert reasons(corpus) == {}
    for key, fps, degrees in (("png", 12.0, 0.01), ("video", 24.0, 8.0)):
        clip = imported(corpus, "interiorvid", key)
        assert clip.clip.fps == pytest.approx(fps, rel=1e-3)
        assert np.abs(clip.albedo - room.albedo).max() <= 5e-5  # 16 bits, the steepest part of the sRGB curve
        assert np.abs(clip.irradiance / room.irradiance - 1).max() <= 4 * HALF
        angles = degrees_apart(clip.normal, room.normal)
        assert np.percentile(angles, 95) < degrees
    assert np.array_equal(imported(corpus, "interiorvid", "png").rgb, pictures)
    assert imported(corpus, "interiorvid", "video").clip.source == str(tmp_path / "set/video/rgb.mp4")


def drop_last(folder):
    (folder / "normal/0011.exr").unlink()


def drop_inner(folder):
    (folder / "albedo/0004.exr").unlink()


def cut_short(folder):
    file = folder / "irradiance/0003.exr"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def out_of_the_set(folder):
    shutil.move(folder / "normal/0000.exr", folder.parents[1] / "elsewhere.exr")
    (folder / "normal/0000.exr").symlink_to(folder.parents[1] / "elsewhere.exr")


def no_albedo(folder):
    shutil.rmtree(folder / "albedo")


FAULTS = {  # what was done to the set's folder, or which frames were written instead; what the reason says
    "last": (drop_last, r"normal has 11 frames, rgb has 12"),
    "inner": (drop_inner, r"albedo: 1 of the frames 0 to 11 are missing, the first is 4"),
    "cut": (cut_short, r"0003\.exr is damaged"),
    "outside": (out_of_the_set, r"resolves to .*elsewhere\.exr, outside the dataset folder"),
    "without": (no_albedo, r"has no albedo \(folder of images or video"),
    "shifted-albedo": (lambda room, late: {"albedo": late.albedo}, r"albedo is misaligned: 1 frame behind"),
    "shifted-light": (lambda room, late: {"irradiance": late.irradiance}, r"irradiance is misaligned: 1 frame behind"),
    "shifted-rgb": (lambda room, late: {"rgb": late.rgb}, r"rgb is misaligned: 1 frame behind"),
    "shifted-normals": (lambda room, late: {"normal": late.normal}, r"normal is misaligned: 1 frame behind"),
    "small": (lambda room, late: {"albedo": room.albedo[:, ::2, ::2]}, r"albedo is 32 x 24, rgb is 64 x 48"),
    "long-normals": (lambda room, late: {"normal": room.normal * 1.1}, r"100% of the normals do not have length 1"),
    "opencv": (lambda room, late: {"normal": room.normal * [1, -1, -1]}, r'away from the camera .*"opencv"'),
    "bright-albedo": (lambda room, late: {"albedo": room.albedo * 1.6}, r"albedo ranges from .* to 1\.\d+.* 0 to 1"),
    "negative": (lambda room, late: {"irradiance": room.irradiance - 1}, r"irradiance must be >= 0"),
    "nan": (lambda room, late: {"irradiance": np.where(room.rgb > 0.3, np.nan, room.irradiance)}, r"NaN or infinite"),
    "pi": (lambda room, late: {"irradiance": room.irradiance / np.pi}, r"rgb is 3\.1\d times .*irradiance_scale"),
    "another": (lambda room, late: {"albedo": 1 - room.albedo[:, ::-1]}, r"does not explain rgb|rgb is"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, room):
    """A set with a sound clip and one per fault."""
    folder = tmp_path_factory.mktemp("faulty") / "set"
    long = render(FRAMES + 1, phase=-0.06)
    late = Room(*(frames[:-1] for frames in long))  # shows at t + 1 what `room` shows at t
    write_clip(folder / "sound", room)
    for name, (fault, _) in FAULTS.items():
        by_hand = fault.__code__.co_argcount == 1
        write_clip(folder / name, room, **({} if by_hand else fault(room, late)))
        if by_hand:
            fault(folder / name)
    return folder


def test_each_fault_is_named_and_the_rest_comes_in(faulty, tmp_path):
    corpus = bring_in("interiorvid", faulty, tmp_path / "corpus")
    found = reasons(corpus)
    assert set(found) == set(FAULTS)
    for name, (_, reason) in FAULTS.items():
        assert found[name].startswith("ClipError: ")
        assert re.search(reason, found[name]), f"{name}: {found[name]}"
    assert corpus.kept_clip_ids() == [imported(corpus, "interiorvid", "sound").clip_id]

    before = results(corpus)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("part-*")}
    assert results(bring_in("interiorvid", faulty, tmp_path / "corpus")) == before  # nothing is done again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("part-*")} == parts

    mended = tmp_path / "mended"
    shutil.copytree(faulty, mended, symlinks=True)
    shutil.rmtree(mended / "inner/albedo")
    shutil.copytree(mended / "sound/albedo", mended / "inner/albedo")
    again = bring_in("interiorvid", mended, tmp_path / "corpus", retry_failed=True)
    assert set(reasons(again)) == set(FAULTS) - {"inner"}
    assert np.array_equal(imported(again, "interiorvid", "inner").rgb, imported(again, "interiorvid", "sound").rgb)


def test_two_workers_make_the_same_corpus(tmp_path, room, ray_workers):
    for number in range(3):
        write_clip(tmp_path / f"set/{number}", render(6, phase=0.1 * number))
    (tmp_path / "set/1/rgb/0002.exr").write_bytes(b"no picture")
    alone = results(bring_in("interiorvid", tmp_path / "set", tmp_path / "alone"))
    assert alone == results(bring_in("interiorvid", tmp_path / "set", tmp_path / "shared", ray_workers(2)))


def test_a_clip_that_stands_still_is_said_to_prove_nothing(tmp_path):
    write_clip(tmp_path / "set/still", render(8, speed=0.0))
    corpus = bring_in("interiorvid", tmp_path / "set", tmp_path / "corpus")
    assert imported(corpus, "interiorvid", "still").row("interiorvid")["aligned_by_motion"] is False


def test_maps_that_are_not_asked_for_are_not_read(tmp_path, room):
    folder = write_clip(tmp_path / "set/a", room)
    shutil.rmtree(folder / "irradiance")
    (folder / "normal/0003.exr").write_bytes(b"no picture")
    corpus = bring_in("interiorvid", tmp_path / "set", tmp_path / "corpus", modalities=["albedo"])
    row = imported(corpus, "interiorvid", "a").row("interiorvid")
    assert row["albedo"]["frames"] == FRAMES and row["normal"] is None and row["irradiance"] is None
    late = np.concatenate([room.albedo[:1], room.albedo[:-1]])
    write_clip(tmp_path / "late/a", room, albedo=late)
    refused = bring_in("interiorvid", tmp_path / "late", tmp_path / "corpus", modalities=["albedo"])
    assert "ok" in {row["status"] for row in refused.table("clips").to_pylist()}  # the same clip: it is there already
    refused = bring_in("interiorvid", tmp_path / "late", tmp_path / "other", modalities=["albedo"])
    assert "albedo is misaligned: 1 frame behind, judged by its edges" in reasons(refused)["a"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scene": "([a-z]+"}, "is not a valid regular expression"),
        ({"scene": "[a-z]+"}, "has 0 groups; expected one"),
        ({"modalities": ["depth"]}, 'unknown modality "depth"'),
        ({"fps": 0.0}, "fps = 0"),
        ({"exposure": -1.0}, "exposure = -1"),
        ({"rgb": "beauty", "albedo": "diffcol", "modalities": ["albedo"]}, "at least two of beauty, diffcol"),
    ],
)
def test_wrong_options_and_folders_are_refused_at_once(tmp_path, room, options, reason):
    write_clip(tmp_path / "set/a", room)
    with pytest.raises(OpenUniError, match=reason):
        bring_in("interiorvid", tmp_path / "set", tmp_path / "corpus", **options)


def test_kept_files_and_maps_coded_anew_are_the_same_within_their_bounds(tmp_path, room):
    write_clip(tmp_path / "set/exr", room)
    folder = tmp_path / "set/png"
    write_exr(folder / "rgb", room.rgb)
    write_png(folder / "albedo", levels16(room.albedo))
    write_png(folder / "irradiance", levels16(room.irradiance / 4))
    write_png(folder / "normal", levels16((room.normal + 1) / 2))
    options = {"exposure": 0.5, "check_product": False}  # irradiance in the PNGs is a quarter of what it was
    kept = bring_in("interiorvid", tmp_path / "set", tmp_path / "kept", **options)
    coded = bring_in("interiorvid", tmp_path / "set", tmp_path / "coded", passthrough=False, **options)
    for key in ("exr", "png"):
        one, other = imported(kept, "interiorvid", key), imported(coded, "interiorvid", key)
        assert np.array_equal(one.rgb, other.rgb)
        assert np.abs(one.albedo - other.albedo).max() <= 1 / 131070 + 1e-7
        assert np.abs(one.irradiance / other.irradiance - 1).max() <= HALF
        assert degrees_apart(one.normal, other.normal).max() < 0.002
        facts, others = one.row("interiorvid"), other.row("interiorvid")
        assert facts["irradiance"]["white"] == pytest.approx(others["irradiance"]["white"], rel=1e-6)
        assert facts["renormalised_share"] == others["renormalised_share"]
    clip = imported(kept, "interiorvid", "exr")
    halves = {name: frames.astype(np.float16).astype(np.float32) for name, frames in room._asdict().items()}
    assert np.array_equal(clip.albedo, np.clip(halves["albedo"], 0, 1))
    assert np.array_equal(clip.irradiance, np.maximum(halves["irradiance"] * np.float32(0.5), 0))


def test_files_that_take_more_than_coding_would_are_coded(tmp_path, room):
    import OpenEXR

    write_clip(tmp_path / "set/a", room)
    for number, image in enumerate(room.albedo):  # 12 bytes per pixel
        header = {"compression": OpenEXR.NO_COMPRESSION, "type": OpenEXR.scanlineimage}
        file = OpenEXR.File(header, {"RGB": np.ascontiguousarray(image)})
        file.write(str(tmp_path / f"set/a/albedo/{number:04}.exr"))
    corpus = bring_in("interiorvid", tmp_path / "set", tmp_path / "corpus")
    clip = imported(corpus, "interiorvid", "a")
    assert np.abs(clip.albedo - room.albedo).max() <= 1 / 131070 + 1e-7
    row = clip.row("interiorvid")
    assert row["albedo"]["nbytes"] < 4 * room.albedo.size


def test_kept_files_go_out_and_come_back_byte_by_byte(tmp_path, room):
    write_clip(tmp_path / "set/a", room)
    first = bring_in("interiorvid", tmp_path / "set", tmp_path / "first")
    openuni.export(first, "webdataset", out=tmp_path / "export", reporter=Reporter(quiet=True), workers=1)
    (shard,) = (tmp_path / "export").glob("*.tar")
    with tarfile.open(shard) as tar:
        names = tar.getnames()
    before = imported(first, "interiorvid", "a")
    assert f"{before.clip_id}.albedo.exr.zip" in names
    second = bring_in("webdataset", tmp_path / "export", tmp_path / "second")
    assert reasons(second) == {}
    after = second[second.kept_clip_ids()[0]]
    for name in ("albedo", "irradiance", "normal"):
        assert np.array_equal(getattr(after, name), getattr(before, name))
        assert after.row("webdataset")[name]["xxh3"] == before.row("interiorvid")[name]["xxh3"]
    with tarfile.open(shard) as tar:
        tar.extractall(tmp_path / "loose", filter="data")
    loose = openuni.run(
        {"ingest": {"shots": "none"}, "annotators": {"supplied": {"modalities": ["albedo", "normal"]}}},
        [str(tmp_path / "loose")],
        out=tmp_path / "third",
        reporter=Reporter(quiet=True),
    )
    assert (
        np.abs(loose[loose.kept_clip_ids()[0]].albedo - before.albedo).max() <= 1 / 131070 + 1e-7
    )  # annotators' maps are coded


def test_a_picture_that_is_white_nearly_everywhere_proves_nothing(tmp_path, room):
    write_clip(tmp_path / "set/a", room, rgb=room.rgb * 1000, irradiance=room.irradiance * 1000)
    white = bring_in("interiorvid", tmp_path / "set", tmp_path / "white")
    assert re.search(r"rgb is white in \d+% of its values: .* Set a lower exposure", reasons(white)["a"])
    assert reasons(bring_in("interiorvid", tmp_path / "set", tmp_path / "as is", check_product=False)) == {}
    assert reasons(bring_in("interiorvid", tmp_path / "set", tmp_path / "auto", exposure=0.0)) == {}


def test_streams_that_are_numbered_otherwise_are_refused(tmp_path, room):
    folder = write_clip(tmp_path / "set/a", room)
    shutil.rmtree(folder / "normal")
    write_exr(folder / "normal", room.normal, first=1)
    found = reasons(bring_in("interiorvid", tmp_path / "set", tmp_path / "corpus"))
    assert re.search(r"a/normal starts at frame 1, .*a/rgb at frame 0: .* Number all streams the same way", found["a"])


def test_videos_behind_links_of_any_name_are_coded_anew(tmp_path, room):
    folder = tmp_path / "set/a"
    write_png(folder / "rgb", shown(room).astype(np.uint8))
    write_planes(tmp_path / "set/files/2f61", levels16(room.albedo), 24.0)
    (folder / "albedo.mkv").symlink_to(tmp_path / "set/files/2f61")
    corpus = bring_in("interiorvid", tmp_path / "set", tmp_path / "corpus", modalities=["albedo"])
    assert reasons(corpus) == {}
    assert np.abs(imported(corpus, "interiorvid", "a").albedo - room.albedo).max() <= 2e-5
