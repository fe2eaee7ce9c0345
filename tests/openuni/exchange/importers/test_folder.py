"""Folders of one's own: stored maps come back exactly, plain ones within what storage costs, faults are named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.foreground import Foreground
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.manifests.video.encode import write_video
from tests.openuni.exchange.importers.made_sets import (
    bring_in,
    clips_by_key,
    imported,
    levels16,
    reasons,
    results,
    write_planes,
    write_png,
)
from tests.openuni.exchange.importers.rooms import geometry, pictures, render

ROOM = render()
METRES, IDS = geometry()
FRAMES, HEIGHT_PX, WIDTH_PX = IDS.shape[:3]
FLOW = np.random.default_rng(0).normal(0, 2, (FRAMES, HEIGHT_PX, WIDTH_PX, 2)).astype(np.float32)


def stored_maps() -> dict[str, Modality]:
    points = np.zeros((FRAMES, 1, 133, 3), np.float32)
    points[:, 0, :5] = [10.5, 20.25, 0.75]
    return {
        "depth": Depth(METRES, "metres"),
        "flow": Flow(FLOW, valid=METRES > 2),
        "segmentation": Segmentation(IDS),
        "skeleton": Skeleton(points, HEIGHT_PX, WIDTH_PX),
    }


def write_stored(folder: Path, maps: dict[str, Modality], video: str = "rgb.mp4", **facts: object) -> Path:
    """A clip with its maps as we store them, and the sidecar."""
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / video, pictures(ROOM), 24.0, crf=8)
    entries = {}
    for name, signal in maps.items():
        payload = signal.encode(24.0)
        (folder / f"{name}.{payload.suffix}").write_bytes(payload.data)
        entries[name] = {"file": f"{name}.{payload.suffix}", "constants": payload.constants._asdict()}
    (folder / "clip.json").write_text(json.dumps({"modalities": entries, "frames": FRAMES} | facts))
    return folder


def change(folder: Path, edit) -> None:
    """Edit the sidecar."""
    facts = json.loads((folder / "clip.json").read_text())
    edit(facts)
    (folder / "clip.json").write_text(json.dumps(facts))


def test_stored_maps_come_back_exactly(tmp_path):
    write_stored(tmp_path / "set/train/a", stored_maps(), caption="a room", origin="house", split="test")
    write_stored(tmp_path / "set/train/b", stored_maps(), video="video.mp4")
    (tmp_path / "set/train/b/caption.txt").write_text("another room")
    corpus = bring_in("folder", tmp_path / "set", tmp_path / "corpus")
    rows = clips_by_key(corpus, "folder", ["train/a", "train/b"])
    facts = [(row["caption"], row["origin"], row["split"]) for row in rows.values()]
    assert facts == [("a room", "house", "test"), ("another room", None, "train")]
    assert rows["train/b"]["source"] == str(tmp_path / "set/train/b/video.mp4")
    clip = imported(corpus, "folder", "train/a")
    for name, signal in stored_maps().items():
        payload = signal.encode(24.0)
        back, wanted = clip.modality(name), type(signal).decode(payload.data, payload.constants)
        assert np.array_equal(back.array, wanted.array), name
        assert back.constants() == wanted.constants(), name
    assert np.array_equal(clip.modality("flow").valid, METRES > 2)
    assert clip.row("folder")["aligned_by_motion"] == ["depth", "segmentation"]


def test_plain_maps(tmp_path):
    folder = tmp_path / "set/a"
    write_png(folder / "rgb", pictures(ROOM))
    write_png(folder / "depth", np.rint(METRES * 1000).astype(np.uint16))
    np.save(folder / "flow.npy", FLOW[:-1])
    (folder / "masks").mkdir()
    for number, ids in enumerate(IDS[..., 0]):
        image = Image.fromarray(ids.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
        image.save(folder / f"masks/{number:04}.png")
    for name in ("normal", "albedo", "irradiance"):
        np.save(folder / f"{name}.npy", getattr(ROOM, name))
    np.save(folder / "alpha.npy", (IDS[..., 0] > 0).astype(np.float64))
    write_planes(folder / "foreground.mkv", pictures(ROOM))
    write_png(folder / "background", pictures(ROOM)[::-1])
    corpus = bring_in("folder", tmp_path / "set", tmp_path / "corpus", fps=8.0, check_alignment=False)
    clip = imported(corpus, "folder", "a")
    assert clip.clip.fps == pytest.approx(8, rel=0.01)
    assert np.array_equal(clip.rgb, pictures(ROOM)) and np.array_equal(clip.segmentation, IDS)
    assert np.array_equal(clip.foreground, pictures(ROOM)) and np.array_equal(clip.background, pictures(ROOM)[::-1])
    assert np.abs(clip.depth - METRES).max() <= 0.0005 + 1e-4 and clip.modality("depth").unit == "metres"
    assert np.abs(clip.flow[:-1] - FLOW[:-1]).max() <= 1 / 128 and np.array_equal(clip.flow[-1], clip.flow[-2])
    assert np.array_equal(clip.alpha, IDS > 0)
    assert np.abs(clip.albedo - ROOM.albedo).max() <= 1e-5
    assert np.abs(clip.normal - ROOM.normal).max() <= 1e-4


def test_disparity_and_ids_as_arrays(tmp_path):
    folder = tmp_path / "set/a"
    write_png(folder / "rgb", pictures(ROOM))
    np.save(folder / "depth.npy", 1 / METRES[..., 0])
    np.save(folder / "segmentation.npy", IDS.astype(np.int64) * 300)
    corpus = bring_in("folder", tmp_path / "set", tmp_path / "corpus", depth_unit="disparity")
    clip = imported(corpus, "folder", "a")
    assert np.abs(clip.depth - 1 / METRES).max() <= 1e-5 and clip.modality("depth").unit == "disparity"
    assert np.array_equal(clip.segmentation, IDS * 300)
    assert clip.row("folder")["aligned_by_motion"] == ["depth", "segmentation"]


def late(maps: np.ndarray) -> np.ndarray:
    return np.concatenate([maps[:1], maps[:-1]])


def damaged(folder):
    data = bytearray((folder / "depth.mkv").read_bytes())
    data[len(data) // 2] ^= 255
    (folder / "depth.mkv").write_bytes(data)


def bomb(folder):
    (folder / "depth.mkv").write_bytes(Depth(np.ones((FRAMES, 480, 640, 1), np.float32)).encode(24.0).data)


def pickled(folder):
    np.save(folder / "albedo.npy", np.array([{"a": 1}], object), allow_pickle=True)


def negative_shape(folder):
    np.save(folder / "flow.npy", FLOW)
    data = (folder / "flow.npy").read_bytes()
    (folder / "flow.npy").write_bytes(data.replace(b"(12, 48, 64, 2)", b"(-2, 48, 64, 2)"))


def sidecar_folder(folder):
    (folder / "clip.json").unlink()
    (folder / "clip.json").mkdir()


def two_ids(folder):
    np.save(folder / "segmentation.npy", IDS)
    write_png(folder / "masks", IDS.astype(np.uint8))


def two_depths(folder):
    np.save(folder / "depth.npy", METRES)
    write_png(folder / "depth", np.rint(METRES * 1000).astype(np.uint16))


def two_layers(folder):
    stored = Foreground(pictures(ROOM)).encode(24.0)
    (folder / "front.mkv").write_bytes(stored.data)
    write_png(folder / "foreground", pictures(ROOM))
    entry = {"file": "front.mkv", "constants": stored.constants._asdict()}
    change(folder, lambda facts: facts["modalities"].update(foreground=entry))


def misnumbered(folder):
    (folder / "rgb.mp4").unlink()
    write_png(folder / "rgb", pictures(ROOM))
    write_png(folder / "background", pictures(ROOM))
    for number in reversed(range(FRAMES)):
        (folder / f"background/{number:04}.png").rename(folder / f"background/{number + 1:04}.png")


FAULTS = {
    "damaged": (damaged, r"depth\.mkv.*(damaged|cannot)"),
    "bomb": (bomb, r"12 maps of 640 x 480, the video has 12 frames of 64 x 48"),
    "pickled": (pickled, r"albedo\.npy is not a valid \.npy file: .*Python objects"),
    "climbing": (
        lambda f: change(f, lambda j: j["modalities"]["depth"].update(file="../b.mkv")),
        r"must be a plain file name",
    ),
    "unknown": (lambda f: change(f, lambda j: j["modalities"].update(depht={})), r'Did you mean "depth"'),
    "constants": (
        lambda f: change(f, lambda j: j["modalities"]["depth"]["constants"].update(lo="near")),
        r"constants of Depth are unit, lo, hi",
    ),
    "frames": (lambda f: change(f, lambda j: j.update(frames=11)), r"states 11 frames, the video has 12"),
    "absent": (lambda f: (f / "flow.mkv").unlink(), r"flow\.mkv not found, but listed in clip\.json"),
    "caption": (lambda f: change(f, lambda j: j.update(caption=7)), r'"caption" must be a string, got 7'),
    "nonsense": (lambda f: (f / "clip.json").write_text("{"), r"clip\.json is not JSON"),
    "twice": (lambda f: np.save(f / "depth.npy", METRES[..., 0]), r"depth is listed in clip\.json and also present as"),
    "short": (lambda f: np.save(f / "albedo.npy", ROOM.albedo[1:]), r"albedo: 11 maps, the video has 12 frames"),
    "wide": (lambda f: np.save(f / "alpha.npy", np.zeros((FRAMES, 48, 20))), r"maps are 20 x 48, frames 64 x 48"),
    "bright": (
        lambda f: np.save(f / "albedo.npy", ROOM.albedo + 1),
        r"albedo ranges from .* to 1\.\d+\. Allowed: 0 to 1",
    ),
    "long": (lambda f: np.save(f / "normal.npy", 2 * ROOM.normal), r"100% of the normals do not have length 1"),
    "late": (lambda f: np.save(f / "normal.npy", late(ROOM.normal)), r"normal is misaligned: 1 frame behind"),
    "away": (lambda f: np.save(f / "normal.npy", -ROOM.normal), r"normals face away .* Set \"opencv\""),
    "shiny": (lambda f: np.save(f / "irradiance.npy", ROOM.irradiance - 1), r"irradiance must be >= 0"),
    "endless": (lambda f: np.save(f / "alpha.npy", np.full(IDS.shape, np.nan)), r"alpha\.npy has values that are NaN"),
    "negative": (negative_shape, r"flow\.npy is not a valid \.npy file"),
    "sidecar": (sidecar_folder, r"clip\.json cannot be read: Is a directory"),
    "video-map": (
        lambda f: write_planes(f / "normal.mkv", pictures(ROOM)),
        r"normal\.mkv is not a supported format of normal\. Allowed: normal\.npy, or",
    ),
    "images": (
        lambda f: write_png(f / "alpha", pictures(ROOM)),
        r"alpha is not a supported format of alpha\. Allowed: alpha\.npy",
    ),
    "key-points": (
        lambda f: np.save(f / "densepose.npy", IDS),
        r"densepose\.npy is not a supported format .* a stored map listed in clip\.json",
    ),
    "two-ids": (two_ids, r"has masks and segmentation\.npy: expected one\. Remove the other\."),
    "two-depths": (two_depths, r"has depth and depth\.npy: expected one"),
    "two-layers": (two_layers, r"foreground is listed in clip\.json and also present as a plain map"),
    "numbers": (misnumbered, r"background starts at frame 1, .*rgb at frame 0"),
    "huge": (lambda f: np.save(f / "albedo.npy", np.zeros((FRAMES, 200, 200, 3), np.uint8)), r"more than 12 frames"),
    "two": (lambda f: (f / "video.mp4").write_bytes((f / "rgb.mp4").read_bytes()), r"has rgb and video: expected one"),
    "cut": (lambda f: (f / "rgb.mp4").write_bytes((f / "rgb.mp4").read_bytes()[:-500]), r"rgb\.mp4 is truncated"),
}


def test_each_fault_is_named_and_the_rest_comes_in(tmp_path, ray_workers):
    base = tmp_path / "set"
    for name, (fault, _) in {"sound": (lambda folder: None, ""), **FAULTS}.items():
        fault(write_stored(base / name, stored_maps()))
    corpus = bring_in("folder", base, tmp_path / "corpus")
    found = reasons(corpus)
    assert set(found) == set(FAULTS)
    for name, (_, reason) in FAULTS.items():
        assert re.search(reason, found[name]), f"{name}: {found[name]}"
        assert re.match("ClipError|CorruptVideo", found[name]), found[name]
    before = results(corpus)
    assert results(bring_in("folder", base, tmp_path / "corpus")) == before
    write_stored(base / "damaged", stored_maps())
    again = bring_in("folder", base, tmp_path / "corpus", retry_failed=True)
    assert set(reasons(again)) == set(FAULTS) - {"damaged"}
    assert results(again) == results(bring_in("folder", base, tmp_path / "shared", ray_workers(1)))


def test_plain_depth_of_eight_bits_is_refused(tmp_path):
    write_png(tmp_path / "set/a/rgb", pictures(ROOM))
    write_png(tmp_path / "set/a/depth", (levels16(METRES / 10) >> 8).astype(np.uint8))
    assert "16-bit grey images, got uint8" in reasons(bring_in("folder", tmp_path / "set", tmp_path / "corpus"))["a"]


def test_what_is_no_such_set(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    with pytest.raises(OpenUniError, match="no folder contains rgb or video"):
        bring_in("folder", tmp_path / "set", tmp_path / "corpus")
    with pytest.raises(OpenUniError, match="depth_per_level = 0"):
        bring_in("folder", tmp_path / "set", tmp_path / "corpus", depth_per_level=0.0)


def test_plain_maps_are_brought_into_range_as_those_of_rendered_sets(tmp_path):
    folder = tmp_path / "set/a"
    write_png(folder / "rgb", pictures(ROOM))
    bent = ROOM.normal.copy()
    bent[:, :2] *= 0.5
    np.save(folder / "normal.npy", bent * [1, -1, -1])
    np.save(folder / "albedo.npy", ROOM.albedo + (1.01 - ROOM.albedo.max()))
    np.save(folder / "irradiance.npy", ROOM.irradiance - ROOM.irradiance.min() - 1e-4)
    clip = imported(bring_in("folder", tmp_path / "set", tmp_path / "corpus", normal_frame="opencv"), "folder", "a")
    assert np.abs(clip.normal - ROOM.normal).max() <= 1e-4
    assert clip.albedo.max() == 1 and clip.irradiance.min() == 0


def test_rates_of_image_sequences_are_the_ntsc_rates_they_stand_for(tmp_path):
    write_png(tmp_path / "set/a/rgb", pictures(ROOM))
    write_png(tmp_path / "set/a/depth", np.rint(METRES * 1000).astype(np.uint16))
    corpus = bring_in("folder", tmp_path / "set", tmp_path / "corpus", fps=23.98, check_alignment=False)
    assert [clip.clip.fps for clip in corpus] == [24000 / 1001]
