"""Side data of types that PyAV has no name for does not hide the display matrix, nor fail the clip."""

import struct
from pathlib import Path

import av
import pytest
from av.sidedata.sidedata import Type

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.motion_vectors import frame_motion_vectors
from openuni.manifests.video.probe import probe_clip
from openuni.manifests.video.side_data import side_data
from tests.coded_clips import HEIGHT_PX, WIDTH_PX, encode, numbers

EXIF = 31  # FFmpeg's AV_FRAME_DATA_EXIF


def app1(orientation: int) -> bytes:
    """A JPEG segment with one EXIF entry, the orientation."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    return b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif


def with_exif(folder: Path, orientation: int) -> Path:
    """Four frames of MJPEG in MOV, as cameras write them: every frame has EXIF data."""
    plain, path = encode(folder / "plain.mov", "mjpeg", range(4), {"pix_fmt": "yuvj420p"}), folder / "exif.mov"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                data = bytes(packet)
                changed = av.Packet(data[:2] + app1(orientation) + data[2:])
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.duration, changed.is_keyframe, changed.stream = packet.duration, True, stream
                target.mux(changed)
    return path


@pytest.mark.parametrize(("orientation", "size"), [(1, (HEIGHT_PX, WIDTH_PX)), (6, (WIDTH_PX, HEIGHT_PX))])
def test_frames_with_exif_are_decoded_and_displayed_as_it_says(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    path = with_exif(tmp_path, orientation)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame_motion_vectors(frame) is None and side_data(frame, "STEREO3D") is None
        assert EXIF in [entry.type.value for entry in frame.side_data]
    frames = decode(probe_clip(str(path))).frames
    assert frames.shape == (4, *size, 3)
    assert numbers(frames if orientation == 1 else frames.swapaxes(1, 2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [28, 29, 30, 31, 1000])
def test_types_of_later_versions_have_a_name(tmp_path: Path, value: int) -> None:
    decode(probe_clip(str(encode(tmp_path / "clip.mp4", times=range(2)))))
    assert Type(value).value == value and Type(value).name == f"UNKNOWN_{value}"
    assert Type(6) is Type.DISPLAYMATRIX
    with pytest.raises(ValueError, match="not a valid Type"):
        Type("view")
