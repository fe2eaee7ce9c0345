"""UnityVideo's layout: CSVs are joined, colours are read back within what they hold, faults are named."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.exchange.importers._colours import (
    _depth_scale,
    densepose_from_colours,
    depth_from_colours,
    flow_from_colours,
    ids_from_palette,
    segmentation_from_colours,
)
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.video.encode import write_video
from openuni.manifests.video.probe import probe_clip
from tests.openuni.exchange.importers.made_sets import bring_in, clips_by_key, imported, reasons, results
from tests.openuni.exchange.importers.rooms import geometry, pictures, render
from tests.openuni.exchange.importers.test_folder import stored_maps, write_stored

ROOM = render()
METRES, IDS = geometry()
FRAMES, HEIGHT_PX, WIDTH_PX = IDS.shape[:3]
ROWS, COLUMNS = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
SWIRL = np.stack([4 * np.sin(ROWS / 9), 3 * np.cos(COLUMNS / 11)], -1).astype(np.float32)
MAPS = {
    "depth": Depth(1 / METRES),
    "raft": Flow(np.repeat(SWIRL[None], FRAMES, axis=0), divisor_px=6.0),
    "segmentation": Segmentation(IDS),
    "densepose": DensePose(np.concatenate([IDS * 11, IDS * 0, IDS * 0], axis=-1).astype(np.uint8)),
}


def levels(unit: np.ndarray) -> np.ndarray:
    return np.rint(unit * 255).astype(np.uint8)


def write(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, 24.0, crf=2, pixels="yuv444p")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One clip's videos, encoded once."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "video.mp4", pictures(ROOM))
    for column, signal in MAPS.items():
        write(folder / f"{column}.mp4", levels(signal.to_rgb()))
    write(folder / "skeleton.mp4", np.zeros_like(pictures(ROOM)))
    return folder


def write_set(folder: Path, made: Path, names: list[str]) -> list[dict[str, str]]:
    """The clips' files, COLUMN/NAME.mp4, and their rows."""
    rows = []
    for name in names:
        row = {"prompt": f'a "room", {name}\nseen twice'}
        for file in sorted(made.glob("*.mp4")):
            (folder / file.stem).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / file.stem / f"{name}.mp4")
            row[file.stem] = f"{file.stem}/{name}.mp4"
        rows.append(row)
    return rows


