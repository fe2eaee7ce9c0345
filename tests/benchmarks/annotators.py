"""The five OpenUni modalities: clips per hour of each annotator and of all together, and where the time goes.

    python -m tests.benchmarks.annotators [--stages alone,precision,...] [--limit-s 100] [--out FILE] [--full] ...

One script for a GPU and a CPU. `--full` (default where there is a GPU) builds networks of their real sizes with random
weights on clips of 81 frames, 480 x 832; without it the tests' tiny ones on 9 frames, 96 x 160, which only shows that
it runs. On a CPU seconds are CPU time of one thread, since other work shares the cores. DWPose and DensePose of the
real size are stand-ins (`annotator_networks`) unless `--dwpose` and `--densepose` name published files. Stages, each
within about `--limit-s`:

alone      each annotator on frames in memory, in turns with the bare loop of its networks on the same inputs at the
           same precision: clips per hour, ratio, GPU busy (nvidia-smi; kernels and copies by torch.profiler), host time
           by cause (cProfile), peak memory
precision  each annotator with each of its precisions: error against strict fp32, ratio to the bare loop
together   all annotators one after the other on frames in memory
pipeline   `openuni run` in this process: decoding, all annotators, coding, writing (requires PyAV and DuckDB)
decode     seconds per clip of each reader that works here (requires PyAV)
coding     an annotator that sleeps, with real coding of its maps behind it (requires PyAV and DuckDB)

Ray is not used. What a machine lacks is left out, and the output says so. `--out` is rewritten after every figure, as
JSON, so that a run that is stopped leaves what it has measured.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.video.clip import Clip
from tests.benchmarks import annotator_measures as measures
from tests.benchmarks.annotator_networks import NAMES, STAND_INS, build, clip_frames

FPS = 16.0
GOALS = {"depth_anything": 4000, "raft": 2000, "sam": 1500, "dwpose": 2000, "densepose": 1500}  # clips per hour
GOAL_TOGETHER, GOAL_BUSY, GOAL_RATIO = 1000, 0.8, 0.9
STAGES = ("alone", "precision", "together", "pipeline", "decode", "coding")
NEEDED = {"pipeline": ("av", "duckdb", "xxhash"), "decode": ("av", "xxhash"), "coding": ("av", "duckdb", "xxhash")}
MAX_ROUNDS = 20
SHORT_S = 5.0  # clips that take no longer are profiled, whatever the time


class Bench:
    """What the stages share: options, clips, annotators, and the results as they come."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.device = "cuda" if torch.cuda.is_available() and not given.cpu else "cpu"
        self.size = (given.frames, *given.size) if given.full else (min(given.frames, 9), 96, 160)
        self.results: dict[str, Any] = {
            "machine": measures.machine(self.device),
            "arguments": vars(given) | {"out": None},
        }
        self.left_out: dict[str, str] = {}
        self.until = 0.0
        self.clips = [memory_clip(number, self.size) for number in range(given.clips)]
        self.operators: dict[str, Any] = {}
        for name in given.annotators.split(","):
            try:
                self.operators[name] = build(name, folder / name, getattr(given, name, None), full=given.full)
            except ImportError as error:
                self.left_out[name] = f"{error}"
        self.small = [] if given.full else list(self.operators)
        self.stand_ins = [name for name in STAND_INS if given.full and getattr(given, name, None) is None]

    @property
    def has_time(self) -> bool:
        """Whether the stage may begin with something more."""
        return time.monotonic() < self.until

    def keep(self, stage: str, name: str, found: Any) -> None:
        """Keep a figure, and write the file."""
        self.results.setdefault(stage, {})[name] = found
        if self.given.out:
            part = Path(f"{self.given.out}.part")
            left = {"left_out": self.left_out, "tiny": self.small, "stand_ins": self.stand_ins}
            part.write_text(json.dumps(self.results | left, indent=1, default=str))
            part.replace(self.given.out)


def memory_clip(number: int, size: tuple[int, int, int]) -> DecodedClip:
    """A clip without a file; made by hand, since xxhash may be missing."""
    frames = clip_frames(number, *size)
    count, height_px, width_px = size
    facts = {"start_pts": 0, "end_pts": count, "time_base_num": 1, "time_base_den": int(FPS), "frame_count": count}
    clip = Clip(f"{number:032x}", "memory:", 0, **facts, fps=FPS, width_px=width_px, height_px=height_px,
                codec="rawvideo", pts_hash="")  # fmt: skip
    return DecodedClip(clip, frames, torch.arange(count).double().numpy() / FPS)


