"""A long video as one clip: peak memory, time and results of the filters without weights and of `dis`.

`python -m tests.benchmarks.long_clips --seconds 7200` writes the video (12 fps, 128 x 96, a texture that pans one pixel
per frame), runs the pipeline in a process of its own, without Ray, and prints what it measured as JSON.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openuni.manifests.video.encode import write_video
from tests.moving_pictures import texture

HEIGHT_PX, WIDTH_PX, FPS = 96, 128, 12
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


def panning(count: int) -> Iterator[np.ndarray]:
    """Frames of a texture that moves one pixel to the right per frame and comes in again at the left."""
    image = texture(HEIGHT_PX, WIDTH_PX)
    image = ((image.astype(np.uint16) + image[:, ::-1]) // 2).astype(np.uint8)  # equal at both ends: no seam
    for number in range(count):
        yield np.roll(image, number, axis=1)


def measure(video: Path, out: Path, max_decoded_gb: float, preset: str) -> dict[str, Any]:
    """Run the pipeline on the video as one clip; peak memory of the process, seconds, and rows by operator."""
    import openuni

    recipe = {
        "filters": {name: {} for name in FILTERS},
        "annotators": {"dis": {"preset": preset}},
        "work": {"max_decoded_gb": max_decoded_gb},
    }
    started = time.perf_counter()
    corpus = openuni.run(recipe, str(video), out=out)  # without Ray
    rows = {name: corpus.table(f"filters/{name}").to_pylist()[0][name] for name in FILTERS}
    rows["dis"] = corpus.table("annotations/dis").to_pylist()[0]["dis"]
    return {
        "clips": corpus.table("clips").num_rows,
        "seconds": time.perf_counter() - started,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "rows": rows,
    }


def measure_in_own_process(video: Path, out: Path, max_decoded_gb: float, preset: str = "fast") -> dict[str, Any]:
    """`measure`, with the memory of nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (video, out, max_decoded_gb, preset))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=7200)
    parser.add_argument("--max-decoded-gb", type=float, default=0.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "long.mp4"
        write_video(video, panning(options.seconds * FPS), FPS, crf=23)
        print(json.dumps(measure_in_own_process(video, Path(folder) / "corpus", options.max_decoded_gb), indent=1))


if __name__ == "__main__":
    main()
