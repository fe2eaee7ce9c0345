"""Limits on the resources that one video may take."""

from dataclasses import dataclass

from openuni.manifests.video.decoder.values import transferable


@transferable
@dataclass(frozen=True)
class Limits:
    """Resource limits for one video. Raise them in code for trusted sources."""

    max_pixels: int = 8192 * 8192  # width times height of a frame
    max_duration_s: float = 12 * 3600.0
    max_frame_count: int = 3_000_000
    max_probe_s: float = 120.0  # wall time for opening a file and listing its timestamps
    max_decoded_bytes: int = 16 * 2**30  # size of all frames of one decode
    max_stall_s: float = 60.0  # wall time without a packet or frame, after which the decoder process is ended
    max_decode_s: float = 4 * 3600.0  # wall time of one decode, without the time for which its frames wait to be used
    max_decoder_bytes: int = 4 * 2**30  # memory of the decoder process, in addition to the frames that it returns
