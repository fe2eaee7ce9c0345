"""Decoding on an NVIDIA GPU (NVDEC), by the FFmpeg in PyAV. Its frames are those of the CPU decoders, bit for bit.

The file is opened, listed, sought and converted to RGB as ever; only the decoder of the stream is another one. NVDEC
gives NV12 or P010 instead of planar YUV, of which libswscale makes the same RGB.
"""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from openuni.manifests.errors import MissingRequirement
from openuni.manifests.video.decoder.memory import data_bytes
from openuni.manifests.video.decoder.process import isolated
from openuni.manifests.video.frames import is_interlaced
from openuni.manifests.video.video_errors import CorruptVideo

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Their standards define every bit of a decoded frame; MPEG-2 and MPEG-4 leave the rounding of the transform open.
# AV1 is decoded by dav1d, which has no hardware form.
CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
FORMATS = frozenset({"nv12", "p010le"})  # 4:2:0 with 8 and 10 bits
MAX_LEVELS = 0  # by which a frame may differ from the CPU decoder's


class HardwareRefused(CorruptVideo):
    """NVDEC does not decode this stream; the CPU does, or says what is wrong with it."""


def hardware() -> Any:
    """How PyAV is to open a video so that NVDEC decodes it. Raises `MissingRequirement` where none can be used."""
    problem = nvdec_problem()
    if problem:
        raise MissingRequirement(f'[work] reader = "nvdec": {problem}')
    return _accelerator()


@cache
def nvdec_problem() -> str:
    """Why this process cannot decode with NVDEC, and what to do; empty if it can."""
    import av
    from av.codec.hwaccel import hwdevices_available

    if "cuda" not in hwdevices_available():
        return f"PyAV {av.__version__} was built without CUDA. Install its wheel: pip install --force-reinstall av"
    try:
        _device()
    except (av.FFmpegError, OSError) as error:
        return (
            f"FFmpeg cannot open an NVIDIA GPU here ({error.strerror or error}). Check nvidia-smi, or use reader = "
            '"pyav". In a container the driver needs the "video" capability (NVIDIA_DRIVER_CAPABILITIES).'
        )
    return ""


@isolated
def decoder_nvdec_problem(where: str = "NVDEC") -> str:
    """`nvdec_problem` of a decoder process: this one may use the GPU otherwise. `where`: a name for messages."""
    return nvdec_problem()


@cache
def _device() -> tuple[Any, int]:
    """The GPU, kept open: all videos use its primary context, which takes long to create. And the memory that took."""
    import av

    before = data_bytes()
    device = _accelerator().create(av.Codec("h264", "r"))
    return device, data_bytes() - before


def device_bytes() -> int:
    """Private memory of this process that the driver took when the GPU was opened."""
    return _device()[1] if _device.cache_info().currsize else 0


def _accelerator() -> Any:
    from av.codec.hwaccel import HWAccel

    return HWAccel("cuda", allow_software_fallback=False, options={"primary_ctx": "1"})


def require_supported(source: str, stream: "VideoStream", *, on_gpu: bool) -> None:
    """Raise `HardwareRefused` if NVDEC is not to decode the stream."""
    codec = stream.codec_context
    if codec.name not in CODECS or (on_gpu and not codec.is_hwaccel):
        raise HardwareRefused(f"{source}: NVDEC is not used for {codec.name}")


def hardware_frames(source: str, frames: Iterator["VideoFrame"], *, on_gpu: bool) -> Iterator["VideoFrame"]:
    """The same frames; those that NVDEC cannot give rightly raise `HardwareRefused`."""
    import av

    try:
        for frame in frames:
            if on_gpu and frame.format.name not in FORMATS:
                raise HardwareRefused(f"{source}: NVDEC gave {frame.format.name}")
            if is_interlaced(frame, ""):
                raise HardwareRefused(f"{source} is interlaced")
            yield frame
    except av.FFmpegError as error:  # such as a profile or size that this GPU lacks
        raise HardwareRefused(f"{source}: NVDEC failed ({error.strerror})") from error