def run_once(operator: Any, model: Any, clip: DecodedClip) -> Callable[[], Any]:
    """The annotator on a clip, with nothing that an earlier run has computed."""
    return lambda: operator.run(model, dataclasses.replace(clip, cache={}))


def precisions(operator: Any) -> list[Any]:
    """The values of its option `precision`."""
    if not hasattr(operator, "precision"):
        return []
    kind = get_type_hints(type(operator), include_extras=False)["precision"]
    return list(get_args(kind)) or [operator.precision]


def paired(bench: Bench, operator: Any, model: Any, rounds: int) -> tuple[dict[str, Any], Any]:
    """Seconds per clip of the annotator and of its bare network loop, in turns: medians and ratio. And a result."""
    precision = getattr(operator, "precision", "fp32")
    with measures.recorded_calls(model) as calls:
        result = run_once(operator, model, bench.clips[0])()
    measures.replay(calls, bench.device, precision)  # both are warm now
    whole, bare = [], []
    for _ in range(rounds):
        seconds = measures.timed(run_once(operator, model, bench.clips[0]), bench.device)[0]
        whole.append(seconds)
        bare.append(measures.replay(calls, bench.device, precision))
        if not bench.has_time:
            break
    found = {"s_per_clip": statistics.median(whole), "bare_s_per_clip": statistics.median(bare)}
    facts = {"ratio": found["bare_s_per_clip"] / found["s_per_clip"], "rounds": len(whole), "calls": len(calls)}
    return found | facts, result


def alone(bench: Bench) -> None:
    """See the module."""
    left = list(bench.operators)
    end = bench.until
    for name in list(left):
        if time.monotonic() > end:
            bench.left_out[f"alone {name}"] = "over the time limit of the stage"
            continue
        bench.until = time.monotonic() + (end - time.monotonic()) / len(left)
        left.remove(name)
        operator = bench.operators[name]
        with measures.peak_memory(bench.device) as memory:
            model = operator.load(bench.device)
            found, _ = paired(bench, operator, model, bench.given.rounds)
        found["peak_mb"] = memory["mb"]
        with measures.gpu_busy(bench.device) as shares:
            for clip in bench.clips[1:]:
                measures.timed(run_once(operator, model, clip), bench.device)
                if not bench.has_time:
                    break
        found["gpu_busy"] = statistics.mean(shares) if shares else None
        once = run_once(operator, model, bench.clips[0])
        is_short = bench.has_time or found["s_per_clip"] < SHORT_S
        found["device_shares"] = measures.kernel_shares(once, bench.device) if is_short else None
        found["host_shares"] = measures.host_shares(once, bench.device) if is_short else None
        bench.keep("alone", name, found)
        print(f"{name}: {rate(found['s_per_clip'], GOALS[name], bench)}")
        ratio = verdict(found["ratio"], GOAL_RATIO, bench)
        print(f"  bare network loop {found['bare_s_per_clip']:.3f} s, bare / annotator {found['ratio']:.2f}; {ratio}")
        busy = "not measured" if found["gpu_busy"] is None else f"{found['gpu_busy']:.0%}"
        print(f"  GPU busy {busy}, kernels and copies {found['device_shares'] or 'not measured'}")
        print(f"  host time {shares_text(found['host_shares'])}; peak {found['peak_mb']:,.0f} MB", flush=True)


def precision(bench: Bench) -> None:
    """See the module."""
    named = [(name, one) for name, operator in bench.operators.items() for one in precisions(operator)]
    end = bench.until
    references: dict[str, Any] = {}
    for done, (name, value) in enumerate(named):
        if time.monotonic() > end:
            bench.left_out[f"precision {name} {value}"] = "over the time limit of the stage"
            continue
        bench.until = time.monotonic() + (end - time.monotonic()) / (len(named) - done)
        operator = bench.operators[name]
        if name not in references:
            references = {name: measures.strict(operator)}
            references[name] = run_once(references[name], references[name].load(bench.device), bench.clips[0])()
        chosen = dataclasses.replace(operator, precision=value)
        model = chosen.load(bench.device)
        found, result = paired(bench, chosen, model, 2)
        found["errors"] = measures.errors(result, references[name])
        bench.keep("precision", f"{name} {value}", found)
        off = "; ".join(f"{key} {text}" for key, text in found["errors"].items())
        ratio = verdict(found["ratio"], GOAL_RATIO, bench)
        print(f"{name} {value}: {found['s_per_clip']:.3f} s per clip, bare / annotator {found['ratio']:.2f}; {ratio}")
        print(f"  off strict fp32: {off}", flush=True)
    for name in [name for name, operator in bench.operators.items() if not precisions(operator)]:
        print(f"{name}: has no option precision")


