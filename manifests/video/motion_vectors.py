"""Motion vectors that a codec stored to predict a frame from others: free of charge where a video is decoded anyway."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# FFmpeg's names of the codecs whose decoders hand their vectors out. HEVC, VP9 and AV1 have vectors and keep them.
CODECS = frozenset({"h264", "mpeg4", "mpeg1video", "mpeg2video", "h263", "flv1", "msmpeg4v3", "wmv2"})


class MotionVectors(NamedTuple):
    """The N predicted blocks of one frame, in pixels of the picture as stored: before scaling and before rotation.

    A block that is predicted from two frames is listed twice. Blocks coded without prediction are not listed.
    """

    centres_px: np.ndarray  # int32 [N, 2]: x, y of each block's centre in this frame
    sizes_px: np.ndarray  # int32 [N, 2]: width, height
    shifts_px: np.ndarray  # float32 [N, 2]: right, down, from the block's place in the other frame to that in this one
    from_later: np.ndarray  # bool [N]: the other frame is shown after this one
    width_px: int
    height_px: int


def frame_motion_vectors(frame: "VideoFrame") -> MotionVectors | None:
    """The vectors of a decoded frame; None where it has none: it is coded by itself, or its codec gives none out."""
    data: Any = frame.side_data.get("MOTION_VECTORS")
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
