"""What decoding in a process of its own costs, against decoding in this process: CPU time of both processes together.

    python -m tests.benchmarks.decoder [VIDEO] [--rounds 7]

Minima over rounds in which both take turns, one decoder thread. Without VIDEO: 100 frames of 854 x 480, H.264, of a
texture that moves. Other work on the machine changes wall time, but hardly CPU time.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from openuni.manifests.video.clip import Clip
from openuni.manifests.video.decoder import process
from openuni.manifests.video.encode import write_video
from openuni.manifests.video.probe import probe_clip
from openuni.manifests.video.reader import decode_frames, iter_frames
from tests.moving_pictures import panned

MODES = ("", "in-process")  # of OPENUNI_DECODER


def cases(clip: Clip) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    return {
        "whole clip": lambda: decode_frames(clip, threads=1),
        "two frames per second, short side 360": lambda: decode_frames(clip, _sparse, 360, threads=1),
        "frame by frame, short side 64": lambda: sum(1 for _ in iter_frames(clip, 64)),
        "frame by frame": lambda: sum(1 for _ in iter_frames(clip)),
        "probe": lambda: probe_clip(clip.source),
    }


def _sparse(times_s: np.ndarray) -> np.ndarray:
    return np.unique(np.searchsorted(times_s, np.arange(0, times_s[-1], 0.5)))


def cpu_s() -> float:
    """CPU time of this process, and of the main threads of its decoders, seconds."""
    total = time.process_time()
    for one in list(process._pool.all):
        fields = Path(f"/proc/{one.connection.process.pid}/schedstat")
        total += int(fields.read_text().split()[0]) / 1e9 if fields.exists() else 0.0
    return total


def start_s() -> tuple[float, float]:
    """CPU and wall time of the start of a decoder, seconds."""
    process.close_decoders()
    before, began = cpu_s(), time.perf_counter()
    one = process.Decoder()
    process._pool.all.add(one)
    wall = time.perf_counter() - began
    cpu = cpu_s() - before
    one.connection.close()
    return cpu, wall


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or str(Path(folder) / "a.mp4")
        if not options.video:
            write_video(path, panned([(2 * number, number) for number in range(100)], 480, 854), 25.0)
        clip = probe_clip(path)
        for name, case in cases(clip).items():
            taken: dict[str, list[float]] = {mode: [] for mode in MODES}
            for _ in range(options.rounds):
                for mode in MODES:
                    os.environ[process.MODE_VARIABLE] = mode
                    began = cpu_s()
                    case()
                    taken[mode].append(cpu_s() - began)
            there, here = (min(taken[mode]) for mode in MODES)
            print(f"{name:40} {there * 1e3:8.1f} ms  in-process {here * 1e3:8.1f} ms  ratio {there / here:.2f}")
    os.environ[process.MODE_VARIABLE] = ""
    starts = [start_s() for _ in range(options.rounds)]
    print(f"start of a decoder: {min(cpu for cpu, _ in starts):.2f} s of CPU, {min(wall for _, wall in starts):.2f} s")


if __name__ == "__main__":
    main()
