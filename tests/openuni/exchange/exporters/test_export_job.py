"""What holds for every format: which clips, resuming, failures, refusals, equal bytes."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import openuni
from openuni.exchange.export_selection import ExportOptions
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.discovery import component_names
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.video.probe import make_clip, probe
from tests.coded_clips import encode, numbers
from tests.command_line import cli
from tests.openuni.exchange.exporters.rooms import MODALITIES, QUIET, RECIPE, ids_by_name, pictures, supply, tree
from tests.raw_clips import write_clips

FORMATS = component_names("exporters")
PLACED = {"univid": {"prefix": "/set"}}  # its YAML names the folder it lies in, unless told otherwise


def export(corpus, name, out, **given):
    return openuni.export(corpus, name, out=out, reporter=QUIET, **PLACED.get(name, {}), **given)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Every format's export by one worker."""
    folder = tmp_path_factory.mktemp("whole")
    for name in FORMATS:
        export(corpus, name, folder / name, workers=1)
    return folder


@pytest.fixture
def copied(corpus, tmp_path):
    """A copy of the corpus that may be damaged; its sources too."""
    shutil.copytree(Path(corpus.store.root).parent / "raw", tmp_path / "raw")
    shutil.copytree(corpus.store.root, tmp_path / "corpus")
    return Corpus.open(str(tmp_path / "corpus"))


def damage(corpus: Corpus, clip_id: str, modality: str) -> tuple[Path, bytes]:
    """Turn some bytes of a stored map; returns the shard and its bytes as they were."""
    extent = corpus[clip_id].row("supplied")[modality]
    path = Path(corpus.store.root) / "annotations" / "supplied" / extent["shard"]
    before = path.read_bytes()
    middle = extent["offset"] + extent["nbytes"] // 2
    path.unlink()  # not in place: a copy of the corpus may share its files
    path.write_bytes(before[:middle] + bytes(255 - byte for byte in before[middle : middle + 8]) + before[middle + 8 :])
    return path, before


