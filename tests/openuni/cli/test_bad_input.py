"""What people get wrong and what disks do: a clear error or a failed row, nothing lost, nothing half-visible."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.storage.lock import lock
from openuni.pipeline.scope import RunScope
from tests.coded_clips import write_tone
from tests.command_line import cli
from tests.raw_clips import contents, write_clips
from tests.tiny_corpus import MEASURED, RECIPE


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "corpus.toml"
    path.write_text(MEASURED)
    return path


@pytest.fixture
def raw(tmp_path):
    write_clips(tmp_path / "raw", 2)
    return tmp_path / "raw"


def run(recipe, raw, out, **scope):
    return openuni.run(recipe, raw, out=out, scope=RunScope(**scope), reporter=Reporter(quiet=True))


def test_damaged_files_are_failed_rows_and_the_rest_is_done(recipe, raw, tmp_path):
    whole = (raw / "clip-000.mp4").read_bytes()
    (raw / "empty.mp4").write_bytes(b"")
    (raw / "prose.mp4").write_text("not a video at all, only words\n" * 100)
    (raw / "truncated.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    write_tone(raw / "sound.mp4")
    done = cli("run", recipe, raw, "--out", tmp_path / "corpus", "--workers", 0)
    assert done.returncode == 1, done.stderr
    corpus = openuni.open_corpus(tmp_path / "corpus")
    assert corpus.summary().ok == 2
    errors = {
        Path(row["source"]).name: row["error"] for row in corpus.table("clips").to_pylist() if row["status"] == "failed"
    }
    assert errors.keys() == {"empty.mp4", "prose.mp4", "truncated.mp4", "sound.mp4"}
    assert "no video stream" in errors["sound.mp4"] and "contains audio" in errors["sound.mp4"]
    assert all(error.split(":")[0].isidentifier() for error in errors.values()), errors
    assert sum(failure.clips for failure in corpus.summary().failed) == 4


def test_a_file_that_changed_after_ingest_is_a_failed_row(recipe, raw, tmp_path):
    run(recipe, raw, tmp_path / "corpus", only=("ingest",))
    write_clips(tmp_path / "other", 1, frames=4)  # fewer frames than the clip was ingested with
    (tmp_path / "other" / "clip-000.mp4").replace(raw / "clip-000.mp4")
    summary = run(recipe, raw, tmp_path / "corpus").summary()
    assert summary.ok == 1
    assert [(failure.operator, failure.reason) for failure in summary.failed] == [("luminance", "SourceChanged")]


def test_failed_rows_are_done_again_only_when_asked(recipe, raw, tmp_path):
    good = (raw / "clip-000.mp4").read_bytes()
    (raw / "clip-000.mp4").write_bytes(good[:100])
    assert run(recipe, raw, tmp_path / "corpus").summary().failed
    (raw / "clip-000.mp4").write_bytes(good)
    assert run(recipe, raw, tmp_path / "corpus").summary().failed
    assert run(recipe, raw, tmp_path / "corpus", retry_failed=True).summary().ok == 2


def test_a_run_with_nothing_usable_ends_with_its_ledger(recipe, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    done = cli("run", recipe, tmp_path / "empty.mp4", "--out", tmp_path / "corpus", "--workers", 0)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("1 clips = 0 ok + 0 dropped + 1 failed")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("nothing-here", '"nothing-here" not found. Pass a video, a folder'),
        ("empty-folder", "contains no video"),
        ("*.mp4", 'pattern "\\*.mp4" contains no video'),
    ],
)
def test_sources_that_are_not_there(recipe, tmp_path, monkeypatch, sources, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty-folder").mkdir()
    with pytest.raises(openuni.OpenUniError, match=message):
        run(recipe, sources, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kep = ''", 'no option "kep". Did you mean "keep"?'),
        ("[filters.motoin]", 'filter "motoin" is not known. Did you mean "motion"?'),
        ("[filters.motion]\npreet = 'fast'", r'\[filters.motion\] has no option "preet". Did you mean "preset"?'),
        ("[filters.motion]\npreset = 'slow'", 'preset = "slow". Allowed: ultrafast, fast, medium.'),
        ("[filters.motion]\nmax_pairs = '3'", 'max_pairs = "3". Allowed: integer, at least 1'),
        ("[annotators.nowhere.land]", "nowhere"),
        ('keep = "motion.speed > 1"', 'column "motion.speed" not found'),
        ('keep = "motion.sped > 1"\n[filters.motion]', '"motion" has no column "sped"'),
        ('keep = "1 ="', "is not a SQL condition"),
        ("[encode]\nframes = 20", "frames = 20: must be 4k \\+ 1, such as 17 or 21|such as 21"),
        ("[encode]\nsize_px = [100, 100]", r"size_px = \[100, 100\]\. Allowed: .*at least 16, multiples of 16"),
        ('[encode]\nmodalities = ["deph"]', 'Did you mean "depth"'),
        ('[encode]\nlatents = "dtc"', 'Did you mean "dct"'),
        ("[encode.dct]\nchanels = 3", 'Did you mean "channels"'),
        ("keep = ", "is not valid TOML"),
    ],
)
def test_recipes_with_mistakes(tmp_path, raw, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(openuni.OpenUniError, match=message):
        run(path, raw, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_mistakes_exit_with_two_and_no_traceback(raw, tmp_path):
    (tmp_path / "bad.toml").write_text("[filters.motoin]")
    done = cli("run", tmp_path / "bad.toml", raw, "--out", tmp_path / "corpus")
    assert done.returncode == 2
    assert done.stderr.startswith('openuni: filter "motoin" is not known.') and "Traceback" not in done.stderr
    assert cli("run", tmp_path / "no.toml", raw, "--out", tmp_path / "corpus").returncode == 2


def test_a_missing_checkpoint_is_found_before_anything_starts(raw, tmp_path):
    path = tmp_path / "corpus.toml"
    path.write_text(f'[annotators.raft]\ncheckpoint = "{tmp_path}/none.pth"')
    done = cli("run", path, raw, "--out", tmp_path / "corpus")
    assert done.returncode == 2
    assert "preflight checks failed" in done.stderr and "none.pth" in done.stderr
    assert not (tmp_path / "corpus").exists()
    path.write_text('[annotators.depth_anything]\ncheckpoint = "nobody/no-such-model"')
    done = cli("doctor", path)
    assert done.returncode == 2 and "openuni checkpoints get nobody/no-such-model" in done.stdout


def test_an_output_that_holds_something_else(recipe, raw, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(openuni.OpenUniError, match="is not empty and not a corpus"):
        run(recipe, raw, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]

    run(recipe, raw, tmp_path / "corpus")
    before = contents(openuni.open_corpus(tmp_path / "corpus"))
    write_clips(tmp_path / "others", 1)
    with pytest.raises(openuni.OpenUniError, match="already holds another corpus: 2 clips"):
        run(recipe, tmp_path / "others", tmp_path / "corpus")
    assert contents(openuni.open_corpus(tmp_path / "corpus")) == before
    assert run(recipe, tmp_path / "others", tmp_path / "corpus", add=True).summary().clips == 3

    record = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    del record["checksum"]
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(openuni.OpenUniError, match="corpus format 99; this version reads format 1"):
        run(recipe, raw, tmp_path / "corpus")


def test_two_runs_at_once_are_refused(recipe, raw, tmp_path):
    corpus = run(recipe, raw, tmp_path / "corpus")
    with lock(corpus.store), pytest.raises(openuni.OpenUniError, match="is locked by another run"):
        run(recipe, raw, tmp_path / "corpus")


def test_a_full_disk_stops_the_run_and_loses_nothing(recipe, tmp_path):
    """A limit on file size stands for the full disk: the same error from the same system call, without privileges."""
    write_clips(tmp_path / "raw", 6, frames=20, height_px=96, width_px=128)
    whole = run(recipe, tmp_path / "raw", tmp_path / "whole")
    (shard,) = (tmp_path / "whole" / "annotations" / "dis").glob("*.tar")
    limit = shard.stat().st_size // 2

    def shrink() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    arguments = ("run", recipe, tmp_path / "raw", "--out", tmp_path / "corpus", "--workers", 0)
    command = [sys.executable, "-m", "openuni", *map(str, arguments)]
    full = subprocess.run(command, preexec_fn=shrink, capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    assert "no space left while writing" in full.stderr and "rerun the same command" in full.stderr
    visible = openuni.open_corpus(tmp_path / "corpus")
    contents(visible)  # whatever is visible is whole: every payload is read and checked
    resumed = cli(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "recovered" in resumed.stderr
    assert contents(openuni.open_corpus(tmp_path / "corpus")) == contents(whole)


def test_a_changed_byte_is_noticed(recipe, raw, tmp_path):
    corpus = run(recipe, raw, tmp_path / "corpus")
    (tar,) = (tmp_path / "corpus" / "annotations" / "dis").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[corpus[0].row("dis")["flow"]["offset"] + 200] ^= 1
    tar.write_bytes(data)
    with pytest.raises(openuni.OpenUniError, match="changed after it was written"):
        _ = corpus[0].flow


def test_a_manifest_cannot_point_outside_its_corpus(recipe, raw, tmp_path):
    corpus = run(recipe, raw, tmp_path / "corpus")
    with pytest.raises(openuni.OpenUniError, match="must be a plain file name"):
        corpus.read("annotations/dis", "../../../secret", 0, 4, 0)
    with pytest.raises(openuni.OpenUniError, match="not a name inside"):
        corpus.read("annotations/../..", "secret", 0, 4, 0)


def test_a_damaged_map_fails_its_own_latents_only(raw, tmp_path):
    tables = RECIPE | {"keep": ""}
    corpus = run(tables, raw, tmp_path / "corpus", only=("ingest", "luminance", "dis"))
    (tar,) = (tmp_path / "corpus" / "annotations" / "dis").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[corpus[0].row("dis")["flow"]["offset"] + 200] ^= 1
    tar.write_bytes(data)
    corpus = run(tables, raw, tmp_path / "corpus")
    (family,) = corpus.families()
    statuses = {name: corpus.table(f"latents/{family}/{name}").column("status").to_pylist() for name in ("rgb", "flow")}
    assert statuses == {"rgb": ["ok", "ok"], "flow": ["failed", "ok"]}
    assert corpus.summary().ok == 1
    assert [(failure.operator, failure.clips) for failure in corpus.summary().failed] == [("encode flow", 1)]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["import", "folder", ".", "--set", "fps=8", "--set", "fps = 9"], "fps"),
        (["export", "corpus", "--format", "univid", "--set", "crf=1", "--set", "crf=1"], "crf"),
        (["split", "corpus", "--fraction", "test=0.1", "--fraction", "test=0.2"], "test"),
    ],
)
def test_what_is_set_twice_is_not_guessed(command, name, tmp_path):
    done = cli(*command, *(["--out", "out"] if command[0] != "split" else []), cwd=tmp_path)
    assert (done.returncode, f'"{name}" is given twice' in done.stderr) == (2, True), done.stderr
