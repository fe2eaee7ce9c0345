"""A small demo: all steps, its numbers compared with the ground truth of the world, and resuming."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.demo import demo, results
from openuni.demo.demo import FULL, QUICK, Demo, run_demo
from openuni.evaluation.runs import held_out_clips
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.depth import Depth
from openuni.training.recipe import TrainingRecipe
from openuni.world import make_clip

TINY = dataclasses.replace(
    QUICK,
    solids=5,
    still=1,
    dark=1,
    train_recipe="unityvideo_debug",
    shown=2,
    estimate_steps=2,
    joint_steps=2,
    frames=9,
    side_px=64,
    text_dim=8,
    text_bytes=15,
)
SIZE = {"frames": TINY.frames, "height_px": TINY.side_px, "width_px": TINY.side_px}


def tiny(folder: Path, **changes) -> Demo:
    return Demo(folder, dataclasses.replace(TINY, **changes), Reporter(quiet=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return tiny(folder).run()


@pytest.fixture(scope="module")
def numbers(made):
    return json.loads((made.parent / "numbers.json").read_text())


def true_clips(made):
    """By clip_id of the kept clips: the world clip they were written from."""
    corpus = Corpus.open(str(made.parent / "corpus"))
    found = {}
    for clip_id in corpus.kept_clip_ids():
        preset, _, seed = Path(corpus[clip_id].clip.source).stem.rpartition("-")
        found[clip_id] = make_clip(int(seed), preset=preset, **SIZE)
    return found


def stamps(folder: Path) -> dict[str, int]:
    """When files of clips, corpus and checkpoints were written."""
    files = [path for name in ("raw", "corpus", "run") for path in (folder / name).rglob("*") if path.is_file()]
    suffixes = (".mp4", ".mkv", ".parquet", ".tar", ".safetensors")
    return {str(path): path.stat().st_mtime_ns for path in files if path.suffix in suffixes}


def test_every_clip_is_in_the_ledger(made, numbers):
    ledger = numbers["ledger"]
    assert ledger["clips"] == 7 and ledger["failed"] == [] and ledger["pending"] == 0
    assert ledger["ok"] + sum(drop["clips"] for drop in ledger["dropped"]) == 7
    assert all(drop["clips"] > 0 for drop in ledger["dropped"]), "still and dark clips must be dropped"
    presets = {clip.caption for clip in true_clips(made).values()}
    assert len(presets) == ledger["ok"] and not any("stands still" in caption for caption in presets)


def test_flow_errors_are_those_against_the_worlds_flow(made, numbers):
    lengths = {}
    for clip_id, clip in true_clips(made).items():
        flow = clip.modalities["flow"]
        lengths[clip_id] = np.linalg.norm(flow.array[:-1], axis=-1)[flow.valid[:-1, ..., 0]].mean()
    # what is stored is rounded to 1/64 px, which the mean over pixels levels out
    found = {entry["clip_id"]: entry["zero"]["epe_px"] for entry in numbers["flow"]["by_clip"]}
    assert found == pytest.approx(lengths, abs=1e-3)
    assert numbers["flow"]["zero"]["epe_px"] == pytest.approx(np.mean(list(found.values())))
    assert 0 < numbers["flow"]["dis"]["epe_px"] < numbers["flow"]["zero"]["epe_px"]
    assert numbers["flow"]["clips"] == len(lengths)


def test_depth_errors_are_those_against_the_worlds_depth(made, numbers):
    from openuni.training.metrics.depth import constant_errors, depth_errors

    clips, found = true_clips(made), numbers["depth"]
    held_out = [entry["clip_id"] for entry in found["by_clip"]]
    disparities = {name: 1.0 / clip.modalities["depth"].array for name, clip in clips.items()}
    mean = np.mean([disparities[name] for name in clips if name not in held_out], axis=0)
    assert 0 < len(held_out) < len(clips)
    for name, expected in {
        "constant": [constant_errors(disparities[clip]).abs_rel for clip in held_out],
        "mean_map": [depth_errors(mean, disparities[clip]).abs_rel for clip in held_out],
    }.items():
        assert found[name]["abs_rel"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert found["codec"]["abs_rel"] < found["mean_map"]["abs_rel"]
    assert found["codec"]["delta1"] > 0.9
    assert np.isfinite(found["estimate"]["abs_rel"])


def test_held_out_clips_were_never_trained_on(made, numbers):
    from openuni import api

    run = api.open_run(made.parent / "run")
    held_out, trained = held_out_clips(run, Corpus.open(str(made.parent / "corpus")))
    assert set(held_out) | set(trained) == set(true_clips(made)) and not set(held_out) & set(trained)
    assert len(held_out) == run.record["data"]["held_out"] == numbers["depth"]["clips"]
    assert numbers["training"]["clips"] == len(trained)


def test_the_losses_are_those_of_the_log(made, numbers):
    rows = [json.loads(line) for line in (made.parent / "run" / "log.jsonl").read_text().splitlines()]
    joint = [
        [row["step"], row["task_loss"]["text->rgb+depth"]]
        for row in rows
        if "text->rgb+depth" in row.get("task_loss", {})
    ]
    assert joint
    curve = numbers["training"]["curves"]["text->rgb+depth"]["train"]
    assert curve == [[step, pytest.approx(loss / 2)] for step, loss in joint]  # per stream: it makes two
    assert numbers["training"]["steps"] == max(row["step"] for row in rows)


def test_the_page_shows_what_was_measured(made, numbers):
    page = made.read_text()
    assert page.count("<video") == 4 + 3 * TINY.shown + 4 * min(TINY.shown, numbers["depth"]["clips"]) + 2
    assert f'data-number="depth.estimate.abs_rel">{numbers["depth"]["estimate"]["abs_rel"]:.3f}<' in page
    assert "true segmentation" in page and "true depth after codec" in page and "generated depth" in page
    assert f"openuni summary {made.parent / 'corpus'} --scores" in page and "openuni init corpus.toml" in page
    assert "http" not in page.replace("https", "http").split("base64")[0]
    assert len(page) < 15e6


def test_the_recipe_can_be_run_by_hand_and_nothing_is_left_to_do(made):
    folder = made.parent
    assert list(CorpusRecipe.load(folder / "corpus.toml").annotators) == ["dis", "supplied"]
    before = stamps(folder)
    command = ["run", folder / "corpus.toml", folder / "raw" / "*.mp4", "--out", folder / "corpus", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "openuni", *map(str, command)], capture_output=True, check=True, text=True
    )
    assert done.stdout.startswith("7 clips =") and stamps(folder) == before


def test_again_reuses_clips_corpus_and_training(made, numbers):
    before = stamps(made.parent)
    again = tiny(made.parent).run()
    assert again == made and stamps(made.parent) == before
    found = json.loads((made.parent / "numbers.json").read_text())
    for name in ("ledger", "training", "flow", "depth", "joint"):
        assert found[name] == numbers[name]
    for name in ("make clips", "build the corpus", "train"):
        assert found["seconds"][name] == numbers["seconds"][name] > 0


def test_what_is_missing_is_made_again(made):
    victim = made.parent / "raw" / "solids-000001.json"
    before, text = stamps(made.parent), victim.read_bytes()
    victim.unlink()
    assert tiny(made.parent).make_clips() is True
    assert victim.read_bytes() == text
    changed = {Path(path).name for path, stamp in stamps(made.parent).items() if before[path] != stamp}
    assert changed and all(name.startswith("solids-000001.") for name in changed)


def test_a_folder_holds_one_demo(made, tmp_path):
    with pytest.raises(OpenUniError, match=r"contains the quick demo, not the full demo\..*openuni demo --out"):
        Demo(made.parent, FULL, Reporter(quiet=True)).run()
    with pytest.raises(OpenUniError, match="another version of openuni"):
        tiny(made.parent, solids=6).run()
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(OpenUniError, match="is not empty and does not contain a demo"):
        run_demo(tmp_path, quick=True, reporter=Reporter(quiet=True))
    (tmp_path / "demo.json").write_text("[1]")
    with pytest.raises(OpenUniError, match="is not empty and does not contain a demo"):
        run_demo(tmp_path, quick=True, reporter=Reporter(quiet=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "holiday.mp4"]


def test_an_existing_empty_folder_is_accepted(tmp_path):
    tiny(tmp_path).claim_folder()
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_the_command_line_reports_it_without_a_traceback(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    command = [sys.executable, "-m", "openuni", "demo", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "is not empty and does not contain a demo" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_disparity_of_both_units():
    metres = np.full((1, 2, 2, 1), 4.0, np.float32)
    assert results.disparity(Depth(metres, unit="metres")).max() == 0.25
    assert results.disparity(Depth(metres)).max() == 4.0


def test_detail_counts_edges():
    checks = (np.indices((8, 8)).sum(axis=0) % 2).astype(np.float32)[None, ..., None]
    assert results.detail(checks) == 2.0 and results.detail(np.zeros((1, 8, 8, 1))) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_demo_as_a_user_runs_it(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "openuni", "demo", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"report: {(out / 'index.html').as_uri()}"
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["ledger"]["clips"] == QUICK.solids + QUICK.still + QUICK.dark
    assert numbers["flow"]["dis"]["epe_px"] < numbers["flow"]["zero"]["epe_px"]
    assert numbers["training"]["estimate_loss_end"] < 0.6 * numbers["training"]["estimate_loss_begin"]
    # how good the depth of so short a training is depends on which clips are held out: the page says, no test asks
    assert 0 < numbers["depth"]["codec"]["abs_rel"] < numbers["depth"]["estimate"]["abs_rel"]
    assert (out / "index.html").stat().st_size < 15e6


@pytest.mark.parametrize("plan", [FULL, QUICK, TINY])
def test_the_training_recipe_is_written_as_it_is(plan, tmp_path):
    recipe = demo.training_recipe(plan)
    (tmp_path / "train.toml").write_text(demo.toml_text(dataclasses.asdict(recipe)))
    assert TrainingRecipe.load(tmp_path / "train.toml") == recipe
    shipped = TrainingRecipe.load(plan.train_recipe)
    assert (recipe.optimizer, recipe.model, recipe.tasks) == (shipped.optimizer, shipped.model, shipped.tasks)
    assert (
        recipe.data.validation_share == 0.2
        and recipe.validation.every_steps * plan.validations <= recipe.optimizer.steps
    )


def test_plans_differ_in_size_alone():
    assert FULL.solids > QUICK.solids and FULL.train_recipe != QUICK.train_recipe
    for plan in (FULL, QUICK):
        recipe = demo.RECIPE.format(command="x", **dataclasses.asdict(plan))
        assert f"frames = {plan.frames}" in recipe
