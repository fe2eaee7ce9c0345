"""The `[encode]` table of a corpus recipe: what becomes latents and text embeddings, and at which rate and sizes."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, MultipleOf

from openuni.manifests.contracts.modality import modality_names
from openuni.manifests.contracts.options import Added, Execution, check_options
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.manifests.video.encode import MAX_FPS
from openuni.training.codec import LatentCodec

MAX_WINDOWS = 10_000  # per clip


@dataclass(frozen=True)
class EncodeOptions:
    """Latents and text embeddings for training."""

    latents: Annotated[str, "latent codec (see `openuni list`)"] = "dct"
    text: Annotated[str, "text codec (see `openuni list`)"] = "bytes"
    caption: Annotated[
        str,
        'caption source: an annotator column such as "caption.detailed"; empty: the captions of the clips',
    ] = ""
    modalities: Annotated[
        tuple[str, ...], 'modalities to encode; "raft.flow" selects the annotator if several produce it'
    ] = ("rgb",)
    size_px: Annotated[
        tuple[int, int] | tuple[tuple[int, int], ...],
        "height and width of the encoded video, pixels; a list of pairs: each clip gets the pair whose centre crop "
        "keeps most of its picture",
        Ge(16),
        MultipleOf(16),
    ] = (480, 832)
    frames: Annotated[
        int | tuple[int, ...],
        "maximum number of frames per window, 4k + 1; a list: each clip gets the largest number in it that fits",
        Ge(1),
    ] = 81
    fps: Annotated[
        float | None,
        "frames per second of the encoded video, at most twice the clip's own rate; default: the clip's own rate",
        Added(),
        Gt(0),
        Le(MAX_FPS),
    ] = None
    windows: Annotated[
        int, "number of windows per clip, evenly spaced from its start to its end; 1: from its start", Added(), Ge(1)
    ] = 1
    window_stride_frames: Annotated[
        int | None,
        "number of encoded frames from the start of a window to that of the next, for as many windows as fit; default: "
        "see `windows`",
        Added(),
        Ge(1),
    ] = None
    window_stride_s: Annotated[
        float | None,
        "as window_stride_frames, in seconds, rounded to whole frames (at least one); default: see `windows`",
        Added(),
        Gt(0),
    ] = None
    psnr: Annotated[
        bool,
        "whether the latents of 1 clip in 1,000, and of at least 4 clips per run, are decoded to record the PSNR",
        Execution(),
    ] = True

    def __post_init__(self) -> None:
        check_options(self, "[encode]")
        for name, values in (("frames", self.frame_counts), ("size_px", self.sizes_px)):
            if not values:
                raise OpenUniError(f"[encode] {name} = []: must have at least one entry")
            if len(set(values)) < len(values):
                raise OpenUniError(f"[encode] {name} = {_plain(values)}: an entry is given twice. Give it once.")
        for count in self.frame_counts:
            _check_frames(count, LatentCodec.stride[0], "")
        given = {"windows": self.windows != 1, "window_stride_frames": self.window_stride_frames is not None}
        given |= {"window_stride_s": self.window_stride_s is not None}
        if sum(given.values()) > 1:
            names = " and ".join(name for name, is_given in given.items() if is_given)
            raise OpenUniError(f"[encode]: {names} are given. Give one of them.")
        if self.windows > MAX_WINDOWS:
            raise OpenUniError(f"[encode] windows = {self.windows}: must be at most {MAX_WINDOWS}")
        for name in self.modalities:
            modality = name.rpartition(".")[2]
            if modality not in modality_names():
                known = ", ".join(modality_names())
                hint = did_you_mean(modality, modality_names())
                raise OpenUniError(f'[encode] modalities: "{name}" is not known.{hint} Known: {known}.')

    @property
    def sizes_px(self) -> tuple[tuple[int, int], ...]:
        """The sizes as a list, of one entry if one size is given."""
        first = self.size_px[0] if self.size_px else ()
        return self.size_px if isinstance(first, tuple) else (self.size_px,)  # type: ignore[return-value]

    @property
    def frame_counts(self) -> tuple[int, ...]:
        """The frame counts as a list, of one entry if one number is given."""
        return self.frames if isinstance(self.frames, tuple) else (self.frames,)

    @property
    def has_buckets(self) -> bool:
        """Whether clips are assigned to buckets: several sizes, or frame counts that are exact."""
        return isinstance(self.frames, tuple) or self.sizes_px != (self.size_px,)

    @property
    def has_windows(self) -> bool:
        """Whether a clip may have several windows."""
        return self.windows != 1 or self.window_stride_frames is not None or self.window_stride_s is not None

    def check_codec(self, codec: LatentCodec) -> None:
        """Raise `OpenUniError` for a size or number of frames that the codec cannot encode."""
        stride = codec.stride
        for count in self.frame_counts:
            _check_frames(count, stride[0], f" for {codec.name()}")
        for height_px, width_px in self.sizes_px:
            if height_px % stride[1] or width_px % stride[2]:
                raise OpenUniError(
                    f"[encode] size_px = [{height_px}, {width_px}]: for {codec.name()} the height must be a multiple "
                    f"of {stride[1]} and the width a multiple of {stride[2]}"
                )


def _check_frames(count: int, stride: int, codec: str) -> None:
    if (count - 1) % stride:
        near = (count - 1) // stride * stride + 1
        raise OpenUniError(
            f"[encode] frames = {count}: must be {stride}k + 1{codec}, such as {near} or {near + stride}"
        )


def _plain(values: tuple[object, ...]) -> list[object]:
    return [list(value) if isinstance(value, tuple) else value for value in values]
