"""Frames per second of `openuni world` by preset and size, on all cores.

    python -m tests.benchmarks.world [--quick] [--clips N] [--frames N] [--presets a,b] [--sizes 240x320,480x640]

Per preset and size, two figures. "render": one process renders a clip with all ground truth of the preset and stores
nothing. "all cores": `write_clips` with a process per core, from order to files: starting the processes, rendering,
lossless coding. The last column is what 200 clips of 21 frames would take at that rate. `--quick` is for a first look.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from openuni.world import PRESETS, make_clip, write_clips
from openuni.world.command import read_size

WHOLE_SET_FRAMES = 200 * 21


def render_rate(preset: str, frames: int, height_px: int, width_px: int) -> float:
    """Frames per second of one process, storing nothing, after a first clip that fills the caches of patterns."""
    size = {"height_px": height_px, "width_px": width_px}
    make_clip(0, preset=preset, frames=1, **size)
    started = time.perf_counter()
    make_clip(1, preset=preset, frames=frames, **size)
    return frames / (time.perf_counter() - started)


def write_rate(preset: str, clips: int, frames: int, height_px: int, width_px: int) -> float:
    """Frames per second from order to files, a process per core."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        cores = len(os.sched_getaffinity(0))
        size = {"frames": frames, "height_px": height_px, "width_px": width_px}
        write_clips(Path(folder), range(clips), preset=preset, workers=cores, **size)
        return clips * frames / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and short: a first look, under two minutes")
    parser.add_argument("--clips", type=int, default=None, help="clips written per figure")
    parser.add_argument("--frames", type=int, default=None, help="frames per clip")
    parser.add_argument("--presets", default=",".join(PRESETS), help="names with commas between")
    parser.add_argument("--sizes", default=None, help="HEIGHTxWIDTH with commas between")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    clips = given.clips or (cores if given.quick else 6 * cores)
    frames = given.frames or (5 if given.quick else 21)
    sizes = [read_size(text) for text in (given.sizes or ("120x160" if given.quick else "240x320,480x640")).split(",")]
    print(f"{clips} clips of {frames} frames per figure, {cores} cores, load average {os.getloadavg()[0]:.1f}\n")
    print(f"| preset | size | render, frames/s | all {cores} cores, frames/s | 200 clips of 21 frames, minutes |")
    print("| --- | --- | --- | --- | --- |")
    for height_px, width_px in sizes:
        for preset in given.presets.split(","):
            alone = render_rate(preset, frames, height_px, width_px)
            together = write_rate(preset, clips, frames, height_px, width_px)
            minutes = WHOLE_SET_FRAMES / together / 60.0
            figures = f"{alone:.2f} | {together:.2f} | {minutes:.1f}"
            print(f"| {preset} | {height_px}x{width_px} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
