"""Surface normals computed geometrically from depth, without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Interval

from openuni.annotators._temporal_consistency import WarpedChange, normal_angle_deg
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.errors import ClipError, OpenUniError, Unavailable
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.normal import Normal

SAME_BEND = 3.0  # maximum curvature across a pixel relative to that of its flatter side, for a common surface
BEND_TOLERANCE = 1e-4  # curvature of 1 / depth that may come from 16-bit quantization


class NormalsOfDepth(NamedTuple):
    """Normals of the surface defined by the depth map, and their temporal consistency."""

    normal: Normal
    flow_change_deg: Annotated[
        float | None,
        "change of the direction along the optical flow, degrees: median over pixels with valid flow, mean over "
        "adjacent frames; null without valid flow",
    ]


@dataclass(frozen=True)
class NormalsFromDepth(Annotator):
    """Surface normals from a depth map, as the cross product of the two tangents at each pixel.

    The accuracy is that of the depth map: detail that it lacks is also missing in the normals. Camera space, +x right,
    +y up, +z to the viewer, unit length, at the size of the depth map.

    Tangents are central differences of the 3D points. At depth discontinuities, a one-sided difference is taken on the
    side with less curvature of 1 / depth (which is linear across a plane), so normals do not mix two surfaces.

    The camera model is a pinhole with square pixels and a centred principal point. The field of view must be known;
    errors in it tilt the normals. Metric depth is used as is. Disparity has an unknown scale, which does not affect
    normals, and an unknown shift, which does: set `far_near_ratio` to an assumed value, or clips with disparity are
    `unavailable`.
    """

    depth: Annotated[str, 'input depth: "depth", or "ANNOTATOR.depth" if there are several'] = "depth"
    view_deg: Annotated[float, "horizontal field of view, degrees", Interval(gt=0, lt=180)] = 55.0
    focal_px: Annotated[float, "focal length in pixels of the source video; 0: computed from `view_deg`", Ge(0)] = 0.0
    far_near_ratio: Annotated[
        float,
        "assumed ratio of the largest to the smallest depth in a clip with disparity, at least 1; 0: unknown",
        Ge(0),
    ] = 0.0

    origin: ClassVar[str] = "geometry: cross product of the tangents of a depth map under a pinhole camera"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.far_near_ratio != 0 and not self.far_near_ratio >= 1:
            given = f"far_near_ratio = {self.far_near_ratio:g}"
            raise OpenUniError(f"normals_from_depth: {given}. Allowed: at least 1, or 0 if unknown.")

    def requires(self) -> Sequence[str]:
        """The input depth."""
        return (self.depth,)

    def run(self, model: Any, clip: DecodedClip) -> NormalsOfDepth:
        """Normals float32 [T, H, W, 3] at the size of the depth map.

        Raises `Unavailable` for disparity without `far_near_ratio`.
        """
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "NormalWindows":
        """See `Operator.start_windows`. The depth of all windows has the constants of the clip's stored map."""
        return NormalWindows(self)

    def normals_of(self, clip: DecodedClip) -> Normal:
        """Normals of the clip's new frames."""
        depth = clip.maps["depth"]
        if not isinstance(depth, Depth):
            raise ClipError(f"normals_from_depth: expected a depth map, got {type(depth).__name__}")
        focal_px = self._focal_px(depth, clip)
        inverse = self._inverse(depth)[clip.overlap_frames :]
        return Normal(np.stack([normals(image, focal_px) for image in inverse]))

    def _focal_px(self, depth: Depth, clip: DecodedClip) -> float:
        """Focal length in pixels of the depth map."""
        width_px = depth.size_px[1]
        if self.focal_px:
            return self.focal_px * width_px / clip.clip.width_px
        return float(width_px / 2 / np.tan(np.radians(self.view_deg) / 2))

    def _inverse(self, depth: Depth) -> np.ndarray:
        """1 / depth up to a factor, float32 [T, H, W]."""
        if depth.unit == "metres":
            inverse: np.ndarray = 1 / depth.array[..., 0]
            return inverse
        if not self.far_near_ratio:
            raise Unavailable(
                "normals_from_depth: the depth is disparity with an unknown shift, for which normals are undefined. "
                "Use metric depth (a metric checkpoint), or set far_near_ratio to an assumed value, such as 10."
            )
        constants = depth.constants()
        if constants.hi == constants.lo:
            return np.ones(depth.array.shape[:3], np.float32)
        share = (depth.array[..., 0] - constants.lo) / (constants.hi - constants.lo)
        farthest = 1 / self.far_near_ratio  # with the nearest point at 1
        scaled: np.ndarray = farthest + share * np.float32(1 - farthest)
        return scaled


class NormalWindows(WindowedRun[NormalsOfDepth]):
    """Normals of the new frames of each window, and their temporal consistency."""

    def __init__(self, operator: NormalsFromDepth) -> None:
        self.operator, self.change = operator, WarpedChange(normal_angle_deg)

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        found = self.operator.normals_of(window)
        self.change.add(window, found)
        return {"normal": found}

    def result(self) -> NormalsOfDepth:
        """See `WindowedRun.result`."""
        return NormalsOfDepth(None, self.change.mean())  # type: ignore[arg-type]  # `add` has returned all maps


def normals(inverse: np.ndarray, focal_px: float) -> np.ndarray:
    """Normals float32 [H, W, 3] (+x right, +y up, +z to the viewer) of a map of 1 / depth.

    `inverse`: float [H, W], above 0, up to a factor. With w = 1 / depth, the cross product of the tangents of the
    points (x, y, 1) / w is (w_x, w_y, w - x w_x - y w_y) up to a factor. This is exact for planes, where w is linear.
    """
    w = inverse.astype(np.float64)
    height_px, width_px = w.shape
    x = (np.arange(width_px) + 0.5 - width_px / 2) / focal_px
    y = ((np.arange(height_px) + 0.5 - height_px / 2) / focal_px)[:, None]
    across, down = slopes(w) * focal_px, slopes(w.T).T * focal_px
    facing = w - x * across - y * down
    vector = np.stack([-across, down, facing], axis=-1)  # facing the viewer, y up
    unit: np.ndarray = vector / np.linalg.norm(vector, axis=-1, keepdims=True)
    return unit.astype(np.float32)


def slopes(w: np.ndarray) -> np.ndarray:
    """Horizontal derivative of float64 [H, W]: central differences, one-sided at discontinuities.

    The difference is central if the curvature (second difference) across the pixel is not much larger than on its
    flatter side. Otherwise it is taken on the flatter side.
    """
    width = w.shape[1]
    if width < 3:
        return np.repeat(np.diff(w, axis=1), width, axis=1) if width == 2 else np.zeros_like(w)
    step = np.diff(w, axis=1)  # [:, i]: from i to i + 1
    bend = np.abs(np.diff(step, axis=1))  # [:, i]: around i + 1
    nothing = np.full((len(w), 1), np.inf)  # beyond the border
    around = np.concatenate([nothing, bend, nothing], axis=1)
    left = np.concatenate([nothing, around[:, :-1]], axis=1)  # over the two neighbours to the left
    right = np.concatenate([around[:, 1:], nothing], axis=1)
    before, after = np.pad(step, ((0, 0), (1, 0)), mode="edge"), np.pad(step, ((0, 0), (0, 1)), mode="edge")
    one_sided = np.where(left < right, before, after)
    central = around <= SAME_BEND * np.minimum(left, right) + BEND_TOLERANCE * np.abs(w)
    found: np.ndarray = np.where(central, (before + after) / 2, one_sided)
    return found
