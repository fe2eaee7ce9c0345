"""Perceptual hashes of sampled frames, for near-duplicate detection by `openuni duplicates`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters._samples import at_most
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import sample_evenly
from openuni.manifests.contracts.window_filter import WindowFilter

PICTURE_PX = 32  # side of the hashed image
FREQUENCIES = 8  # number of lowest frequencies along each axis
MIN_CONTRAST = 2.0  # minimum standard deviation of the hashed image, of 255


class Scores(NamedTuple):
    """Hashes of the sampled frames."""

    hashes: Annotated[
        list[int], "64-bit hashes of the sampled frames in order, as signed integers; flat frames are skipped"
    ]


@dataclass(frozen=True)
class PerceptualHash(WindowFilter):
    """DCT hash of each sampled frame: near-duplicates differ in few of 64 bits, unrelated images in about half.

    Each frame is reduced to 32 x 32 grey pixels. A bit is set if one of the 64 lowest DCT coefficients (without the
    mean) exceeds their median. For most images, re-encoding, scaling and changes of brightness or contrast flip 0 to 4
    bits, cropping of 1 % per side about 2, of 2 % about 6. The hash is not robust to mirroring, rotation and large
    crops. Frames without contrast (black, uniform fades) have no hash: they would all match each other.
    """

    frames_per_s: Annotated[float, "hashed frames per second of the clip", Gt(0)] = 1.0
    max_frames: Annotated[int, "maximum number of hashed frames per clip, evenly spaced", Ge(1)] = 32

    origin: ClassVar[str] = (
        "DCT image hash, Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions"
    )

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Frames nearest to an even grid in time."""
        return at_most(sample_evenly(times_s, self.frames_per_s), self.max_frames)

    def measure(self, model: Any, clip: DecodedClip) -> Sequence[int]:
        """Hashes of the frames that have one."""
        found = (frame_hash(frame) for frame in clip.new_frames)
        return [value for value in found if value is not None]

    def summarize(self, measured: Sequence[int]) -> Scores:
        """Hashes of the frames."""
        return Scores(list(measured))


def frame_hash(frame: np.ndarray) -> int | None:
    """Hash of a frame (uint8 [H, W, 3]) as a signed 64-bit integer; None for a frame without contrast."""
    import cv2

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (PICTURE_PX, PICTURE_PX), interpolation=cv2.INTER_AREA)
    if small.std() < MIN_CONTRAST:
        return None
    low = cv2.dct(small)[: FREQUENCIES + 1, : FREQUENCIES + 1].ravel()[1 : FREQUENCIES**2 + 1]
    return int(np.packbits(low > np.median(low)).view(">i8")[0])
