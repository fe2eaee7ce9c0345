"""Errors of video files. Each message states the problem and what to do next."""

from openuni.manifests.errors import ClipError


class VideoError(ClipError):
    """A video cannot be opened, read, decoded or written."""


class NotAVideo(VideoError):
    """The file is empty, not in a supported container, or has no video stream."""


class CorruptVideo(VideoError):
    """The file is truncated or damaged: frames that it declares cannot be decoded."""


class LimitExceeded(VideoError):
    """The video is larger, longer or slower to read than `Limits` allows."""


class UnsafeSource(VideoError):
    """The URL protocol or container format is not allowed for security reasons."""


class SourceChanged(VideoError):
    """The file is readable, but its timestamps differ from those that the clip was created from."""


class ReaderMismatch(VideoError):
    """Another reader than PyAV (`[work] reader`) gives other frames than PyAV, or would."""
