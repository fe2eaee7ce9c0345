"""A training step on a GPU: its share of the peak, its memory, and one stream over the plain transformer.

Model, loss, AdamW, clipping and EMA on random latents in memory: neither Ray nor a corpus nor a video reader is needed.
Every case runs in a process of its own, with a time limit, so memory is its own and one that fails ends nothing else.
Prints one JSON object per case. `--tiny` does the same with a small model, on any device. Run by hand.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch.profiler import ProfilerActivity, profile

from openuni.training.backbone.wan import WanModel
from openuni.training.estimate.footprint import KNOWN_SIZES
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX
from openuni.training.optimizers.adamw import build_optimizer
from openuni.training.recipe import OptimizerOptions
from tests.benchmarks.models import PEAK_FLOPS, flops, inputs

ROOT = Path(__file__).parents[2]
NAMES = ("rgb", "depth", "flow", "segmentation", "skeleton", "densepose")
FAMILY = "Wan-AI/Wan2."
SIZES: dict[str, dict[str, Any]] = {
    "1.3B": KNOWN_SIZES[f"{FAMILY}1-T2V-1.3B-Diffusers"],
    "5B": KNOWN_SIZES[f"{FAMILY}2-TI2V-5B-Diffusers"],
    # four blocks of that width, for ratios
    "four blocks": KNOWN_SIZES[f"{FAMILY}1-T2V-1.3B-Diffusers"] | {"num_layers": 4},
}
TINY: dict[str, Any] = {"num_layers": 2, "heads": 2, "head_dim": 12, "ffn_dim": 48, "text_dim": 16, "freq_dim": 16}
# tokens of one stream: frames, rows, columns, by frames x height x width of the video; the 5B model's VAE divides by 16
GRIDS = {"33x256x256": (9, 16, 16), "81x480x832": (21, 30, 52), "33x256x256, 5B": (9, 8, 8)}
TINY_GRID = (2, 3, 4)
MODES: dict[str, dict[str, Any]] = {
    "eager": {},
    "eager, full": {"gradient_checkpointing": True},
    "eager, selective": {"gradient_checkpointing": "selective"},
    "compiled": {"compile": "inductor"},
    "compiled, full": {"compile": "inductor", "gradient_checkpointing": True},
    "compiled, selective": {"compile": "inductor", "gradient_checkpointing": "selective"},
}
TEXT_ROWS = {True: 8, False: 512}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures. `model`: unityvideo, unividx, or plain, which is diffusers' of that size."""

    model: str
    size: str
    grid: str
    streams: int
    samples: int
    mode: str


def cases(only: str) -> Iterator[Case]:
    """All cases, or those of one part: mfu, memory, ratios."""
    if only in ("", "mfu"):
        for grid, samples in (("33x256x256", 1), ("33x256x256", 8), ("81x480x832", 1)):
            for mode in MODES:
                if mode in ("eager", "compiled") and (samples, grid) != (1, "33x256x256"):
                    continue  # activations of all blocks do not fit, or leave no room
                yield Case("unityvideo", "1.3B", grid, 2, samples, mode)
    if only in ("", "memory"):
        for mode in ("eager, full", "compiled, full", "compiled, selective"):
            yield Case("unityvideo", "5B", "33x256x256, 5B", 2, 1, mode)
    if only in ("", "ratios"):
        for mode in ("eager", "compiled"):
            for model in ("plain", "unityvideo", "unividx"):
                yield Case(model, "four blocks", "33x256x256", 1, 1, mode)


def main() -> None:
    """Run all cases, each in a process, and print their results and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["mfu", "memory", "ratios"], default="")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit-s", type=float, default=240, help="Time limit of a case, seconds")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="Peak of the device; default: as published")
    parser.add_argument("--tiny", action="store_true", help="Small model and latents")
    parser.add_argument("--modes", nargs="*", choices=list(MODES), default=list(MODES))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        case = Case(**json.loads(given.case))
        print(json.dumps(measured(case, given.device, given.steps, given.tiny, peak_flops(given))))
        return
    found = []
    for case in cases(given.only):
        if case.mode in given.modes:
            found.append(in_a_process(case, given))
            print(json.dumps(found[-1]), flush=True)
    for row in ratios(found):
        print(json.dumps(row), flush=True)


def peak_flops(given: argparse.Namespace) -> float:
    """Dense bfloat16 FLOP/s of the device; 0 if unknown."""
    if given.peak_tflops or given.device == "cpu":
        return given.peak_tflops * 1e12
    name = torch.cuda.get_device_name()
    return next((value for known, value in PEAK_FLOPS.items() if known in name), 0.0)


def in_a_process(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """The result of a case, or its error."""
    command = [sys.executable, "-m", "tests.benchmarks.training_step", "--case", json.dumps(dataclasses.asdict(case))]
    command += ["--device", given.device, "--steps", str(given.steps), "--peak-tflops", str(given.peak_tflops)]
    command += ["--tiny"] if given.tiny else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.limit_s, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        return dataclasses.asdict(case) | {"error": f"took longer than {given.limit_s:g} s"}
    if done.returncode:
        return dataclasses.asdict(case) | {"error": done.stderr.strip().splitlines()[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ratios(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Step time of one stream over that of the plain transformer, by mode."""
    plain = {row["mode"]: row["step_s"] for row in found if row["model"] == "plain" and "step_s" in row}
    for row in found:
        if row["size"] == "four blocks" and row["model"] != "plain" and "step_s" in row and row["mode"] in plain:
            ratio = round(row["step_s"] / plain[row["mode"]], 3)
            yield {"ratio": f"one stream over plain: {row['model']}, {row['mode']}", "value": ratio, "goal": 1.05}


