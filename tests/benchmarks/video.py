"""How fast our reader decodes whole clips and two frames per second, against decord and OpenCV, and whether they agree.

    python -m tests.benchmarks.video FOLDER [--rounds 3] [--threads 2]

Videos at their own size, to RGB. Times are minima over rounds in which all readers take turns, opening included. "off":
mean absolute difference of the frames to ours, in 8-bit levels; a reader that gives other frames, or none, says so.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.probe import make_clip, probe

SPARSE_PER_S = 2.0

Reader = Callable[[Clip, np.ndarray, int], np.ndarray]


def ours(clip: Clip, indices: np.ndarray, threads: int) -> np.ndarray:
    """`openuni.manifests.video.reader`: exact by timestamp, rounded conversion."""
    return decode(clip, indices, threads=threads).frames


def by_decord(clip: Clip, indices: np.ndarray, threads: int) -> np.ndarray:
    """decord's VideoReader."""
    import decord

    return np.asarray(decord.VideoReader(clip.source, num_threads=threads).get_batch(indices).asnumpy())


def by_opencv(clip: Clip, indices: np.ndarray, threads: int) -> np.ndarray:
    """OpenCV's VideoCapture, which is exact only when it reads on from the start."""
    import cv2

    cv2.setNumThreads(threads)
    capture = cv2.VideoCapture(clip.source)
    wanted, frames = set(indices.tolist()), []
    for number in range(int(indices[-1]) + 1):
        if not capture.grab():
            raise ValueError(f"ends at frame {number}")
        if number in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames)


READERS: dict[str, Reader] = {"ours": ours, "decord": by_decord, "OpenCV": by_opencv}


def agreement(frames: np.ndarray, truth: np.ndarray) -> str:
    """How far frames are from ours, and how many are nearer to the one before or after."""
    if frames.shape != truth.shape:
        return f"shape {frames.shape}, ours {truth.shape}"

    def off(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.array([np.abs(a.astype(np.int16) - b).mean() for a, b in zip(one, other, strict=True)])

    same = off(frames, truth)
    others = int((off(frames[1:], truth[:-1]) < same[1:]).sum() + (off(frames[:-1], truth[1:]) < same[:-1]).sum())
    return f"{same.mean():.2f}" + (f", {others} other frames" if others else "")


def measure(clip: Clip, indices: np.ndarray, rounds: int, threads: int) -> dict[str, tuple[float, str]]:
    """Per reader: seconds (infinite when it failed), and what is to be said of its frames."""
    import cv2
    from decord import DECORDError

    best = dict.fromkeys(READERS, float("inf"))
    said: dict[str, str] = {}
    truth = ours(clip, indices, threads)
    for _ in range(rounds):
        for name, read in READERS.items():
            if said.get(name, "").startswith("fails"):
                continue
            started = time.perf_counter()
            try:
                frames = read(clip, indices, threads)
            except (ValueError, IndexError, cv2.error, DECORDError) as error:
                said[name] = f"fails: {type(error).__name__}"
                continue
            best[name] = min(best[name], time.perf_counter() - started)
            said[name] = agreement(frames, truth)
    return {name: (best[name], said[name]) for name in READERS}


def main() -> None:
    """One line per video and way of access."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    for path in sorted(given.folder.iterdir()):
        if path.suffix not in (".mp4", ".mkv", ".webm", ".avi", ".mov"):
            continue
        info = probe(str(path))
        clip = make_clip(str(path), info)
        count = clip.frame_count
        sparse = np.unique(np.linspace(0, count - 1, max(2, round(clip.duration_s * SPARSE_PER_S))).astype(np.int64))
        for way, indices in (("whole", np.arange(count)), ("sparse", sparse)):
            found = measure(clip, indices, given.rounds, given.threads)
            own = found["ours"][0]
            parts = [
                f"{name} {seconds:.2f} s ({seconds / own:.2f} of ours; off {text})"
                if np.isfinite(seconds)
                else f"{name} {text}"
                for name, (seconds, text) in found.items()
                if name != "ours"
            ]
            size = f"{clip.codec} {clip.width_px}x{clip.height_px}"
            print(f"{path.name:<24}{size:<16}{way:<7}{len(indices):>5} frames  ours {own:.2f} s  {'  '.join(parts)}")


if __name__ == "__main__":
    main()