def failed_rows(out: Path) -> list[dict[str, str]]:
    with (out / "failed.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def export_command(*arguments):
    return cli("export", *arguments)


@pytest.mark.parametrize("name", FORMATS)
def test_workers_and_time_do_not_change_a_byte(corpus, whole, name, tmp_path):
    export(corpus, name, tmp_path / "set", workers=2)
    assert tree(tmp_path / "set") == tree(whole / name)
    assert len(tree(tmp_path / "set")) > 1


@pytest.mark.parametrize("name", ["univid", "webdataset", "huggingface"])
def test_what_is_there_is_kept_and_what_is_not_comes_back(corpus, ids, whole, name, tmp_path):
    out = tmp_path / "set"
    shutil.copytree(whole / name, out)
    made = [path for path in out.rglob("*") if path.suffix in (".mp4", ".tar", ".parquet")]
    gone = next(path for path in made if ids["all"] in str(path) or path.suffix != ".mp4")
    times = {path: path.stat().st_mtime_ns for path in made if path != gone and ids["all"] not in str(path)}
    gone.unlink()
    report = export(corpus, name, out)
    assert tree(out) == tree(whole / name)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    lost = 4 if name in ("webdataset", "huggingface") else 1  # their one shard has all clips
    assert (report.written, report.already_present) == (lost, 4 - lost)
    assert export(corpus, name, out)[:3] == (4, 0, 4)


@pytest.mark.parametrize("name", ["openuni_csv", "univid", "webdataset", "huggingface"])
def test_a_damaged_map_is_one_failed_clip_in_no_file(copied, ids, whole, name, tmp_path):
    modality = "flow" if name == "openuni_csv" else "normal"
    path, before = damage(copied, ids["odd"], modality)
    out = tmp_path / "set"
    report = export(copied, name, out, workers=1)
    assert [failure.clip_id for failure in report.failed] == [ids["odd"]]
    assert (report.clips, report.written, report.already_present) == (4, 3, 0)
    (row,) = failed_rows(out)
    assert row["clip_id"] == ids["odd"] and modality in row["error"] and row["source"].endswith("odd.mp4")
    others = {file: data for file, data in tree(out).items() if file != "failed.csv"}
    assert ids["odd"] not in "".join(others) and ids["odd"].encode() not in b"".join(others.values())
    assert ids["all"].encode() in b"".join(others.values())
    path.write_bytes(before)
    mended = export(copied, name, out, workers=1)
    assert (mended.failed, mended.written >= 1) == ([], True)
    assert tree(out) == tree(whole / name)


def test_a_failure_is_remembered_by_an_export_that_never_ended(copied, ids, whole, tmp_path, monkeypatch):
    path, before = damage(copied, ids["odd"], "normal")

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("openuni.exchange.exporters.webdataset.WebDataset.finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            export(copied, "webdataset", tmp_path / "set")
    assert (tmp_path / "set" / "shard-000000.tar").exists()  # without the clip
    path.write_bytes(before)
    assert export(copied, "webdataset", tmp_path / "set").failed == []
    assert tree(tmp_path / "set") == tree(whole / "webdataset")


def test_a_clip_that_fails_later_leaves_no_half_behind(copied, ids, whole, tmp_path):
    shutil.copytree(whole / "openuni_csv", tmp_path / "set")
    (tmp_path / "set" / "depth" / f"{ids['all']}.mp4").unlink()
    damage(copied, ids["all"], "skeleton")
    report = export(copied, "openuni-csv", tmp_path / "set")
    assert [failure.clip_id for failure in report.failed] == [ids["all"]]
    files = tree(tmp_path / "set")
    files.pop("failed.csv")
    assert ids["all"] not in "".join(files) and ids["all"].encode() not in b"".join(files.values())


def test_a_changed_source_is_a_failure_and_exit_code_1(tmp_path):
    (tmp_path / "raw").mkdir()
    for name, frames in (("a", 5), ("b", 6)):
        supply(tmp_path / "raw" / f"{name}.mp4", pictures(frames, 48, 64), ["depth"], name)
    corpus = openuni.run(RECIPE, tmp_path / "raw" / "*.mp4", out=tmp_path / "corpus", reporter=QUIET)
    shutil.copy(tmp_path / "raw" / "a.mp4", tmp_path / "raw" / "b.mp4")
    done = export_command(tmp_path / "corpus", "--format", "openuni-csv", "--out", tmp_path / "set", "--workers", 1)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("2 clips = 1 written + 0 already present + 1 failed")
    (row,) = failed_rows(tmp_path / "set")
    assert row["clip_id"] == ids_by_name(corpus)["b"] and "changed after ingest" in row["error"]
    (tmp_path / "raw" / "a.mp4").unlink()
    gone = export_command(tmp_path / "corpus", "--format", "webdataset", "--out", tmp_path / "gone", "--workers", 1)
    assert gone.returncode == 1
    assert "cannot open" in failed_rows(tmp_path / "gone")[0]["error"]
    assert sorted(tree(tmp_path / "gone")) == ["export.json", "failed.csv"]  # a shard without clips is none


@pytest.mark.parametrize("name", ["openuni-csv", "webdataset"])
def test_a_killed_export_goes_on_and_ends_the_same(tmp_path, name):
    write_clips(tmp_path / "raw", 12, frames=30, height_px=144, width_px=192)
    corpus = openuni.run({"annotators": {}}, tmp_path / "raw", out=tmp_path / "corpus", reporter=QUIET)
    options = {} if name == "openuni-csv" else {"shard_mb": 1e-6, "lossless": True}
    command = [
        sys.executable,
        "-m",
        "openuni.cli.main",
        "export",
        corpus.store.root,
        "--format",
        name,
        "--workers",
        "1",
    ]
    command += [f"--set={key}={str(value).lower()}" for key, value in options.items()]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "set")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    made: list[Path] = []
    while len(made) < 3 and time.monotonic() < deadline and process.poll() is None:
        made = [*(tmp_path / "set").glob("video/*.mp4"), *(tmp_path / "set").glob("*.tar")]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= len(made) < 12, "not killed in the middle"
    assert not json.loads((tmp_path / "set" / "export.json").read_text())["finished"]
    stamps = {path: path.stat().st_mtime_ns for path in made}
    (tmp_path / "set" / ".unfinished" / "00000011").mkdir(parents=True, exist_ok=True)  # in the way of its successor
    report = export(corpus, name, tmp_path / "set", workers=1, **options)
    assert report.already_present >= 3 and report.written > 0
    assert {path: path.stat().st_mtime_ns for path in made} == stamps
    export(corpus, name, tmp_path / "fresh", workers=2, **options)
    assert tree(tmp_path / "set") == tree(tmp_path / "fresh")


def test_another_export_in_the_folder_is_refused_and_told_what_differs(corpus, whole, tmp_path):
    out = tmp_path / "set"
    shutil.copytree(whole / "openuni_csv", out)
    before = tree(out)
    for given, words in (
        ({"crf": 20}, "option crf was 18, is now 20"),
        ({"export_options": ExportOptions(limit=2)}, "the clips, or their captions or scores, have changed"),
        ({"export_options": ExportOptions(("depth",))}, "densepose is no longer selected, flow is no longer selected"),
    ):
        with pytest.raises(openuni.OpenUniError, match=f"contains a different export: .*{words}"):
            export(corpus, "openuni-csv", out, **given)
    with pytest.raises(openuni.OpenUniError, match="format was openuni_csv, is now diffsynth"):
        export(corpus, "diffsynth", out)
    assert tree(out) == before


def test_maps_made_anew_are_another_export(tmp_path):
    (tmp_path / "raw").mkdir()
    supply(tmp_path / "raw" / "a.mp4", pictures(5, 48, 64), ["depth"], "a")
    recipe = {"annotators": {"supplied": {}}}
    for size, place in ((0, "one"), (24, "two")):  # the same clip, its depth scaled down further
        made = {**recipe, "work": {"short_side_px": size}} if size else recipe
        corpus = openuni.run(made, tmp_path / "raw" / "a.mp4", out=tmp_path / place, reporter=QUIET)
        if not size:
            export(corpus, "diffsynth", tmp_path / "set")
    with pytest.raises(
        openuni.OpenUniError, match=r"contains a different export: the depth maps have changed\. Pass a new --out"
    ):
        export(corpus, "diffsynth", tmp_path / "set")


def test_folders_of_others_are_left_alone(corpus, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(openuni.OpenUniError, match="is not empty and is not an export"):
        export(corpus, "openuni-csv", tmp_path / "mine")
    with pytest.raises(openuni.OpenUniError, match=r"notes\.txt is a file"):
        export(corpus, "openuni-csv", tmp_path / "mine" / "notes.txt")
    assert tree(tmp_path / "mine") == {"notes.txt": b"mine"}


def test_two_exports_do_not_write_to_one_folder(corpus, tmp_path):
    (tmp_path / "set").mkdir()
    handle = os.open(tmp_path / "set", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(openuni.OpenUniError, match="is locked by another export"):
        export(corpus, "openuni-csv", tmp_path / "set")
    os.close(handle)
    assert export(corpus, "openuni-csv", tmp_path / "set").written == 4


def test_split_and_limit_choose_clips(copied, tmp_path):
    openuni.split(copied, {"held": 0.4})
    copied.refresh()
    kept = set(copied.kept_clip_ids())
    held = [clip.clip_id for clip in copied if clip.clip.split == "held" and clip.clip_id in kept]
    assert 0 < len(held) < 4
    export(copied, "openuni-csv", tmp_path / "held", export_options=ExportOptions(split="held"))
    assert sorted(path.stem for path in (tmp_path / "held" / "video").iterdir()) == sorted(held)
    assert export(copied, "openuni-csv", tmp_path / "two", export_options=ExportOptions(limit=2)).clips == 2
    with pytest.raises(openuni.OpenUniError, match=r'split "hled" is not known\. Did you mean "held"'):
        export(copied, "openuni-csv", tmp_path / "none", export_options=ExportOptions(split="hled"))


@pytest.mark.parametrize("name", ["openuni-csv", "webdataset"])
def test_a_clip_cut_from_a_file_is_its_own_frames_alone(tmp_path, name):
    encode(tmp_path / "long.mp4", times=range(12))  # each frame shows its number, 25 a second
    recipe = {"ingest": {"max_s": 0.2, "split": "windows"}, "annotators": {}}
    corpus = openuni.run(recipe, tmp_path / "long.mp4", out=tmp_path / "corpus", reporter=QUIET)
    export(corpus, name, tmp_path / "set")
    if name == "webdataset":
        shutil.unpack_archive(tmp_path / "set" / "shard-000000.tar", tmp_path / "set")
    shown = {}
    for path in (tmp_path / "set").rglob("*.mp4"):
        info = probe(str(path))
        shown[path.stem] = (numbers(decode(make_clip(str(path), info)).frames), round(info.fps))
    assert [shown[clip.clip_id] for clip in corpus] == [
        ([0, 1, 2, 3, 4], 25),
        ([5, 6, 7, 8, 9], 25),
        ([10, 11], 25),
    ]


@pytest.mark.parametrize("data", ["clip_id,source,error\na,café,b\n".encode("latin-1"), b'"' + b"a" * 200_000])
def test_a_list_of_failures_that_cannot_be_read_is_named(corpus, tmp_path, data):
    export(corpus, "univid", tmp_path / "set")
    (tmp_path / "set" / "failed.csv").write_bytes(data)
    with pytest.raises(openuni.OpenUniError, match=r"failed\.csv is damaged: .*Restore it"):
        export(corpus, "univid", tmp_path / "set")


def test_of_several_annotators_one_is_named(tmp_path):
    (tmp_path / "raw").mkdir()
    supply(tmp_path / "raw" / "a.mp4", pictures(5, 48, 64), ["flow", "depth"], "a")
    recipe = {"annotators": {"supplied": {"modalities": MODALITIES}, "dis": {"preset": "ultrafast"}}}
    corpus = openuni.run(recipe, tmp_path / "raw" / "*.mp4", out=tmp_path / "corpus", reporter=QUIET)
    with pytest.raises(
        openuni.OpenUniError, match=r'have flow\. Select one with --modalities: "dis\.flow", "supplied\.flow"'
    ):
        export(corpus, "openuni-csv", tmp_path / "set")
    with pytest.raises(openuni.OpenUniError, match='annotator of flow "raft" is not known'):
        export(corpus, "openuni-csv", tmp_path / "set", export_options=ExportOptions(("raft.flow",)))
    export(corpus, "openuni-csv", tmp_path / "set", export_options=ExportOptions(("depth", "dis.raft")))
    record = json.loads((tmp_path / "set" / "clips.jsonl").read_text())
    assert {name: facts["annotator"] for name, facts in record["modalities"].items()} == {
        "depth": "supplied",
        "flow": "dis",
    }


def test_wrong_choices_are_explained(corpus, tmp_path):
    out = tmp_path / "set"
    for name, given, words in (
        ("openuni-cvs", {}, 'exporter "openuni_cvs" is not known. Did you mean "openuni_csv"'),
        ("univid", {"export_options": ExportOptions(("depth",))}, 'modality of the format univid "depth" is not known'),
        ("diffsynth", {"export_options": ExportOptions(("dept",))}, 'Did you mean "depth"'),
        ("diffsynth", {"workers": 0}, "--workers 0: must be at least 1"),
    ):
        with pytest.raises(openuni.OpenUniError) as error:
            export(corpus, name, out, **given)
        assert words in str(error.value)
    assert not out.exists()


def test_the_command_line_takes_all_of_it(corpus, ids, tmp_path):
    arguments = [corpus.store.root, "--format", "openuni-csv", "--out", tmp_path / "set", "--limit", 1]
    done = export_command(
        *arguments, "--modalities", "depth,raft", "--set", "crf=30", "--set", "pixels=yuv420p", "--workers", 1
    )
    assert (done.returncode, done.stdout) == (0, "1 clips = 1 written + 0 already present + 0 failed\n")
    assert sorted(path.name for path in (tmp_path / "set").iterdir() if path.is_dir()) == ["depth", "raft", "video"]
    refused = export_command(*arguments, "--set", "crf=high")
    assert refused.returncode == 2 and "crf" in refused.stderr


def test_list_and_show_know_the_formats():
    from openuni.config.template import component_page
    from openuni.manifests.contracts.discovery import all_component_names

    assert (
        all_component_names()["exporters"]
        == FORMATS
        == ["diffsynth", "huggingface", "openuni_csv", "univid", "webdataset"]
    )
    for name in FORMATS:
        assert "openuni.exchange.exporters" in component_page(name) and component_page(name) == component_page(
            name.replace("_", "-")
        )
    assert "crf" in component_page("openuni-csv") and "shard_mb" in component_page("webdataset")
