"""The pipeline in one process: what is planned, what is written, what a second run does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.pipeline.scope import RunScope
from tests.raw_clips import contents, write_clips, write_still

RECIPE = {
    "keep": "motion.speed_diag_per_s > 0.01 and luminance.mean > 0.05",
    "work": {"short_side_px": 32},
    "filters": {"motion": {}, "luminance": {}},
    "annotators": {"dis": {"preset": "ultrafast"}},
    "encode": {"modalities": ["rgb", "flow"], "size_px": [32, 48], "frames": 5},
}


def run(raw, out, recipe=None, **scope):
    return openuni.run(recipe or RECIPE, raw, out=out, scope=RunScope(**scope), reporter=Reporter(quiet=True))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_clips(folder, 5)
    return folder


@pytest.fixture(scope="module")
def corpus(raw, tmp_path_factory):
    return run(raw, tmp_path_factory.mktemp("made") / "corpus")


def modified(corpus: Corpus) -> dict[str, int]:
    return {
        path: Path(path).stat().st_mtime_ns for path in corpus.store.fs.find(corpus.store.root) if "runs" not in path
    }


def test_every_clip_is_accounted_for(corpus):
    summary = corpus.summary()
    assert (summary.clips, summary.ok, summary.failed, summary.pending) == (5, 4, [], 0)
    assert [(drop.rule, drop.clips) for drop in summary.dropped] == [
        ("motion.speed_diag_per_s > 0.01", 1),
        ("luminance.mean > 0.05", 0),
    ]
    assert str(summary).startswith("5 clips = 4 ok + 1 dropped + 0 failed")


def test_only_kept_clips_are_annotated_and_encoded(corpus):
    kept = set(corpus.kept_clip_ids())
    assert len(kept) == 4
    for group in corpus.groups():
        ids = corpus.table(group, ["clip_id"]).column("clip_id").to_pylist()
        expected = {clip.clip_id for clip in corpus} if group.split("/")[0] in ("clips", "filters") else kept
        assert set(ids) == expected and len(ids) == len(expected), group


def test_a_clip_gives_its_arrays_rows_and_caption(corpus):
    clip = corpus[0]
    assert clip.rgb.shape == (6, 48, 64, 3)
    assert clip.flow.shape == (6, 32, 43, 2)
    assert clip.caption == "texture 0 pans by 1 px"
    assert clip.row("motion")["status"] == "ok"
    # a pan by 1 px of 64 at a third less size: x flow of about -2/3 px... to the right by 0.67 px
    assert 0.4 < abs(clip.flow[:-1, 8:-8, 8:-8, 0].mean()) < 0.9
    with pytest.raises(openuni.OpenUniError, match=r'operator of this corpus "motoin".*Did you mean "motion"'):
        clip.row("motoin")
    with pytest.raises(AttributeError, match='Did you mean "depth"'):
        _ = clip.dept
    with pytest.raises(openuni.OpenUniError, match="has no depth"):
        _ = clip.depth


def test_latents_have_the_shape_of_the_recipe(corpus):
    (family,) = corpus.families()
    table = corpus.table(f"latents/{family}/flow").to_pylist()
    assert {tuple(row["shape"]) for row in table} == {(48, 2, 4, 6)}
    assert {(row["status"], row["dtype"], row["frames"]) for row in table} == {("ok", "float16", 5)}


def test_a_second_run_writes_nothing(raw, corpus):
    before = modified(corpus)
    run(raw, corpus.store.url)
    assert modified(corpus) == before


def test_another_annotator_adds_one_group_and_touches_no_other(raw, tmp_path):
    first = run(raw, tmp_path / "corpus")
    before = modified(first)
    wider = RECIPE | {"annotators": RECIPE["annotators"] | {"tests.operators.logged": {"log": str(tmp_path / "log")}}}
    second = run(raw, tmp_path / "corpus", wider)
    new = {path.split("/corpus/", 1)[1].rsplit("/", 1)[0] for path in modified(second).keys() - before.keys()}
    assert new == {"annotations/tests.operators.logged"}
    changed = {path for path, stamp in modified(second).items() if path in before and before[path] != stamp}
    assert {Path(path).name for path in changed} <= {"corpus.json", "family.json", ".driver.lock", ".workers.lock"}
    assert len((tmp_path / "log").read_text().splitlines()) == 4


def test_changed_options_recompute_their_group_only_and_going_back_restores_it(raw, tmp_path):
    corpus = run(raw, tmp_path / "corpus")
    original = contents(corpus)
    changed = RECIPE | {"filters": {"motion": {}, "luminance": {"dark_below": 0.1}}}
    before = modified(corpus)
    other = contents(run(raw, tmp_path / "corpus", changed))
    moved = {path for path in before if not Path(path).exists()}
    assert moved and all("filters/luminance" in path for path in moved)
    assert other["filters/luminance"] != original["filters/luminance"]
    assert other["annotations/dis"] == original["annotations/dis"]
    assert contents(run(raw, tmp_path / "corpus")) == original  # what was set aside came back


def test_one_frame_clips_and_a_new_working_size(raw, tmp_path):
    write_still(tmp_path / "one.mp4", frames=1)
    recipe = RECIPE | {"keep": ""}
    corpus = run(tmp_path / "one.mp4", tmp_path / "corpus", recipe)
    assert corpus.summary().ok == 1 and corpus[0].flow.shape == (1, 32, 43, 2)
    again = run(tmp_path / "one.mp4", tmp_path / "corpus", recipe | {"work": {"short_side_px": 24}})
    assert again[0].flow.shape == (1, 24, 32, 2)


def test_limit_then_the_rest(raw, tmp_path):
    assert run(raw, tmp_path / "corpus", limit=2).summary().clips == 2
    assert run(raw, tmp_path / "corpus").summary().clips == 5


def test_only_leaves_the_others_pending_until_they_run(raw, tmp_path):
    corpus = run(raw, tmp_path / "corpus", only=("ingest", "motion"))
    assert corpus.groups() == ["clips", "filters/motion"]
    assert corpus.summary().pending == 5
    assert run(raw, tmp_path / "corpus").summary().pending == 0


def test_select_shares_payloads_and_keeps_only_what_passes(raw, corpus, tmp_path):
    chosen = openuni.select(corpus, "motion.speed_diag_per_s > 0.5", out=tmp_path / "few")
    expected = [clip for clip in corpus.kept_clip_ids() if corpus[clip].row("motion")["speed_diag_per_s"] > 0.5]
    assert 0 < len(expected) < 4
    assert [clip.clip_id for clip in chosen] == expected
    assert (chosen[0].flow == corpus[chosen[0].clip_id].flow).all()
    tar = next(Path(chosen.store.root).rglob("*.tar"))
    assert tar.stat().st_nlink == 2  # linked, not copied
    with pytest.raises(openuni.OpenUniError, match="passes none"):
        openuni.select(corpus, "motion.speed_diag_per_s > 1e9", out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(openuni.OpenUniError, match='"motion" has no column "sped"'):
        openuni.select(corpus, "motion.sped > 1", out=tmp_path / "none")


def test_the_ledger_of_the_run_is_kept(corpus):
    (ledger,) = [json.loads(corpus.store.read(name)) for name in corpus.store.names("runs", ".json")][:1]
    assert ledger["error"] is None and ledger["summary"]["ok"] == 4
    assert [phase["phase"] for phase in ledger["phases"]] == ["ingest", "motion + luminance", "dis", "encode"]
    assert ledger["recipe"]["filters"]["motion"]["max_pairs"] == 32  # defaults are recorded


def test_the_command_line_says_the_same(raw, corpus, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "openuni", "summary", corpus.store.url, "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["ok"] == 4


def test_compact_storage_is_smaller_another_version_and_reads_as_any_other(raw, tmp_path):
    recipe = {"work": {"short_side_px": 32}, "annotators": {"dis": {"preset": "ultrafast"}}}
    full = run(raw, tmp_path / "full", recipe)
    compact = run(raw, tmp_path / "compact", recipe | {"work": {"short_side_px": 32, "storage": "compact"}})
    for clip in full:
        other = next(found for found in compact if found.clip_id == clip.clip_id)
        row, exact = other.row("dis"), clip.row("dis")
        assert row["version"] != exact["version"] and row["flow"]["nbytes"] <= exact["flow"]["nbytes"]
        flow = other.modality("flow")
        assert flow.size_px == (row["flow"]["height_px"], row["flow"]["width_px"])
        sized = clip.modality("flow").resize(*flow.size_px).array
        assert abs(flow.array - sized).max() <= row["flow"]["step_px"]
    assert sum(clip.row("dis")["flow"]["nbytes"] for clip in compact) < sum(
        clip.row("dis")["flow"]["nbytes"] for clip in full
    )
