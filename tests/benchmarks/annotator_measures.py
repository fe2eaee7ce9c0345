"""Measures for `tests.benchmarks.annotators`: bare network loops, busy GPUs, where the host's time goes, errors."""

import cProfile
import dataclasses
import datetime
import functools
import importlib
import importlib.metadata
import os
import platform
import pstats
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from openuni.manifests.contracts.inference import inference
from openuni.manifests.contracts.modality import Modality

MAX_DEPTH = 8
# what the time of a function is counted as, by the first part of "path:name" that matches; others: as their callers'
CAUSES = (
    (
        "transfers and waiting for the GPU",
        (
            "method 'cpu'",
            "method 'to'",
            "method 'item'",
            "method 'tolist'",
            "method 'copy_'",
            "method 'nonzero'",
            "synchronize",
            "method 'cuda'",
            "method 'numpy'",
            "method 'pin_memory'",
        ),
    ),
    ("waiting for threads", ("method 'acquire' of '_thread", "method '__enter__' of '_thread")),
    (
        "network",
        (
            "method run of onnxruntime",
            "onnxruntime/",
            "torch/nn/",
            "torch/_jit",
            "torch/jit",
            "built-in method torch.",
            "of 'torch._C",
            "torchvision/models/",
            "torchvision/ops/",
            "segment_anything/modeling",
            "transformers/models/",
            "torch/",
        ),
    ),
    (
        "preprocess",
        (
            "image_processing",
            "image_transforms",
            "torchvision/transforms",
            "_yolox.py",
            "_simcc.py",
            "PIL/",
            "segment_anything/utils/transforms",
            "feature_extraction",
        ),
    ),
    (
        "scores and guide flow",
        (
            "_guide_flow.py",
            "_dis_flow.py",
            "dense_inverse_search.py",
            "_temporal_consistency.py",
            "streaming_mean.py",
            "order_statistics.py",
        ),
    ),
    (
        "masks, tracks, drawing",
        (
            "_automatic_masks.py",
            "_instances.py",
            "_segmenter.py",
            "_instance_table.py",
            "_flow_propagation.py",
            "_person_tracks.py",
            "_pairwise_flow.py",
            "segment_anything/utils/amg",
        ),
    ),
    ("coding", ("video/encode.py", "av/")),
    ("decoding", ("video/reader.py", "video/decoder/")),
    ("own code, else", ("openuni/annotators/", "/annotators/", "/manifests/")),
)


