"""Another reader of frames (`[work] reader`) against PyAV on the CPU: how many frames are equal, how far the others are
from PyAV's, and the CPU time of both.

    python -m tests.benchmarks.readers FOLDER [--reader decord] [--rounds 3] [--sides 0 360]

One decoder thread, whole clips, at their own size and at a working size; CPU time of this process and its decoders, the
least of the rounds, opening and checking included. A clip that the reader rejects is printed with its error.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.errors import ClipError
from openuni.manifests.video.decoder import process
from openuni.manifests.video.probe import probe_clip

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".ts")


def cpu_s() -> float:
    """CPU time of this process and of all threads of its decoders, seconds."""
    total = time.process_time()
    for one in list(process._pool.all):
        stat = Path(f"/proc/{one.connection.process.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def least_cpu_s(call: Callable[[], np.ndarray], rounds: int) -> tuple[float, np.ndarray]:
    """CPU seconds of the fastest round, and what the last one gave."""
    seconds = []
    for _ in range(rounds):
        began = cpu_s()
        found = call()
        seconds.append(cpu_s() - began)
    return min(seconds), found


def compare(path: Path, reader: str, side_px: int, rounds: int) -> str:
    """One row of the table."""
    clip = probe_clip(str(path))
    ours_s, ours = least_cpu_s(lambda: decode(clip, None, side_px, threads=1).frames, rounds)
    try:
        theirs_s, theirs = least_cpu_s(lambda: decode(clip, None, side_px, threads=1, reader=reader).frames, rounds)
    except ClipError as error:
        return f"rejected: {str(error)[-160:]}"
    equal, largest, mean, square = 0, 0, 0.0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        off = np.abs(one.astype(np.int16) - other)
        equal, largest = equal + int(not off.any()), max(largest, int(off.max()))
        mean, square = mean + float(off.mean()), square + float((off.astype(np.float64) ** 2).mean())
    count = len(ours)
    psnr = 10 * np.log10(255**2 / (square / count)) if square else np.inf
    return (
        f"{count} frames, {equal} equal, off {mean / count:.2f} levels, at most {largest}, PSNR {psnr:.1f} dB; CPU "
        f"{ours_s:.2f} s by pyav, {theirs_s:.2f} s by {reader}, ratio {theirs_s / ours_s:.2f}"
    )


def main() -> None:
    """A row per clip and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reader", default="decord", choices=("decord", "nvdec"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=[0, 360], help="short sides, pixels; 0: as stored")
    given = parser.parse_args()
    for path in sorted(path for path in given.folder.iterdir() if path.suffix in SUFFIXES):
        for side_px in given.sides:
            print(f"{path.name}, side {side_px}: {compare(path, given.reader, side_px, given.rounds)}", flush=True)


if __name__ == "__main__":
    main()
