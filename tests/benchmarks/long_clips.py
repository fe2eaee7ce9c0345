"""A long video as one clip: peak memory, time and results of the filters without weights and of `dis`.

`python -m tests.benchmarks.long_clips --seconds 7200` writes the video (a texture that pans one pixel per frame), runs
the pipeline in a process of its own, without Ray, and prints what it measured as JSON.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openuni.config.recipe import WorkOptions
from openuni.manifests.video.encode import write_video
from tests.moving_pictures import texture

FILTERS = (
    "motion",
    "motion_vectors",
    "luminance",
    "sharpness",
    "still",
    "resolution",
    "flow_score",
    "perceptual_hash",
    "ocr",
)


def write_panning(path: Path, frames: int, fps: float, height_px: int = 96, width_px: int = 128) -> None:
    """A texture that moves one pixel to the right per frame and comes in again at the left."""
    image = texture(height_px, width_px).astype(np.uint16)
    image = ((image + image[:, ::-1]) // 2).astype(np.uint8)  # equal at both ends: no seam

    def panned() -> Iterator[np.ndarray]:
        return (np.roll(image, number, axis=1) for number in range(frames))

    write_video(path, panned(), fps, crf=23)


def measure(video: Path, out: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Run the pipeline on the video as one clip; peak memory of the process, seconds, and rows by operator."""
    import openuni

    started = time.perf_counter()
    corpus = openuni.run(recipe, str(video), out=out)  # without Ray
    rows = {}
    for kind, group in (("filters", "filters"), ("annotators", "annotations")):
        rows |= {name: corpus.table(f"{group}/{name}").to_pylist()[0][name] for name in recipe.get(kind, {})}
    status = Path("/proc/self/status").read_text()  # `ru_maxrss` would begin with that of the process that forked it
    (peak_kb,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return {
        "clips": corpus.table("clips").num_rows,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time(),
        "peak_rss_gb": peak_kb * 1024 / 1e9,
        "rows": rows,
    }


def measure_in_own_process(video: Path, out: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`measure`, with the memory of nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (video, out, recipe))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=7200)
    parser.add_argument("--fps", type=float, default=12)
    parser.add_argument("--size", default="96x128", help="height x width, pixels")
    parser.add_argument("--max-decoded-gb", type=float, default=WorkOptions.max_decoded_gb)
    parser.add_argument("--annotators", default="dis", help="names, with commas between")
    parser.add_argument("--preset", default="fast", help="of dis")
    options = parser.parse_args()
    annotators = {name: {"preset": options.preset} if name == "dis" else {} for name in options.annotators.split(",")}
    recipe = {
        "filters": {name: {} for name in FILTERS},
        "annotators": annotators,
        "work": {"max_decoded_gb": options.max_decoded_gb},
    }
    height_px, width_px = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "long.mp4"
        write_panning(video, round(options.seconds * options.fps), options.fps, height_px, width_px)
        print(json.dumps(measure_in_own_process(video, Path(folder) / "corpus", recipe), indent=1))


if __name__ == "__main__":
    main()
