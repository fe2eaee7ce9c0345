"""Side data of decoded frames, such as display matrices, beside types that PyAV does not know."""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


def side_data(frame: "VideoFrame", name: str) -> Any:
    """The frame's side data of the type `name` (as in `av.sidedata.sidedata.Type`), or None.

    `frame.side_data` would keep the container in the frame, which it refers to: such a cycle holds the decoded picture
    until the garbage collector runs, hundreds of frames later.
    """
    from av.sidedata.sidedata import SideDataContainer

    _accept_unknown_types()
    return SideDataContainer(frame).get(name)  # type: ignore[call-arg]  # the stubs lack its __init__


@cache
def _accept_unknown_types() -> None:
    """Let PyAV list side data of types that it has no name for.

    FFmpeg has more types than PyAV's enumeration (view ids of MV-HEVC, EXIF of JPEG, LCEVC). PyAV builds the list of a
    frame's side data as a whole, so that one unknown type makes the known ones unreadable.
    """
    from av.sidedata.sidedata import Type

    def unnamed(cls: type[Type], value: object) -> Type | None:
        if not isinstance(value, int):
            return None
        member = object.__new__(cls)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value  # type: ignore[assignment]
        return member

    Type._missing_ = classmethod(unnamed)  # type: ignore[method-assign, assignment]
