"""The motion and OCR filters against data-juicer's over the same real clips in one run; how often a clip is decoded.

    python -m tests.benchmarks.filters CLIPS --other PYTHON [--rounds 3] [--frames 3]

CLIPS is a folder of videos. PYTHON is the interpreter of an environment of its own that holds data-juicer:

    uv venv other
    uv pip install --python other/bin/python py-data-juicer easyocr aiohttp opencv-python-headless av==13.1.0

Ours is `openuni run` with `workers = 0`, so with everything it stores; the time is the filter phase's, from the run's
ledger; CPU time is of the whole run. Theirs are the bare calls of `compute_stats_single`, nothing stored, models loaded
before the clock starts; CPU time, which other work on the machine disturbs less, is of these calls. Both
measure motion twice per second at the clips' own size, and text in as many frames per clip (`--frames`, theirs has 3).
Their motion is Farneback's flow, ours DIS. Their OCR is EasyOCR's CRAFT. No weights are fetched: CRAFT has random ones,
the same on both sides, which cost what real ones cost but for the boxes that are grouped afterwards; ours runs with
CRAFT too, and with the models it has by default (RapidOCR's, which also reads what it finds). Clips that the other side
cannot open (AV1 with its OpenCV, containers without a stream duration) are left out and named.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GOAL_RATIO = 2.0
SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi"}
THEIRS = """
import hashlib, json, os, pathlib, sys, time
import av, cv2
what, frames, clips = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
if what == "usable":
    def usable(path):
        with av.open(path) as container:
            stream = container.streams.video[0]
            return bool(stream.duration and stream.frames) and cv2.VideoCapture(path).read()[0]
    print(json.dumps([path for path in clips if usable(path)]))
    sys.exit()
from data_juicer.utils.constant import Fields
if what == "motion":
    from data_juicer.ops.filter.video_motion_score_filter import VideoMotionScoreFilter
    operator = VideoMotionScoreFilter(relative=True)
else:
    from easyocr.config import detection_models
    weights = pathlib.Path(os.environ["EASYOCR_MODULE_PATH"]) / "model" / detection_models["craft"]["filename"]
    detection_models["craft"]["md5sum"] = hashlib.md5(weights.read_bytes()).hexdigest()  # else it fetches its own
    from data_juicer.ops.filter.video_ocr_area_ratio_filter import VideoOcrAreaRatioFilter
    operator = VideoOcrAreaRatioFilter(frame_sample_num=frames)
started = time.perf_counter(), time.process_time()
for path in clips:
    operator.compute_stats_single({"videos": [path], Fields.stats: {}})