def together(bench: Bench) -> None:
    """See the module."""
    with measures.peak_memory(bench.device) as memory:
        models = {name: operator.load(bench.device) for name, operator in bench.operators.items()}
        for name, operator in bench.operators.items():
            run_once(operator, models[name], bench.clips[0])()
        seconds = []
        with measures.gpu_busy(bench.device) as shares:
            while (not seconds or bench.has_time) and len(seconds) < MAX_ROUNDS:
                clip = dataclasses.replace(bench.clips[len(seconds) % len(bench.clips)], cache={})
                taken = 0.0
                for name, operator in bench.operators.items():  # they share the clip's cache, as in the pipeline
                    taken += measures.timed(lambda o=operator, m=models[name], c=clip: o.run(m, c), bench.device)[0]
                seconds.append(taken)
    each = statistics.median(seconds)
    busy = statistics.mean(shares) if shares else None
    found = {"s_per_clip": each, "gpu_busy": busy, "peak_mb": memory["mb"], "clips": len(seconds)}
    bench.keep("together", "all", found)
    print(f"{len(models)} annotators: "
          f"{rate(each, GOAL_TOGETHER, bench)}")  # fmt: skip
    text = "not measured" if busy is None else f"{busy:.0%}; {verdict(busy, GOAL_BUSY, bench)}"
    print(f"  GPU busy {text}; peak {memory['mb']:,.0f} MB", flush=True)


def pipeline(bench: Bench) -> None:
    """See the module."""
    record, shares = run_phase(bench, {name: tables_of(one) for name, one in bench.operators.items()})
    each = record["seconds"] / record["planned"]
    busy = statistics.mean(shares) if shares else None
    bench.keep("pipeline", "all", record | {"s_per_clip": each, "gpu_busy": busy})
    print(f"{record['planned']} clips with decoding and coding: "
          f"{rate(each, GOAL_TOGETHER, bench)}")  # fmt: skip
    stages = ", ".join(f"{name} {record[f'{name}_s'] / record['planned']:.3f}" for name in
                       ("decode", "compute", "store", "wait"))  # fmt: skip
    text = "not measured" if busy is None else f"{busy:.0%}; {verdict(busy, GOAL_BUSY, bench)}"
    print(f"  s per clip by stage (they overlap): {stages}; decodes {record['decodes']}; GPU busy {text}", flush=True)


def decode(bench: Bench) -> None:
    """See the module."""
    from openuni.manifests.contracts import decoded_clip
    from openuni.manifests.errors import ClipError, OpenUniError
    from openuni.manifests.video.probe import probe_clip

    clip = probe_clip(str(write_clips(bench, bench.folder / "decode", 1)[0]))
    for reader in ("pyav", "decord", "nvdec"):
        seconds = []
        try:
            while (len(seconds) < 2 or bench.has_time) and len(seconds) < MAX_ROUNDS:
                began = time.perf_counter()
                frames = decoded_clip.decode(clip, reader=reader).frames
                seconds.append(time.perf_counter() - began)
                del frames
        except (ClipError, OpenUniError) as error:
            bench.left_out[f"decode by {reader}"] = str(error)
            print(f"  {reader}: not measured: {error}")
            continue
        found = {"s_per_clip": min(seconds), "rounds": len(seconds)}
        bench.keep("decode", reader, found)
        print(f"  {reader}: {found['s_per_clip']:.3f} s per clip", flush=True)


def coding(bench: Bench) -> None:
    """See the module."""
    from tests.operators.sleeping import _maps

    bench.size = (27, 480, 832)  # of a size that matters, also where the networks are tiny
    maps = _maps(bench.size)
    began = time.perf_counter()
    for value in maps:
        value.encode(FPS)
    coding_s = time.perf_counter() - began
    threads = min(os.cpu_count() or 1, 8)
    for sleep_s in (coding_s, coding_s / 2):
        record, _ = run_phase(bench, {"tests.operators.sleeping": {"seconds": round(sleep_s, 3)}}, clips=8)
        each = record["seconds"] / record["planned"]
        found = {"sleep_s": sleep_s, "coding_s": coding_s, "s_per_clip": each, "coders": threads}
        bench.keep("coding", f"sleep {sleep_s:.3f}", found)
        print(f"  sleeps {sleep_s:.3f} s, codes {coding_s:.3f} s in one thread: {each:.3f} s per clip of "
              f"{record['planned']}; sum {sleep_s + coding_s:.3f}, bound {max(sleep_s, coding_s / threads):.3f}",
              flush=True)  # fmt: skip
        if not bench.has_time:
            return


