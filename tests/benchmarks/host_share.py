"""What segmentation, pose and DensePose annotators leave to the host: CPU seconds per clip, and waits for the device.

`python -m tests.benchmarks.host_share`. No GPU is needed. The host's share of `sam` is measured on a made clip of 81
frames of 480 x 832 px with about 100 regions that move, whose masks are ready: merging, appearances, propagation along
the flow, linking, the table. Waits are counted with tiny networks (`tests/device_waits.py`): on a GPU each one ends the
overlap of host and device. They depend on frames and batches, not on the size of a network.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from openuni.annotators._automatic_masks import Masks
from openuni.annotators._guide_flow import guide_flow
from openuni.annotators._instances import FrameInstances, keyframe_indices
from openuni.annotators.sam import Sam
from openuni.manifests.contracts.decoded_clip import DecodedClip
from tests.annotators import test_densepose, test_dwpose, test_sam, test_sam2
from tests.device_waits import Waits
from tests.moving_pictures import panned, texture

FRAMES, HEIGHT_PX, WIDTH_PX, REGIONS, FPS = 81, 480, 832, 100, 16.0


@dataclass(frozen=True)
class ReadySam(Sam):
    """`sam` whose network has answered already: the model is a table of masks by the address of the frame."""

    def segment_frames(self, model: Any, frames: Sequence[np.ndarray]) -> list[FrameInstances]:
        return [self.instances_of(model[frame.ctypes.data]) for frame in frames]


def regions_in_motion() -> tuple[DecodedClip, dict[int, Masks]]:
    """A textured clip that pans, and the masks of its keyframes: cells around points, one in nine missing."""
    margin = 2 * FRAMES
    rng = np.random.default_rng(0)
    big = texture(HEIGHT_PX + margin, WIDTH_PX + margin, seed=0)
    y, x = np.mgrid[: big.shape[0], : big.shape[1]]
    nearest, cells = np.full(big.shape[:2], np.inf), np.zeros(big.shape[:2], np.uint16)
    for number in range(1, REGIONS + 1):
        away = np.hypot(x - rng.integers(big.shape[1]), y - rng.integers(big.shape[0]))
        np.copyto(cells, np.uint16(number), where=away < nearest)
        nearest = np.minimum(nearest, away)
    frames = np.stack([big[at : at + HEIGHT_PX, 2 * at : 2 * at + WIDTH_PX] for at in range(FRAMES)])
    clip, ready = DecodedClip.from_frames(frames, fps=FPS), {}
    for at in keyframe_indices(clip.times_s, Sam.keyframe_interval_s).tolist():
        shown = cells[at : at + HEIGHT_PX, 2 * at : 2 * at + WIDTH_PX]
        masks = np.stack([shown == number for number in np.unique(shown) if (int(number) + at) % 9])
        count = len(masks)
        rest = np.ones(count), np.zeros((count, 4), np.int64), np.zeros((count, 2))
        ready[clip.frames[at].ctypes.data] = Masks(masks, np.linspace(0.9, 0.99, count), *rest)
    return clip, ready


def linking_cpu_s(rounds: int) -> float:
    """CPU seconds of one thread for all that `sam` does after the network, without the guide flow: least of rounds."""
    clip, ready = regions_in_motion()
    guide_flow(clip)
    operator, seconds = ReadySam(checkpoint="ready.pth"), []
    for _ in range(rounds + 1):  # the first imports
        start = time.process_time()
        operator.run(ready, clip)
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def waits_of(operator: Any, clip: DecodedClip) -> int:
    """Waits for the device in one clip, after a first run in which libraries fill their caches."""
    model = operator.load("cpu")
    operator.run(model, clip)
    with Waits() as waits:
        operator.run(model, clip)
    return waits.total


def main() -> None:
    """Print both tables."""
    os.environ["OPENUNI_THREADS"] = "1"
    print(f"sam, host: {linking_cpu_s(rounds=3):.2f} CPU seconds per clip of {FRAMES} frames, {REGIONS} regions")
    print("| annotator | clip | waits for the device |\n| --- | --- | --- |")
    frames = panned([(2 * at, at) for at in range(17)], 64, 96)
    clip = DecodedClip.from_frames(frames, fps=FPS)
    with TemporaryDirectory() as name:
        folder = Path(name)
        loose = {"keyframe_interval_s": 0.25, **test_sam.LOOSE}
        for side in (4, 8):
            sam = Sam(checkpoint=test_sam.saved(folder), **{**loose, "points_per_side": side, "points_per_batch": 4})
            print(f"| sam, {side * side} points in batches of 4 | 17 frames, 5 keyframes | {waits_of(sam, clip)} |")
        for batch in (4, 8):
            checkpoint = test_sam2.saved(folder)
            sam2 = test_sam2.Sam2(
                checkpoint=checkpoint, keyframe_interval_s=1.0, frames_per_batch=batch, **test_sam2.LOOSE
            )
            print(f"| sam2, {batch} frames in a batch | 17 frames, 2 keyframes | {waits_of(sam2, clip)} |")
        test_dwpose.write_networks(folder)
        persons = DecodedClip.from_frames(np.stack([test_dwpose.frame_with((4, 5), (15, 9))] * 16), fps=FPS)
        for batch in (4, 16):
            dwpose = test_dwpose.Dwpose(checkpoint=str(folder), backend="torch", frames_per_batch=batch)
            print(f"| dwpose, {batch} images in a batch | 16 frames, 32 persons | {waits_of(dwpose, persons)} |")
        both = test_densepose.picture((20, 30, 44, 52), (5, 60, 30, 80))
        shown = DecodedClip.from_frames(np.stack([both] * 16), fps=FPS)
        densepose = test_densepose.Densepose(checkpoint=test_densepose.export(folder, test_densepose.TableExport()))
        with Waits() as network:
            model, given = (
                densepose.load("cpu")[0],
                test_densepose.torch.from_numpy(both.transpose(2, 0, 1)[::-1].copy()),
            )
            for _ in range(16):
                model(given)
        beside = waits_of(densepose, shown) - network.total
        print(f"| densepose, beside the network's own | 16 frames, 32 persons | {beside} |")


if __name__ == "__main__":
    main()