# ---------------------------------------------------------------- one case


def component(case: Case, tiny: bool) -> WanModel:
    """The model of a case with random weights; plain is given the options of UnityVideo."""
    sizes = TINY if tiny else {"head_dim": 128, "text_dim": 4096} | SIZES[case.size]
    options = sizes | ({} if case.model == "plain" else MODES[case.mode])
    if case.model == "unividx":
        return UniVidX(modalities=NAMES[:2], train_base=True, **options)
    return UnityVideo(modalities=NAMES if case.size == "5B" else NAMES[:2], **options)


def measured(case: Case, device: str, steps: int, tiny: bool, peak: float) -> dict[str, Any]:
    """Least seconds of a step, samples per second, share of the peak of useful FLOPs, peak memory in GB."""
    torch.manual_seed(0)
    options = component(case, tiny)
    grid = TINY_GRID if tiny else GRIDS[case.grid]
    if case.model == "plain":
        plain: Any = WanTransformer3DModel(**options.base_options()).to(device).train()
        for block in plain.blocks if "compiled" in case.mode else ():
            block.compile(fullgraph=True)
        model, run = plain, plain_step(plain, options, grid, case, device, TEXT_ROWS[tiny])
    else:
        model = options.load(device)
        run = our_step(model, grid, case, device, TEXT_ROWS[tiny])
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = build_optimizer(parameters, set(), OptimizerOptions())
    average = [parameter.detach().clone() for parameter in parameters.values()]

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = run()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.5, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, list(parameters.values()), 0.001)

    took = timed(step, steps, device)
    launches, costliest = profiled(step, device)
    tokens = grid[0] * grid[1] * grid[2]
    useful = case.samples * flops(options, tokens, case.streams)
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return dataclasses.asdict(case) | {
        "tokens": tokens * case.streams,
        "step_s": took,
        "samples_per_s": case.samples / took,
        "useful_tflop": useful / 1e12,
        "share_of_peak": useful / took / peak if peak else None,
        "peak_gb": memory or None,
        "launches": launches,
        "costliest": costliest,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def timed(step: Callable[[], None], steps: int, device: str) -> float:
    """Least seconds of a step, after two that are not counted."""
    took = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return min(took[2:])


def profiled(step: Callable[[], None], device: str) -> tuple[int, list[tuple[str, int, float]]]:
    """Number of kernels (on a CPU: operators) of a step, and the costliest: name, number, milliseconds."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as found:
        step()
    kind = torch.autograd.DeviceType.CUDA if device == "cuda" else torch.autograd.DeviceType.CPU
    events = [event for event in found.key_averages() if event.device_type == kind]

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)

    costliest = sorted(events, key=spent, reverse=True)[:12]
    return sum(event.count for event in events), [(e.key[:80], e.count, round(spent(e) / 1e3, 3)) for e in costliest]


def our_step(model: Any, grid: tuple[int, int, int], case: Case, device: str, rows: int) -> Callable[[], torch.Tensor]:
    """Forward pass and loss of our model."""
    given = repeated(inputs(model, NAMES[: case.streams], grid, device, rows), case.samples)
    return lambda: torch.stack([value.float().square().mean() for value in model(*given).values()]).sum()


def plain_step(
    plain: Any, options: WanModel, grid: tuple[int, int, int], case: Case, device: str, rows: int
) -> Callable[[], torch.Tensor]:
    """The same of diffusers' transformer."""
    given = repeated(inputs(options.resolved(), ("rgb",), grid, device, rows), case.samples)
    stream, sigma, text = (group["rgb"] for group in given)
    return lambda: plain(stream, sigma * 1000.0, text).sample.float().square().mean()


def repeated(given: tuple[Any, ...], samples: int) -> tuple[Any, ...]:
    """The same sample several times."""
    return tuple({name: torch.cat([tensor] * samples) for name, tensor in group.items()} for group in given)


if __name__ == "__main__":
    main()
