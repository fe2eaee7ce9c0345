"""Motion vectors of video codecs, available at no extra cost when a video is decoded."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openuni.manifests.video.decoder.values import transferable
from openuni.manifests.video.side_data import side_data

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Codecs whose FFmpeg decoders export motion vectors. Those of HEVC, VP9 and AV1 do not.
CODECS = frozenset({"h264", "mpeg4", "mpeg1video", "mpeg2video", "h263", "flv1", "msmpeg4v3", "wmv2"})


@transferable
class MotionVectors(NamedTuple):
    """The N predicted blocks of a frame, in pixels of the stored picture (before scaling and rotation).

    Blocks predicted from two frames are listed twice, intra-coded blocks are not listed.
    """

    centres_px: np.ndarray  # int32 [N, 2]: x, y of the block's centre in this frame
    sizes_px: np.ndarray  # int32 [N, 2]: width, height
    shifts_px: np.ndarray  # float32 [N, 2]: displacement (right, down) from the reference frame to this frame
    from_later: np.ndarray  # bool [N]: the reference frame is displayed after this one
    width_px: int
    height_px: int


def frame_motion_vectors(frame: "VideoFrame") -> MotionVectors | None:
    """Motion vectors of a decoded frame; None if it is intra-coded or its decoder exports none."""
    data: Any = side_data(frame, "MOTION_VECTORS")
    if data is None:
        return None
    table = data.to_ndarray()
    scale = np.maximum(table["motion_scale"], 1).astype(np.float32)
    return MotionVectors(
        centres_px=np.stack([table["dst_x"], table["dst_y"]], axis=1).astype(np.int32),
        sizes_px=np.stack([table["w"], table["h"]], axis=1).astype(np.int32),
        shifts_px=-np.stack([table["motion_x"], table["motion_y"]], axis=1).astype(np.float32) / scale[:, None],
        from_later=table["source"] > 0,
        width_px=frame.width,
        height_px=frame.height,
    )
