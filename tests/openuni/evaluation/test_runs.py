"""`openuni evaluate RUN` on a model of a few steps: its figures are those of what it generates."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from openuni.console.progress import Reporter
from openuni.evaluation.runs import CODEC, RunScope, evaluate_run
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.depth import Depth
from openuni.training.loop.trainer import train
from openuni.training.metrics.depth import DepthMetric
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from tests.command_line import cli
from tests.train.small_runs import small_recipe
from tests.train.world_corpora import world_corpus

SAMPLING = {"steps": 2}
QUIET = Reporter(quiet=True)


class Trained(NamedTuple):
    run: Run
    corpus: Corpus


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("evaluated-run")
    corpus = world_corpus(folder, "scenes", ("rgb", "depth", "skeleton"), text_bytes=15)
    model = {"name": "unityvideo", "modalities": ["rgb", "depth", "skeleton"], "heads": 2, "head_dim": 12}
    model |= {"num_layers": 1, "ffn_dim": 32, "freq_dim": 32}
    tasks = {"rgb->depth": 1.0, "rgb->skeleton": 1.0, "text->rgb+depth": 1.0}
    recipe = small_recipe(
        {"model": model, "tasks": tasks, "optimizer": {"steps": 2}, "data": {"validation_share": 0.3}}
    )
    return Trained(train(recipe, corpus, folder / "run"), corpus)


def test_figures_are_those_of_what_the_model_generates(trained: Trained) -> None:
    run, corpus = trained
    found = evaluate_run(run, corpus, sampling=SAMPLING, reporter=QUIET)
    assert [(one.subject, one.modality) for one in found.comparisons] == [("rgb->depth", "depth"), (CODEC, "depth")]
    estimate, coded = found.comparisons
    assert 0 < len(estimate.clips) < len(corpus) and estimate.compared == estimate.clips
    result = estimate.clips[0]
    clip = corpus[result.clip_id]
    true = clip.modality("depth")
    rgb = clip.rgb.astype(np.float32) / 255
    options = SamplingOptions(2, run.recipe.flow_matching.shift)
    (rendering,) = run.render("", ["depth"], {"rgb": rgb}, (5, 32, 48), options).values()
    made = Depth.from_rgb(rendering, true.constants())
    assert result.figures == pytest.approx(DepthMetric().of_clip(made, true))
    assert coded.mean("abs_rel") < 0.5 * estimate.mean("abs_rel")  # type: ignore[operator]


def test_a_clip_has_the_same_figures_alone(trained: Trained) -> None:
    run, corpus = trained
    all_clips = evaluate_run(run, corpus, ["rgb->depth"], sampling=SAMPLING, reporter=QUIET).comparisons[0]
    one = evaluate_run(run, corpus, ["rgb->depth"], RunScope(limit=1), sampling=SAMPLING, reporter=QUIET)
    assert list(one.comparisons[0].clips) == list(all_clips.clips[:1])


def test_the_command_prints_the_record(trained: Trained) -> None:
    run, corpus = trained
    command = ("evaluate", run.folder, "--corpus", corpus.store.url, "--steps", 2, "--limit", 1)
    done = cli(*command, "--json")
    assert done.returncode == 0, done.stderr
    expected = evaluate_run(run, corpus, scope=RunScope(limit=1), sampling=SAMPLING, reporter=QUIET)
    assert json.loads(done.stdout) == expected.as_record()
    table = cli(*command, "--set", "depth.alignment=scale").stdout
    assert "(alignment = scale)" in table and "codec: the true maps, encoded and decoded" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--corpus is missing"),
        (("--corpus", "CORPUS", "--task", "depth->rgb"), 'not trained for "depth->rgb"'),
        (("--corpus", "CORPUS", "--task", "text->rgb+depth"), "has no conditions, so that no map is the true one"),
        (("--corpus", "CORPUS", "--task", "rgb->skeleton"), "makes no map with a metric"),
        (("--corpus", "CORPUS", "--truth", "dis"), "dis has no depth in this corpus. depth is from: supplied"),
        (("--corpus", "CORPUS", "--annotator", "dis"), "--annotator evaluates a corpus"),
        (("--corpus", "CORPUS", "--steps", "0"), "Invalid value for '--steps'"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_exit_code_2(
    trained: Trained, arguments: tuple[str, ...], message: str
) -> None:
    given = [trained.corpus.store.url if one == "CORPUS" else one for one in arguments]
    done = cli("evaluate", trained.run.folder, *given)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr


def test_a_corpus_without_held_out_clips(trained: Trained, tmp_path: Path) -> None:
    run, corpus = trained
    held_out = {
        clip.clip_id for clip in evaluate_run(run, corpus, sampling=SAMPLING, reporter=QUIET).comparisons[0].clips
    }
    seen = next(clip_id for clip_id in corpus.kept_clip_ids() if clip_id not in held_out)
    selected = corpus.select(f"clip_id = '{seen}'", str(tmp_path / "one"))
    with pytest.raises(OpenUniError, match=r"no held-out clips.*--clips all"):
        evaluate_run(run, selected, sampling=SAMPLING, reporter=QUIET)
    found = evaluate_run(run, selected, scope=RunScope("all"), sampling=SAMPLING, reporter=QUIET)
    assert len(found.comparisons[0].compared) == 1