print(json.dumps([time.perf_counter() - started[0], time.process_time() - started[1]]))
"""


def write_random_craft(folder: Path) -> Path:
    """CRAFT with random weights, where EasyOCR looks for it below `folder`."""
    import torch
    from easyocr.craft import CRAFT

    torch.manual_seed(0)
    path = folder / "model" / "craft_mlt_25k.pth"
    path.parent.mkdir()
    torch.save({f"module.{name}": value for name, value in CRAFT(pretrained=False).state_dict().items()}, path)
    return path


def theirs(python: str, what: str, clips: list[str], frames: int, folder: Path) -> Any:
    """What their script prints in a fresh process of the other environment."""
    environment = os.environ | {"EASYOCR_MODULE_PATH": str(folder)}
    environment.pop("PYTHONPATH", None)
    command = [python, "-c", THEIRS, what, str(frames), *clips]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{python}: {what} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(filters: dict[str, Any], clips: list[str]) -> tuple[float, float]:
    """Wall seconds of the filter phase of a run into a new corpus, and CPU seconds of that run, in this process."""
    import openuni
    from openuni.console.progress import Reporter
    from openuni.pipeline.runners.resources import Resources
    from openuni.pipeline.scope import RunScope

    recipe = {"work": {"short_side_px": 0}, "filters": filters}
    with tempfile.TemporaryDirectory() as scratch:
        how = {"resources": Resources(workers=0), "reporter": Reporter(quiet=True)}
        openuni.run(recipe, clips, out=f"{scratch}/corpus", scope=RunScope(only=("ingest",)), **how)
        reporter, began = Reporter(quiet=True), time.process_time()
        corpus = openuni.run(recipe, clips, out=f"{scratch}/corpus", resources=Resources(workers=0), reporter=reporter)
        if corpus.summary().failed:
            raise SystemExit(f"ours failed:\n{corpus.summary()}")
        return sum(phase.seconds for phase in reporter.phases), time.process_time() - began


def opened(filters: dict[str, Any], clips: list[str]) -> int:
    """How many times a run of these filters opens a video, after ingest."""
    from openuni.manifests.video import container, probe, reader

    count, real = 0, container.open_video

    def counted(*given: Any) -> Any:
        nonlocal count
        count += 1
        return real(*given)

    os.environ["OPENUNI_DECODER"] = "in-process"
    probe.open_video = reader.open_video = counted  # type: ignore[assignment]
    try:
        ours(filters, clips)
    finally:
        probe.open_video = reader.open_video = real  # type: ignore[assignment]
        del os.environ["OPENUNI_DECODER"]
    return count - len(clips)  # ingest opens each once, to list its frames


def report(seconds: dict[str, list[tuple[float, ...]]]) -> None:
    """One table: medians over the rounds of wall and CPU seconds, ours and theirs."""
    print(f"{'':<18}{'ours, s':>9}{'theirs, s':>11}{'ratio':>7}{'CPU: ours':>12}{'theirs':>9}{'ratio':>7}")
    for name, rounds in seconds.items():
        mine, my_cpu, their, their_cpu = (statistics.median(side) for side in zip(*rounds, strict=True))
        verdict = "reached" if their / mine >= GOAL_RATIO else "NOT REACHED"
        line = f"{name:<18}{mine:>9.2f}{their:>11.2f}{their / mine:>7.2f}"
        print(f"{line}{my_cpu:>12.2f}{their_cpu:>9.2f}{their_cpu / my_cpu:>7.2f}  goal {GOAL_RATIO:g}: {verdict}")


def main() -> None:
    """Run both sides in turn, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--other", required=True, help="Python of the environment that holds data-juicer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=3, help="frames per clip that are searched for text")
    given = parser.parse_args()
    found = sorted(str(path.resolve()) for path in given.clips.iterdir() if path.suffix in SUFFIXES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = write_random_craft(folder)
        clips = theirs(given.other, "usable", found, given.frames, folder)
        left_out = sorted(Path(path).name for path in set(found) - set(clips))
        print(f"{len(clips)} clips; left out: {', '.join(left_out) or 'none'}", flush=True)
        ocr = {"frames_per_s": 1000.0, "max_frames": given.frames}
        craft = ocr | {"backend": "easyocr", "checkpoint": str(weights), "long_side_px": 2560}
        motion = {"max_pairs": 1_000_000}
        rows: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
            "motion": ({"motion": motion}, ("motion",)),
            "ocr": ({"ocr": ocr}, ("ocr",)),
            "ocr with CRAFT": ({"ocr": craft}, ("ocr",)),
            "motion and ocr": ({"motion": motion, "ocr": ocr}, ("motion", "ocr")),
        }
        seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in rows}
        for number in range(given.rounds):
            other = {what: theirs(given.other, what, clips, given.frames, folder) for what in ("motion", "ocr")}
            for name, (filters, against) in rows.items():
                added = (sum(part) for part in zip(*(other[what] for what in against), strict=True))
                seconds[name].append((*ours(filters, clips), *added))
            print(f"round {number + 1} of {given.rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
        report(seconds)
        together = ("luminance", "motion", "motion_vectors", "ocr", "resolution", "sharpness", "still")
        started = time.perf_counter()
        count = opened({name: {} for name in together}, clips)
        elapsed = time.perf_counter() - started
        print(f"{len(together)} filters together: {count / len(clips):g} decodes per clip, {elapsed:.1f} s with ingest")


if __name__ == "__main__":
    main()
