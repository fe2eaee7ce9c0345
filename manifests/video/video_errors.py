"""What can be wrong with a video: each error says what was found and what to do."""

from openuni.manifests.errors import ClipError


class VideoError(ClipError):
    """A video cannot be opened, read, decoded or written; the text says what was found and what to do."""


class NotAVideo(VideoError):
    """Empty, not a container we read, or without a video stream."""


class CorruptVideo(VideoError):
    """Truncated or damaged: frames that the file promises cannot be had."""


class LimitExceeded(VideoError):
    """Larger, longer or slower than `Limits` allows."""


class UnsafeSource(VideoError):
    """A URL protocol or a container format that is not opened for safety."""


class SourceChanged(VideoError):
    """The file is readable but its timestamps are not those the clip was made from."""