class Call(NamedTuple):
    """One call of a network, to be repeated."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]


def modules_in(value: Any, depth: int = 0) -> list[torch.nn.Module]:
    """The torch modules that a loaded model holds, none inside another."""
    if isinstance(value, torch.nn.Module):
        return [value]
    if depth > 4 or isinstance(value, (str, bytes, int, float, type, np.ndarray, torch.Tensor)) or value is None:
        return []
    parts = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple) else []
    parts += list(getattr(value, "__dict__", {}).values())
    found: list[torch.nn.Module] = []
    for part in parts:
        found += [one for one in modules_in(part, depth + 1) if all(one is not other for other in found)]
    return found


def runners_in(value: Any, depth: int = 0) -> list[Any]:
    """The objects of a loaded model that run a network otherwise, by `_run`: those of ONNX files."""
    if hasattr(value, "_run") and not isinstance(value, torch.nn.Module):
        return [value]
    parts = list(value) if isinstance(value, list | tuple) else list(getattr(value, "__dict__", {}).values())
    return [one for part in parts for one in runners_in(part, depth + 1)] if depth < 3 else []


@contextmanager
def recorded_calls(model: Any) -> Iterator[list[Call]]:
    """Context that collects the outermost calls of the model's networks, with their inputs."""
    calls: list[Call] = []
    inside = 0

    def before(module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal inside
        if not inside:
            calls.append(Call(module, arguments, named))
        inside += 1

    def after(*_: Any) -> None:
        nonlocal inside
        inside -= 1

    with ExitStack() as stack:
        roots = modules_in(model)
        if any(isinstance(root, torch.jit.ScriptModule) for root in roots):  # they take no hooks
            _record_scripted(stack, calls)
        for root in [one for one in roots if not isinstance(one, torch.jit.ScriptModule)]:
            for module in root.modules():
                for hook in (
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(after, always_call=True),
                ):
                    stack.callback(hook.remove)
        for runner in runners_in(model):
            plain = runner._run
            runner._run = lambda batch, plain=plain: (calls.append(Call(plain, (batch,), {})), plain(batch))[1]
            stack.callback(delattr, runner, "_run")
        yield calls


def _record_scripted(stack: ExitStack, calls: list[Call]) -> None:
    kind: Any = torch.jit.RecursiveScriptModule
    plain = kind.__call__

    def call(module: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(Call(functools.partial(plain, module), arguments, named))
        return plain(module, *arguments, **named)

    kind.__call__ = call
    stack.callback(setattr, kind, "__call__", plain)


def replay(calls: list[Call], device: str, precision: Any) -> float:
    """Seconds of the networks alone: the same calls with the same inputs, one after the other."""

    def loop() -> None:
        # as densepose runs TorchScript; nothing to other networks
        with inference(device, precision), torch.jit.optimized_execution(False):
            for call in calls:
                call.function(*call.arguments, **call.named)

    return timed(loop, device)[0]


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds, and what it returned. On a CPU, seconds of CPU time of all threads."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    synchronize(device)
    began = clock()
    found = function()
    synchronize(device)
    return clock() - began, found


@contextmanager
def gpu_busy(device: str) -> Iterator[list[float]]:
    """Context that collects the GPU's share of busy time, 0 to 1, five times per second (nvidia-smi)."""
    shares: list[float] = []
    if device != "cuda":
        yield shares
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield shares
    finally:
        process.terminate()
        shares += [float(line) / 100 for line in (process.communicate()[0] or "").split() if line.strip().isdigit()]


def kernel_shares(function: Callable[[], Any], device: str) -> dict[str, float] | None:
    """Shares of wall time in which kernels and copies run, by torch.profiler; None without a GPU."""
    if device != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        seconds, _ = timed(function, device)
    copies = kernels = 0.0
    for event in profiler.key_averages():
        taken = getattr(event, "self_device_time_total", 0.0) / 1e6
        if event.key.startswith(("Memcpy", "Memset")):
            copies += taken
        else:
            kernels += taken
    return {"kernels": kernels / seconds, "copies": copies / seconds}


def host_shares(function: Callable[[], Any], device: str) -> dict[str, float]:
    """Shares of the calling thread's time by cause, by cProfile: functions of other libraries count as their caller's.

    On a GPU the first cause holds the time in which the thread only waits for it; all others are time in which the GPU
    has nothing but what was queued before.
    """
    profiler = cProfile.Profile()
    synchronize(device)
    profiler.enable()
    function()
    synchronize(device)
    profiler.disable()
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    shares: dict[str, float] = {}
    for key, (_, _, own_s, _, callers) in stats.items():
        _share(stats, key, own_s, callers, shares, 0)
    total = sum(shares.values()) or 1.0
    return {cause: round(seconds / total, 4) for cause, seconds in sorted(shares.items(), key=lambda pair: -pair[1])}


def _share(stats: Any, key: Any, seconds: float, callers: Any, shares: dict[str, float], depth: int) -> None:
    path, _, name = key
    text = f"{path}:{name}"
    cause = next((cause for cause, parts in CAUSES if any(part in text for part in parts)), None)
    weight = sum(one[2] if not depth else one[3] for one in callers.values())
    if cause is not None or depth >= MAX_DEPTH or weight <= 0:
        cause = cause or "other"
        shares[cause] = shares.get(cause, 0.0) + seconds
        return
    for caller, one in callers.items():
        part = seconds * (one[2] if not depth else one[3]) / weight
        if part > 0:
            _share(stats, caller, part, stats[caller][4], shares, depth + 1)


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, float]]:
    """Context; then "mb" is the most GPU memory since its start, or this process's peak, 10^6 bytes."""
    found: dict[str, float] = {}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield found
    if device == "cuda":
        found["mb"] = torch.cuda.max_memory_allocated() / 1e6
    else:
        found["mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def maps_of(result: Any) -> dict[str, np.ndarray]:
    """The arrays of a result's maps."""
    return {name: value.array for name, value in result._asdict().items() if isinstance(value, Modality)}


def errors(result: Any, reference: Any) -> dict[str, dict[str, float]]:
    """By map: mean and largest distance as shares of the reference's range; of integer maps the share that differs."""
    found = {}
    for name, expected in maps_of(reference).items():
        given = maps_of(result).get(name)
        if given is None or given.shape != expected.shape or not expected.size:
            found[name] = {"other_shape": 1.0}
        elif expected.dtype.kind in "ui":
            found[name] = {"differs_share": float((given != expected).any(axis=-1).mean())}
        else:
            spread = float(np.ptp(expected)) or 1.0
            off = np.abs(given.astype(np.float64) - expected)
            found[name] = {"mean": float(off.mean()) / spread, "max": float(off.max()) / spread}
    return found


def strict(operator: Any) -> Any:
    """The operator in full 32-bit precision, if it has the option."""
    return dataclasses.replace(operator, precision="fp32") if hasattr(operator, "precision") else operator


def machine(device: str) -> dict[str, Any]:
    """What the figures belong to."""
    card = torch.cuda.get_device_name() if device == "cuda" else "none"
    packages = ("torch", "torchvision", "transformers", "numpy", "av", "decord", "onnxruntime")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name) if is_importable(name) else "missing"
        except importlib.metadata.PackageNotFoundError:  # its distribution has another name
            versions[name] = "unknown"
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": card,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **versions,
    }


def is_importable(name: str) -> bool:
    """Whether a package can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
