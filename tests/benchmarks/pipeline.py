"""Clips per second of `openuni run` against a bare loop of the same operators over the same clips.

    python -m tests.benchmarks.pipeline [--clips 64] [--rounds 3] [--preset medium] [--work FOLDER] [--pools]

The bare loop decodes and runs filters, then decodes and runs annotators, at the same working size with the same
threads, and stores nothing. `openuni run` also seals parts, encodes maps losslessly, and can be killed. Both are fresh
processes, one after the other in each round; figures are medians over the rounds. "Work" is the time of the filter and
annotate phases, from the run's ledger; "whole" is the process from start to exit: imports, ingest and Ray's start too.

`--pools` measures instead whether two pools cost anything: two workers on a Ray cluster of two cores do everything, or
one of them filters and the other annotates, as it does with a GPU (`dis` asks for one, which Ray counts without having
it). The annotating worker begins while the other one filters.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GOAL_RATIO = 0.9
FRAMES, HEIGHT_PX, WIDTH_PX = 60, 240, 320
FILTERS = ("motion", "luminance")
RECIPE = """
[filters.motion]
[filters.luminance]
[annotators.{annotator}]
preset = "{preset}"
"""
ON_GPU = '"tests.operators.dis_on_gpu"'  # `dis` in a pool of its own


class Seconds(NamedTuple):
    """One run."""

    work: float
    whole: float


# ---------------------------------------------------------------------- the clips and the bare loop


def write_clips(folder: str, count: int) -> None:
    """Textures that pan at speeds of their own under fresh noise, H.264."""
    import numpy as np

    from openuni.manifests.video.encode import write_video
    from tests.moving_pictures import texture

    rng = np.random.default_rng(0)
    reach = FRAMES * 3
    for number in range(count):
        big = texture(HEIGHT_PX, WIDTH_PX + reach, seed=number).astype(np.int16)
        step = 1 + number % 3
        frames = np.stack([big[:, index * step :][:, :WIDTH_PX] for index in range(FRAMES)])
        noisy = (frames + rng.integers(-6, 7, frames.shape, np.int16)).clip(0, 255).astype(np.uint8)
        write_video(Path(folder) / f"clip-{number:03}.mp4", noisy, 25.0)


def bare_loop(folder: str, recipe_file: str) -> float:
    """Seconds to decode and compute what `openuni run` computes, in this process, storing nothing."""
    import numpy as np

    from openuni.config.recipe import CorpusRecipe
    from openuni.manifests.contracts.decoded_clip import decode
    from openuni.manifests.video.probe import make_clip, probe

    recipe = CorpusRecipe.load(recipe_file)
    clips = [make_clip(str(path), probe(str(path))) for path in sorted(Path(folder).glob("*.mp4"))]
    models = {name: operator.load("cpu") for name, operator in (*recipe.filters.items(), *recipe.annotators.items())}
    short_side_px = recipe.work.short_side_px
    started = time.perf_counter()
    for clip in clips:
        wanted: dict[str, np.ndarray] = {}

        def choose(times_s: np.ndarray, wanted: dict[str, np.ndarray] = wanted) -> np.ndarray:
            wanted.update({name: operator.sample(times_s) for name, operator in recipe.filters.items()})
            return np.unique(np.concatenate(list(wanted.values())))

        decoded = decode(clip, choose, short_side_px)
        union = np.unique(np.concatenate(list(wanted.values())))
        for name, operator in recipe.filters.items():
            operator.run(models[name], decoded.take(np.searchsorted(union, wanted[name])))
    for clip in clips:
        decoded = decode(clip, None, short_side_px)
        for name, annotator in recipe.annotators.items():
            annotator.run(models[name], decoded)
    return time.perf_counter() - started


# ---------------------------------------------------------------------- measuring


def timed(*command: str, one_core: bool) -> tuple[float, str]:
    """Wall seconds of a fresh process and what it printed; `one_core`: it and its children share the first core."""

    def confine() -> None:
        if one_core:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    started = time.perf_counter()
    environment = os.environ | {"RAY_worker_niceness": "0"}  # else Ray's workers give way to all other processes
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, preexec_fn=confine
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def bare(raw: Path, recipe: Path, *, one_core: bool = False) -> Seconds:
    """The loop that the pipeline is held against."""
    whole, printed = timed(
        "-m", "tests.benchmarks.pipeline", "--child", "bare", str(raw), str(recipe), one_core=one_core
    )
    return Seconds(float(printed), whole)


def run(raw: Path, recipe: Path, workers: int, *, one_core: bool = False) -> Seconds:
    """`openuni run` into a new corpus."""
    out = Path(tempfile.mkdtemp(dir=raw.parent)) / "corpus"
    command = ("-m", "openuni", "run", str(recipe), str(raw), "--out", str(out), "--workers", str(workers))
    whole, _ = timed(*command, one_core=one_core)
    (ledger,) = (json.loads(path.read_text()) for path in (out / "runs").glob("*.json"))
    shutil.rmtree(out.parent)
    work = [phase["seconds"] for phase in ledger["phases"] if phase["phase"] != "ingest"]
    assert len(work) == 2, ledger["phases"]
    return Seconds(sum(work), whole)


def on_cluster(address: str, raw: Path, recipe: Path) -> float:
    """Seconds of `openuni run` with two workers of a cluster that is there."""
    out = Path(tempfile.mkdtemp(dir=raw.parent)) / "corpus"
    command = ("-m", "openuni", "run", str(recipe), str(raw), "--out", str(out), "--address", address, "--workers", "2")
    seconds, _ = timed(*command, one_core=False)
    shutil.rmtree(out.parent)
    return seconds


def compare_pools(folder: Path, raw: Path, rounds: int, preset: str) -> None:
    """One pool of two workers against two pools of one, in turns."""
    from ray.cluster_utils import Cluster

    recipes = {"one pool": folder / "one.toml", "two pools": folder / "two.toml"}
    recipes["one pool"].write_text(RECIPE.format(preset=preset, annotator="dis"))
    recipes["two pools"].write_text(RECIPE.format(preset=preset, annotator=ON_GPU))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    found: dict[str, list[float]] = defaultdict(list)
    try:
        for _ in range(rounds):
            for name, recipe in recipes.items():
                found[name].append(on_cluster(cluster.address, raw, recipe))
    finally:
        cluster.shutdown()
    middle = {name: statistics.median(runs) for name, runs in found.items()}
    for name, runs in found.items():
        print(f"{name}: {middle[name]:.1f} s ({', '.join(f'{seconds:.1f}' for seconds in runs)})")
    print(f"two pools take {middle['two pools'] / middle['one pool']:.2f} of the time of one")


def report(found: dict[str, list[Seconds]], clips: int) -> None:
    """One table: clips per second, and what they are held against."""
    against = {
        "--workers 0": "bare loop",
        "--workers 1": "bare loop",
        "--workers 1, one core": "bare loop, one core",
        "--workers 2": "--workers 1, one core",
    }
    middle = {name: Seconds(*map(statistics.median, zip(*runs, strict=True))) for name, runs in found.items()}
    print(f"{'':<24}{'clips/s':>9}{'ratio':>7}  {'whole: clips/s':>15}{'ratio':>7}   against")
    for name, seconds in middle.items():
        line = f"{name:<24}{clips / seconds.work:>9.3f}"
        other = middle.get(against.get(name, ""))
        if other is None:
            print(f"{line}{'':>7}  {clips / seconds.whole:>15.3f}")
            continue
        work, whole = other.work / seconds.work, other.whole / seconds.whole
        print(f"{line}{work:>7.2f}  {clips / seconds.whole:>15.3f}{whole:>7.2f}   {against[name]}")
    for name in ("--workers 0", "--workers 1"):
        ratio = middle["bare loop"].work / middle[name].work
        print(f"{name}: {ratio:.2f} of the bare loop; goal {GOAL_RATIO}: {verdict(ratio)}")


def verdict(ratio: float) -> str:
    """Whether a ratio is as good as wanted."""
    return "reached" if ratio >= GOAL_RATIO else "NOT REACHED"


def main() -> None:
    """Write clips, run all in turn, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="medium", help="of dis: how long an annotator takes")
    parser.add_argument("--work", type=Path, help="find or leave the clips here")
    parser.add_argument("--pools", action="store_true", help="compare one pool of two workers with two pools")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(bare_loop(*given.child[1:]))
        return
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.work or Path(scratch)
        raw, recipe = folder / "raw", folder / "corpus.toml"
        recipe.write_text(RECIPE.format(preset=given.preset, annotator="dis"))
        if not raw.exists():
            raw.mkdir()
            write_clips(str(raw), given.clips)
        count = len(list(raw.glob("*.mp4")))
        print(f"{count} clips of {WIDTH_PX}x{HEIGHT_PX}, {FRAMES} frames; motion, luminance, dis ({given.preset})")
        if given.pools:
            compare_pools(folder, raw, given.rounds, given.preset)
            return
        found: dict[str, list[Seconds]] = defaultdict(list)
        for _ in range(given.rounds):
            found["bare loop"].append(bare(raw, recipe))
            found["--workers 0"].append(run(raw, recipe, 0))
            found["--workers 1"].append(run(raw, recipe, 1))
            found["bare loop, one core"].append(bare(raw, recipe, one_core=True))
            found["--workers 1, one core"].append(run(raw, recipe, 1, one_core=True))
            found["--workers 2"].append(run(raw, recipe, 2))
        report(found, count)


if __name__ == "__main__":
    main()