def write_csv(path: Path, rows: list[dict[str, str]], columns: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


WIDE = ["video", "prompt", "depth", "densepose", "raft", "segmentation", "skeleton"]


def test_a_wide_csv(tmp_path, made):
    rows = write_set(tmp_path / "set", made, ["a", "b"])
    del rows[1]["raft"], rows[1]["skeleton"]
    rows[1]["video"] = str(tmp_path / "set" / rows[1]["video"])  # absolute, within the set
    write_csv(tmp_path / "set/all.csv", rows, WIDE)
    corpus = bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus", flow_divisor_px=6.0)
    assert reasons(corpus) == {}
    clip = imported(corpus, "openuni_csv", "video/a.mp4")
    assert clip.caption == 'a "room", a\nseen twice'
    assert clip.clip.source == str(tmp_path / "set/video/a.mp4")
    assert np.abs(clip.rgb.astype(int) - pictures(ROOM)).mean() < 2
    lo, hi = 1 / METRES.max(), 1 / METRES.min()
    errors = np.abs(clip.depth * (hi - lo) + lo - 1 / METRES) / (hi - lo) * 255
    assert errors.max() < 8 and errors.mean() < 1  # levels; the video is lossy
    assert clip.modality("depth").unit == "disparity"
    assert np.linalg.norm(clip.flow - SWIRL, axis=-1).max() < 0.06 * 6
    assert (clip.segmentation == IDS).mean() > 0.999
    assert (clip.densepose[..., :1] == IDS * 11).mean() > 0.995 and not clip.densepose[..., 1:].any()
    row = clip.row("openuni_csv")
    assert row["unread"] == ["skeleton"] and row["constants_from"] == "options"
    assert {"depth", "segmentation", "densepose"} <= set(row["aligned_by_motion"])
    other = imported(corpus, "openuni_csv", "video/b.mp4").row("openuni_csv")
    assert other["flow"] is None and other["unread"] == [] and other["depth"]["frames"] == FRAMES


def test_a_csv_per_modality_is_joined(tmp_path, made):
    rows = write_set(tmp_path / "set", made, ["a", "b"])
    write_csv(tmp_path / "set/depth.csv", rows, ["video", "prompt", "depth"])
    write_csv(tmp_path / "set/raft.csv", [row | {"video": f"./{row['video']}"} for row in rows[:1]], ["video", "raft"])
    (tmp_path / "set/failed.csv").write_text("clip_id,source,error\n")
    corpus = bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus")
    assert len(corpus.kept_clip_ids()) == 2
    first, second = (imported(corpus, "openuni_csv", f"video/{name}.mp4").row("openuni_csv") for name in "ab")
    assert first["depth"]["frames"] == first["flow"]["frames"] == FRAMES
    assert first["flow"]["divisor_px"] == pytest.approx(0.02 * np.hypot(48, 64))
    assert first["constants_from"] == "assumed"
    assert second["depth"]["frames"] == FRAMES and second["flow"] is None
    only = bring_in("openuni_csv", tmp_path / "set", tmp_path / "only", csv="raft*.csv")
    assert [row["source"][-11:] for row in only.table("clips").to_pylist()] == ["video/a.mp4"]


def test_an_exported_corpus_comes_back_with_its_units(tmp_path):
    write_stored(tmp_path / "set/test/a", stored_maps(), caption="a room", origin="house")
    first = bring_in("folder", tmp_path / "set", tmp_path / "first")
    openuni.export(first, "openuni_csv", out=tmp_path / "export", reporter=Reporter(quiet=True), workers=1, crf=2)
    before = imported(first, "folder", "test/a")
    second = bring_in("openuni-csv", tmp_path / "export", tmp_path / "second")
    assert reasons(second) == {}
    after = imported(second, "openuni_csv", f"video/{before.clip_id}.mp4")
    assert (after.clip.split, after.clip.origin, after.caption) == ("test", "house", "a room")
    assert after.modality("depth").constants() == before.modality("depth").constants()
    assert np.abs(1 / after.depth - 1 / METRES).max() < 4 / 255 / METRES.min()
    assert after.modality("flow").constants().divisor_px == before.modality("flow").constants().divisor_px
    assert (after.segmentation == IDS).mean() > 0.99
    row = after.row("openuni_csv")
    assert row["constants_from"] == "clips.jsonl" and row["unread"] == ["skeleton"]


def test_depth_in_colours():
    truth = np.linspace(0, 1, 4 * 48 * 64, dtype=np.float32).reshape(4, 48, 64, 1)
    for colours in ("spectral", "inferno"):
        scale = _depth_scale(colours)
        coloured = np.rint(scale[np.rint(truth[..., 0] * 255).astype(int)]).astype(np.uint8)
        assert np.abs(depth_from_colours(coloured, colours, None, "x").array - truth).max() < 1.1 / 255
        with pytest.raises(ClipError, match=r'depth is coloured .* Set "spectral" or "inferno"'):
            depth_from_colours(coloured, "grey", None, "x")
        with pytest.raises(ClipError, match="colours are not those of depth_colours"):
            depth_from_colours(coloured, "inferno" if colours == "spectral" else "spectral", None, "x")
    red, blue = _depth_scale("spectral")[[255, 0]]
    assert red[0] > 150 > red[2] and blue[2] > 150 > blue[0]  # near is red


def test_colours_that_are_not_what_they_are_taken_for():
    grey = np.repeat(levels(ROOM.normal[..., 2:]), 3, axis=-1)
    with pytest.raises(ClipError, match="not the colours of the optical-flow wheel"):
        flow_from_colours(grey // 2, None, "x")
    with pytest.raises(ClipError, match="colours are not those of DensePose"):
        densepose_from_colours(255 - grey // 4, "x")
    orange, green = np.array([230, 150, 40]), np.array([60, 180, 75])
    drawn = np.where(IDS == 1, orange, np.where(IDS == 2, green, 0)).astype(np.uint8)
    with pytest.raises(ClipError, match=r'colours are not from the palette.*segmentation_colours = "any"'):
        ids_from_palette(drawn, None, "x")
    noisy = np.clip(drawn + np.random.default_rng(0).normal(0, 6, drawn.shape), 0, 255).astype(np.uint8)
    found, names = segmentation_from_colours(noisy, "x")
    order = [0, *(1 + np.argsort([-(IDS == 1).sum(), -(IDS == 2).sum()]))]
    assert (found.array == np.argsort(order)[IDS]).mean() > 0.999
    assert names[0] == "#000000" and len(names) == 3
    ball = [name for name in names[1:] if int(name[1:3], 16) > 200]
    assert len(ball) == 1 and abs(int(ball[0][3:5], 16) - 150) < 8
    with pytest.raises(ClipError, match="no colour other than black"):
        segmentation_from_colours(drawn * 0, "x")


def late(path: Path, frames: np.ndarray) -> None:
    write(path, np.concatenate([frames[:1], frames[:-1]]))


def test_each_fault_is_named_and_the_rest_comes_in(tmp_path, made, ray_workers):
    base = tmp_path / "set"
    names = [
        *("sound", "late", "short", "small", "cut", "colour", "absent"),
        *("climbing", "linked", "outside", "torn"),
    ]
    rows = {row["video"][6:-4]: row for row in write_set(base, made, [*names, "two", "latin"])}
    shutil.copytree(made, tmp_path / "elsewhere")
    depth = levels(MAPS["depth"].to_rgb())
    late(base / "depth/late.mp4", depth)
    write(base / "depth/short.mp4", depth[:-1])
    write(base / "segmentation/small.mp4", np.zeros((FRAMES, HEIGHT_PX, 24, 3), np.uint8))
    (base / "raft/cut.mp4").write_bytes((base / "raft/cut.mp4").read_bytes()[:-400])
    shutil.copy(made / "raft.mp4", base / "depth/colour.mp4")
    (base / "densepose/absent.mp4").unlink()
    rows["climbing"]["depth"] = "depth/../../elsewhere/depth.mp4"
    (base / "depth/linked.mp4").unlink()
    (base / "depth/linked.mp4").symlink_to(tmp_path / "elsewhere/depth.mp4")
    rows["outside"]["video"] = str(tmp_path / "elsewhere/video.mp4")
    torn = rows.pop("torn")
    latin = rows.pop("latin")
    write_csv(base / "a.csv", [*rows.values(), rows["two"] | {"depth": "depth/sound.mp4"}], WIDE)
    with (base / "a.csv").open("a", encoding="latin-1") as file:
        file.write(f"{torn['video']},only a prompt\n,a prompt,,,,,\n{latin['video']},Möbel,,,,,\n")
    outside = str(tmp_path / "elsewhere/video.mp4")
    reason = {
        "video/late.mp4": r"depth is misaligned: 1 frame behind",
        "video/short.mp4": r"has 11 frames for depth, the video has 12",
        "video/small.mp4": r"maps are 24 x 48, frames 64 x 48",
        "video/cut.mp4": r"raft/cut\.mp4 is truncated",
        "video/colour.mp4": r"depth is coloured",
        "video/absent.mp4": r"densepose/absent\.mp4 not found, but listed in the CSV",
        "video/climbing.mp4": r"outside the dataset folder",
        "video/linked.mp4": r"outside the dataset folder",
        outside: r"outside the dataset folder",
        "video/two.mp4": r"name different files for depth: .*sound\.mp4 and .*two\.mp4",
        "a.csv:26": r"a\.csv, line 26: 2 cells, the header has 7",
        "a.csv:27": r"a\.csv, line 27: no video",
        "a.csv:28": r"a\.csv, line 28: not UTF-8",
    }
    corpus = bring_in("openuni_csv", base, tmp_path / "corpus")
    found = {key.removeprefix(f"{base}/"): text for key, text in reasons(corpus).items()}
    assert set(found) == set(reason)
    for key, text in reason.items():
        assert re.search(text, found[key]), f"{key}: {found[key]}"
    assert len(corpus.kept_clip_ids()) == 1
    before = results(corpus)
    assert results(bring_in("openuni_csv", base, tmp_path / "corpus")) == before
    write(base / "depth/short.mp4", depth)
    again = bring_in("openuni_csv", base, tmp_path / "corpus", retry_failed=True)
    assert "video/short.mp4" not in reasons(again) and len(again.kept_clip_ids()) == 2
    assert results(again) == results(bring_in("openuni_csv", base, tmp_path / "shared", ray_workers(1)))
    free = bring_in("openuni_csv", base, tmp_path / "free", allow_outside=True)
    allowed = {"video/climbing.mp4", "video/linked.mp4", outside}
    assert not allowed & set(reasons(free))
    assert clips_by_key(free, "openuni_csv", [outside])[outside]["source"] == outside


def test_many_rows_are_joined_in_order(tmp_path):
    from openuni.exchange.importers.openuni_csv import OpenUniCSV

    count = 20_000
    (tmp_path / "set").mkdir()
    rows = [{"video": f"v/{number * 7919 % count:05}.mp4", "prompt": "p", "depth": "d.mp4"} for number in range(count)]
    write_csv(tmp_path / "set/a.csv", rows, ["video", "prompt"])
    write_csv(tmp_path / "set/b.csv", rows[::2], ["video", "depth"])
    found = list(OpenUniCSV().find(tmp_path / "set"))
    assert [clip.key for clip in found] == [f"v/{number:05}.mp4" for number in range(count)]
    assert sum("depth" in clip.location.cells for clip in found) == count // 2


def test_what_is_no_such_set(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.csv").write_text("path,text\n")
    with pytest.raises(OpenUniError, match=r'has the column "video". Found: a.csv: path, text'):
        bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus")
    with pytest.raises(OpenUniError, match="a pattern within the dataset"):
        bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus", csv="/etc/*.csv")
    with pytest.raises(OpenUniError, match="flow_divisor_px = -1"):
        bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus", flow_divisor_px=-1.0)


def test_maps_of_any_name_can_be_read_again(tmp_path, made):
    rows = write_set(tmp_path / "set", made, ["none", "odd", "png"])
    for row, name in zip(rows, ("nosuffix", "odd.m-p4", "x.png"), strict=True):
        (tmp_path / "set" / row["depth"]).rename(tmp_path / "set/depth" / name)
        row["depth"] = f"depth/{name}"
    write_csv(tmp_path / "set/all.csv", rows, ["video", "depth"])
    corpus = bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus")
    assert reasons(corpus) == {} and len(corpus.kept_clip_ids()) == 3
    first, *others = [clip.depth for clip in corpus]
    assert first.shape == (FRAMES, HEIGHT_PX, WIDTH_PX, 1)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("ids", [(1, 2), (4, 9)])
def test_colours_between_instances_are_none(tmp_path, ids):
    truth = np.array([0, *ids], np.uint16)[geometry(3, 240, 320)[1]]
    write_video(tmp_path / "a.mp4", levels(Segmentation(truth).to_rgb()), 24.0, crf=18, pixels="yuv420p")
    found = ids_from_palette(decode(probe_clip(str(tmp_path / "a.mp4"))).frames, None, "x").array
    assert np.array_equal(np.unique(found), [0, *ids])
    assert (found == truth).mean() > 0.998


def test_a_path_that_no_file_can_have_is_named(tmp_path, made):
    rows = write_set(tmp_path / "set", made, ["a", "b"])
    rows[0]["depth"] = "depth/a\0.mp4"
    write_csv(tmp_path / "set/all.csv", rows, ["video", "depth"])
    corpus = bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus")
    (reason,) = reasons(corpus).values()
    assert (
        re.search(r"ClipError: all\.csv, line 2: a path contains a NUL character", reason)
        and len(corpus.kept_clip_ids()) == 1
    )


def test_a_stopped_export_is_refused_and_hidden_tables_are_none(tmp_path, made):
    rows = write_set(tmp_path / "set", made, ["a", "b"])
    write_csv(tmp_path / "set/all.csv", rows[:1], ["video"])
    write_csv(tmp_path / "set/.draft.csv", rows, ["video"])
    assert len(bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus").kept_clip_ids()) == 1
    (tmp_path / "set/export.json").write_text('{"finished": false, "made_from": {}}')
    with pytest.raises(OpenUniError, match="is an unfinished export"):
        bring_in("openuni_csv", tmp_path / "set", tmp_path / "corpus")
