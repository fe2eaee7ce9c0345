"""`openuni evaluate` on a corpus whose annotators are right, wrong, or silent."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.evaluation.annotators import evaluate_annotators
from openuni.evaluation.evaluation import Comparison, Maps
from openuni.evaluation.page import evaluation_page
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.metrics.flow import flow_errors
from openuni.world.write import write_clips
from tests.command_line import cli

RECIPE = {
    "work": {"short_side_px": 0},
    "annotators": {"supplied": {"modalities": ["flow", "normal", "depth"]}, "dis": {}, "normals_from_depth": {}},
}
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("evaluated")
    write_clips(
        folder / "raw",
        range(2),
        preset="scenes",
        modalities=["flow", "normal", "depth"],
        workers=0,
        frames=3,
        height_px=32,
        width_px=48,
    )
    return openuni.run(RECIPE, folder / "raw", out=folder / "corpus", reporter=QUIET)


def test_figures_are_those_of_the_maps_and_their_means(corpus: Corpus) -> None:
    found = evaluate_annotators(corpus, ["dis"], "supplied", reporter=QUIET)
    (flow,) = found.comparisons
    for result in flow.clips:
        clip = corpus[result.clip_id]
        ours, true = clip.modality("flow", "dis"), clip.modality("flow", "supplied")
        errors = flow_errors(ours.array[:-1], true.array[:-1], true.valid[:-1])  # type: ignore[attr-defined]
        assert result.figures == errors._asdict() and errors.epe_px > 0
    record = found.as_record()["comparisons"][0]
    epes = [clip["figures"]["epe_px"] for clip in record["clips"]]
    assert len(epes) == 2 and record["figures"]["epe_px"]["mean"] == pytest.approx(np.mean(epes))
    assert [clip.figures["epe_px"] for clip in flow.ranked()] == sorted(epes)


def test_all_annotators_by_default_and_json_is_the_record(corpus: Corpus) -> None:
    done = cli("evaluate", corpus.store.url, "--truth", "supplied", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == evaluate_annotators(corpus, [], "supplied", reporter=QUIET).as_record()
    assert [(one["subject"], one["modality"]) for one in record["comparisons"]] == [
        ("dis", "flow"),
        ("normals_from_depth", "normal"),
    ]
    table = cli("evaluate", corpus.store.url, "--truth", "supplied", "--limit", 1).stdout
    assert "flow: mean over clips, compared with supplied" in table and "lower is better" in table
    assert "normals_from_depth      1 " in table


def test_the_page_shows_each_clip_once_with_its_figures(corpus: Corpus, tmp_path: Path) -> None:
    done = cli("evaluate", corpus.store.url, "--truth", "supplied", "--annotator", "dis", "--out", tmp_path / "out")
    assert done.returncode == 0 and "page: " in done.stdout, done.stderr
    record = json.loads((tmp_path / "out/evaluation.json").read_text())
    page = (tmp_path / "out/evaluation.html").read_text()
    (flow,) = record["comparisons"]
    ranked = sorted(flow["clips"], key=lambda clip: clip["figures"]["epe_px"])
    assert page.count("<video") == 2 * 3 and page.count("true flow</figcaption>") == 2
    best, worst = (f"epe_px {clip['figures']['epe_px']:.4g}" for clip in ranked)
    assert f"best: {best}" in page and f"median, worst: {worst}" in page
    assert all(page.count(f"({clip['clip_id']})") == 1 for clip in ranked)


def test_names_and_captions_are_text_on_the_page(corpus: Corpus) -> None:
    found = evaluate_annotators(corpus, ["dis"], "supplied", limit=1, reporter=QUIET)
    evil = "<script>alert(1)</script>"

    def look(comparison: Comparison, clip_id: str) -> Maps:
        maps = found.look(comparison, clip_id)
        return maps._replace(clip=replace(maps.clip, clip=replace(maps.clip.clip, caption=evil)))

    page = evaluation_page(replace(found, look=look, truth=evil, note=evil), evil)
    assert evil not in page and page.count("alert(1)") >= 4


def test_clips_without_a_map_are_counted_not_hidden(corpus: Corpus, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(corpus.store.root, tmp_path / "corpus")
    copy = Corpus.open(str(tmp_path / "corpus"))
    kept = copy.kept_clip_ids()
    copy.rewrite(
        "annotations/dis", lambda rows: rows.slice(0, 1) if rows["clip_id"][0].as_py() == kept[0] else rows[1:]
    )
    (flow,) = evaluate_annotators(copy, ["dis"], "supplied", reporter=QUIET).comparisons
    assert len(flow.compared) == 1 and [clip.reason for clip in flow.clips if clip.reason] == ["no flow of dis"]
    done = cli("evaluate", tmp_path / "corpus", "--truth", "supplied", "--annotator", "dis")
    assert "dis: 1 clip not compared: no flow of dis" in done.stdout and done.returncode == 0


def test_options_of_metrics(corpus: Corpus) -> None:
    with pytest.raises(OpenUniError, match='metric flow has no option "alignment"'):
        evaluate_annotators(corpus, ["dis"], "supplied", options={"flow.alignment": "scale"}, reporter=QUIET)
    with pytest.raises(OpenUniError, match=r"METRIC\.OPTION=VALUE; metrics used: flow"):
        evaluate_annotators(corpus, ["dis"], "supplied", options={"depth.alignment": "scale"}, reporter=QUIET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--truth", "suplied"), 'Did you mean "supplied"'),
        (("--truth", "supplied", "--annotator", "raft"), '"raft" is not known. Known: dis'),
        (("--truth", "supplied", "--annotator", "supplied"), "compared with itself"),
        (
            ("--truth", "dis", "--annotator", "normals_from_depth"),
            "no modality in common: normals_from_depth has normal",
        ),
    ],
)
def test_bad_names_end_with_exit_code_2(corpus: Corpus, arguments: tuple[str, ...], message: str) -> None:
    done = cli("evaluate", corpus.store.url, *arguments)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr


def test_runs_that_evaluate_nothing_do_not_import_torch() -> None:
    """It takes seconds and a third of a gigabyte in every process."""
    check = "import sys, openuni.api; assert not {'torch', 'skimage'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