def write_clips(bench: Bench, folder: Path, count: int) -> list[Path]:
    """The clips as files."""
    from openuni.manifests.video.encode import write_video

    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_video(path, clip_frames(number, *bench.size), FPS)
    return paths


def run_phase(bench: Bench, annotators: dict[str, Any], clips: int = 4) -> tuple[dict[str, Any], list[float]]:
    """The annotate phase of a run in this process into a new corpus: its record in the ledger, and GPU shares."""
    import openuni
    from openuni.console.progress import Reporter
    from openuni.pipeline.runners.resources import Resources
    from openuni.pipeline.scope import RunScope

    raw = bench.folder / f"raw-{bench.size}"
    write_clips(bench, raw, max(clips, bench.given.clips))
    recipe = {"work": {"short_side_px": 0, "reader": bench.given.reader}, "annotators": annotators}
    resources = Resources(workers=0, gpus=float(bench.device == "cuda"))
    with tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
        out = f"{scratch}/corpus"
        only = RunScope(only=("ingest",))
        openuni.run(recipe, raw, out=out, resources=resources, scope=only, reporter=Reporter(quiet=True))
        with measures.gpu_busy(bench.device) as shares:
            corpus = openuni.run(recipe, raw, out=out, resources=resources, reporter=Reporter(quiet=True))
        if corpus.summary().failed:
            raise SystemExit(f"annotators failed:\n{corpus.summary()}")
        path = max(Path(corpus.store.root, "runs").glob("*.json"))
        (phase,) = json.loads(path.read_text())["phases"]
    return phase, shares


def tables_of(operator: Any) -> dict[str, Any]:
    """Its options, as a recipe has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(operator).items()}


def verdict(found: float, goal: float, bench: Bench) -> str:
    """Whether a goal is reached; on a CPU, and with tiny networks, that is not measured."""
    text = f"goal {goal:,g}: "
    if bench.device != "cuda" or bench.small:
        return text + "not measured (needs a GPU and the real sizes)"
    return text + ("reached" if found >= goal else "NOT REACHED")


def rate(s_per_clip: float, goal: float, bench: Bench) -> str:
    """Seconds per clip; on a GPU also clips per hour, and whether that is the goal."""
    if bench.device != "cuda":
        return f"{s_per_clip:.3f} s per clip; clips per hour not measured (goal {goal:,g}, needs a GPU)"
    return f"{s_per_clip:.3f} s per clip, {3600 / s_per_clip:,.0f} clips/h; {verdict(3600 / s_per_clip, goal, bench)}"


def shares_text(shares: dict[str, float] | None) -> str:
    """The largest causes."""
    if not shares:
        return "not measured"
    return ", ".join(f"{cause} {share:.0%}" for cause, share in shares.items() if share >= 0.01)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated")
    parser.add_argument("--annotators", default=",".join(NAMES), help="comma-separated")
    parser.add_argument("--limit-s", type=float, default=100.0, help="time limit of a stage, seconds")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--full", action="store_true", help="networks of their real sizes; default on a GPU")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 832), help="height and width, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reader", default="pyav", help="[work] reader of the stage pipeline")
    parser.add_argument("--dwpose", type=Path, help="folder with DWPose's two ONNX files")
    parser.add_argument("--densepose", type=Path, help="TorchScript export of DensePose")
    given = parser.parse_args()
    given.full = given.full or (torch.cuda.is_available() and not given.cpu)
    unknown = set(given.stages.split(",")) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}. Known: {', '.join(STAGES)}")
    return given


def main() -> None:
    """All stages, one after the other."""
    given = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(given, Path(scratch))
        if bench.device == "cpu":
            torch.set_num_threads(1)
        facts = ", ".join(f"{key} {value}" for key, value in bench.results["machine"].items())
        print(f"{facts}\n{len(bench.clips)} clips of {bench.size[0]} frames, {bench.size[1]} x {bench.size[2]}")
        print(f"tiny: {', '.join(bench.small) or 'none'}; stand-ins: {', '.join(bench.stand_ins) or 'none'}")
        if not bench.operators:
            raise SystemExit(f"no annotator can be built: {bench.left_out}")
        for stage in given.stages.split(","):
            absent = [name for name in NEEDED.get(stage, ()) if not measures.is_importable(name)]
            if absent:
                bench.left_out[stage] = f"requires {', '.join(absent)}"
                continue
            bench.until = time.monotonic() + given.limit_s
            print(f"-- {stage}", flush=True)
            globals()[stage](bench)
        for what, why in bench.left_out.items():
            print(f"left out: {what}: {why}")
        bench.keep("done", "stages", given.stages)


if __name__ == "__main__":
    main()
