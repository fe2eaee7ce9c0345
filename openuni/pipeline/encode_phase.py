"""The encode phase: latents of every modality and embeddings of every caption, in shards the trainer reads."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from openuni.config.encode_options import EncodeOptions
from openuni.manifests.contracts import schema
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.modality import Modality, find_modality
from openuni.manifests.contracts.options import recorded
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.corpus.shards import SafetensorsShard, checksum
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.decoder.limits import Limits
from openuni.manifests.video.encode import exact_fps
from openuni.manifests.video.reader import frame_times
from openuni.pipeline.batching.video_batches import EncodedStream, VideoBatches
from openuni.pipeline.encoding.quality import decoded_psnr_db, is_drawn
from openuni.pipeline.encoding.reading import decoded_windows, stored_windows
from openuni.pipeline.encoding.windows import ClipWindows, windows_of
from openuni.pipeline.failures import format_error
from openuni.pipeline.phases import ClipItem, CorpusWorker
from openuni.pipeline.planning.map_sources import MapSource
from openuni.pipeline.worker import ItemOutcome, Spec
from openuni.training.codec import LatentCodec, TextCodec

RESIZE_POLICY = "cover and crop the centre; the first 4k + 1 frames"
TEXT = "text"  # stands for the caption among the streams to encode


@dataclass(frozen=True)
class EncodeStream:
    """One thing to encode of every clip: a modality by one annotator, the source's pixels, or the caption."""

    modality: str  # or TEXT
    annotator: str  # "" for the source's own pixels and captions
    group: str  # column group it goes to
    version: str


@dataclass(frozen=True)
class EncodeSpec(Spec):
    """Run codecs over clips."""

    corpus_url: str
    options: EncodeOptions
    latent_codec: LatentCodec
    text_codec: TextCodec
    streams: tuple[EncodeStream, ...]
    limits: Limits = field(default_factory=Limits)  # of decoding one clip
    psnr_clips: frozenset[str] = frozenset()  # that are measured, beside those that `is_drawn`

    def start(self, device: str) -> "EncodeWorker":
        """See `Spec.start`."""
        return EncodeWorker(self, device)

    def operator_versions(self) -> dict[str, str]:
        """See `Spec.operator_versions`."""
        return {codec.name(): codec.version() for codec in (self.latent_codec, self.text_codec)}


def family_name(options: EncodeOptions, codec: LatentCodec) -> str:
    """Name of the latent family: the codec and a fingerprint of all that shapes its latents."""
    digits = fingerprint(
        codec=codec.version(),
        size_px=options.size_px,
        frames=options.frames,
        policy=RESIZE_POLICY,
        revision=1,
        **_windowing(options),
    )
    return f"{codec.name()}-{digits[:8]}"


def _windowing(options: EncodeOptions) -> dict[str, Any]:
    """What families have that choose rate and windows; empty for others, which keep the names that they always had."""
    facts: dict[str, Any] = {} if options.fps is None else {"fps": exact_fps(options.fps)}
    if options.has_windows:
        names = ("windows", "window_stride_frames", "window_stride_s")
        facts["windows"] = {name: value for name in names if (value := getattr(options, name)) is not None}
    return facts


def is_windowed(options: EncodeOptions) -> bool:
    """Whether rows have the columns of `WINDOWED_LATENT_SCHEMA`."""
    return options.has_buckets or bool(_windowing(options))


def text_family_name(codec: TextCodec) -> str:
    """Name of the text family: the codec and its fingerprint."""
    return f"{codec.name()}-{codec.version()[:8]}"


class ReadStream(NamedTuple):
    """The windows of one modality of one clip, fitted to the size at which they are encoded. The first one is read."""

    plan: ClipWindows
    windows: Iterator[Modality]


class EncodeWorker(CorpusWorker):
    """Holds the codecs; reads the windows of each modality, renders them as RGB, encodes them."""

    def __init__(self, spec: EncodeSpec, device: str) -> None:
        super().__init__(spec.corpus_url)
        self.spec = spec
        self.streams = {stream.modality: stream for stream in spec.streams}
        self.latent_model = spec.latent_codec.load(device)
        self.text_model = spec.text_codec.load(device) if TEXT in self.streams else None
        if TEXT in self.streams:
            from openuni.training.data.fixed_texts import store_prompts  # imports torch, which planning does not need

            family = text_family_name(spec.text_codec)
            store_prompts(self.corpus, family, spec.text_codec, self.text_model)
        sizes = [spec.latent_codec.videos_per_batch(self.latent_model, *size) for size in spec.options.sizes_px]
        self.batches = VideoBatches(spec.latent_codec, self.latent_model, min(sizes))
        self.begun: dict[str, _Begun] = {}  # by key, the items of which a part is stored
        self.plans: dict[str, ClipWindows] = {}  # by key, of the items that are not stored
        self.measured: dict[str, Modality] = {}  # by key, the frames of items whose latents will be decoded
        self.is_windowed = is_windowed(spec.options)
        for stream in spec.streams:
            windowed = self.is_windowed and stream.modality != TEXT
            columns = schema.WINDOWED_LATENT_SCHEMA if windowed else schema.LATENT_SCHEMA
            self.writers[stream.modality] = self.corpus.writer(stream.group, columns, stream.version, SafetensorsShard)

    def prepare(self, item: ClipItem) -> dict[str, ReadStream | ClipError]:
        """Read and fit the first window of what is to be encoded; what cannot be read stands there as its error."""
        names = [name for name in item.todo if name != TEXT]
        if not names:
            return {}
        try:
            options, clip = self.spec.options, item.clip
            stride = self.spec.latent_codec.stride[0]
            plan = windows_of(clip, options, stride, lambda: frame_times(clip, self.spec.limits))
        except ClipError as error:
            return dict.fromkeys(names, error)
        found: dict[str, ReadStream | ClipError] = {}
        for name in names:
            windows = self._windows(name, item, plan)
            try:
                found[name] = ReadStream(plan, itertools.chain([next(windows)], windows))
            except ClipError as error:
                found[name] = error
        return found

    def compute(
        self, item: ClipItem, prepared: dict[str, ReadStream | ClipError]
    ) -> dict[str, EncodedStream | Exception]:
        """Encode each stream that is not there yet; each has a fate of its own.

        If the codec takes several videos at a time, those of clips with one window wait for `compute_batch`.
        """
        found: dict[str, EncodedStream | Exception] = {}
        videos: dict[str, Modality] = {}
        for name in item.todo:
            read = prepared.pop(name, None)
            try:
                if isinstance(read, ClipError):
                    raise read
                if read is None:
                    found[name] = self._encode_caption(item)
                    continue
                self.plans[item.key] = read.plan
                is_measured = name == "rgb" and self._is_measured(item)
                if self.batches.size > 1 and len(read.plan.frames) == 1:
                    videos[name] = next(read.windows)
                    if is_measured:
                        self.measured[item.key] = videos[name]
                else:
                    found[name] = self._encode(read, is_measured=is_measured)
            except ClipError as error:
                found[name] = error
        if videos:
            self.batches.waiting.append((item, videos))
        return found

    def waiting(self) -> list[ClipItem]:
        """See `Worker.waiting`."""
        return [item for item, _ in self.batches.waiting]

    def is_batch_full(self) -> bool:
        """See `Worker.is_batch_full`."""
        return self.batches.is_full

    def compute_batch(self) -> list[tuple[ClipItem, dict[str, EncodedStream | Exception]]]:
        """See `Worker.compute_batch`."""
        computed = self.batches.run()
        for item, streams in computed:
            signal, encoded = self.measured.pop(item.key, None), streams.get("rgb")
            if signal is not None and isinstance(encoded, EncodedStream):
                streams["rgb"] = encoded._replace(psnr_db=self._psnr_db(signal, encoded.array))
        return computed

    def operator_seconds(self, computed: dict[str, EncodedStream | Exception], compute_s: float) -> dict[str, float]:
        """See `Worker.operator_seconds`; of the codecs."""
        seconds: dict[str, float] = {}
        for stream, encoded in computed.items():
            if isinstance(encoded, EncodedStream):
                codec = self.spec.text_codec if stream == TEXT else self.spec.latent_codec
                seconds[codec.name()] = seconds.get(codec.name(), 0.0) + encoded.ms / 1000
        return seconds

    def store(self, item: ClipItem, computed: dict[str, EncodedStream | Exception]) -> ItemOutcome | None:
        """Write the tensor and row of each stream that is encoded; None while others are not."""
        begun = self.begun.pop(item.key, None) or _Begun([], [], [])
        for name in [name for name in item.todo if name in computed]:
            begun.stored.append(name)
            encoded = computed.pop(name)
            row, error = self._row(name, item, encoded)
            if error is not None:
                self.note_failure(item.key, f"encode {name}", error)
                begun.errors.append(f"{name}: {format_error(error)}")
            elif isinstance(encoded, EncodedStream) and encoded.psnr_db is not None:
                begun.psnr_db.append(encoded.psnr_db)
            self._commit(name, item, row)
        if len(begun.stored) < len(item.todo):
            self.begun[item.key] = begun
            return None
        self.plans.pop(item.key, None)
        status, errors = "failed" if begun.errors else "ok", "; ".join(begun.errors)
        return ItemOutcome(item.key, status, errors, psnr_db=begun.psnr_db[0] if begun.psnr_db else None)

    def _encode_caption(self, item: ClipItem) -> EncodedStream:
        started = time.perf_counter()
        array = self.spec.text_codec.encode(self.text_model, item.clip.caption or "")
        return EncodedStream(array, "bfloat16", None, (time.perf_counter() - started) * 1000)

    def _encode(self, read: ReadStream, *, is_measured: bool) -> EncodedStream | Exception:
        """The latents of all windows of a clip, several together if the codec takes them; or the error of one."""
        arrays: list[np.ndarray] = []
        ms, psnr_db = 0.0, None
        while signals := list(itertools.islice(read.windows, self.batches.size)):
            for encoded in self.batches.encode(dict(enumerate(signals))).values():
                if isinstance(encoded, Exception):
                    return encoded
                arrays.append(encoded.array)
                ms += encoded.ms
            self._check_total(arrays[0].nbytes * len(read.plan.frames))
            if is_measured and len(arrays) == len(signals):
                psnr_db = self._psnr_db(signals[0], arrays[0])
        array = np.stack(arrays) if len(arrays) > 1 else arrays[0]
        return EncodedStream(array, "float16", read.plan.frames.shape[1], ms, psnr_db)

    def _psnr_db(self, signal: Modality, latents: np.ndarray) -> float | None:
        return decoded_psnr_db(self.spec.latent_codec, self.latent_model, signal.to_rgb(), latents)

    def _is_measured(self, item: ClipItem) -> bool:
        """Whether the clip's latents are decoded to measure the PSNR."""
        clip_id = item.clip.clip_id
        return self.spec.options.psnr and (clip_id in self.spec.psnr_clips or is_drawn(clip_id))

    def _check_total(self, nbytes: int) -> None:
        """Raise `ClipError` if the latents of all windows of a clip would take too much memory."""
        limit = self.spec.limits.max_decoded_bytes
        if nbytes > limit:
            raise ClipError(
                f"the latents of all windows of the clip take {nbytes / 1e9:.3g} GB in memory; at most "
                f"{limit / 1e9:.3g} GB are allowed. Take fewer windows, or cut the clip ([ingest] max_s)."
            )

    def fail(self, item: ClipItem, error: str) -> ItemOutcome:
        """Nothing of the clip could be read, or it killed its workers: what is not stored has failed."""
        begun = self.begun.pop(item.key, None) or _Begun([], [], [])
        self.plans.pop(item.key, None)
        for name in [name for name in item.todo if name not in begun.stored]:
            self._commit(name, item, {"status": "failed", "error": error})
        return ItemOutcome(item.key, "failed", error)

    def _windows(self, name: str, item: ClipItem, plan: ClipWindows) -> Iterator[Modality]:
        """The windows of a modality, at the size of the encoded video. Raises `ClipError`."""
        stream, kind = self.streams[name], find_modality(name)
        try:
            if not stream.annotator:
                short_side_px = cover_short_side(item.clip, plan.size_px)
                windows = decoded_windows(item.clip, kind, plan.frames, short_side_px, self.spec.limits)
            else:
                extent = item.stored[MapSource(stream.annotator, name)]
                assert extent is not None  # else it would not be planned
                group = annotation_group(stream.annotator)
                windows = stored_windows(self.corpus, group, kind, extent, item.clip, plan.frames)
            for window in windows:
                yield window.fit(*plan.size_px)
        except OpenUniError as error:  # a stored map that is damaged: this clip's failure, not the run's
            raise ClipError(str(error)) from error

    def _row(
        self, name: str, item: ClipItem, encoded: EncodedStream | Exception
    ) -> tuple[dict[str, Any], Exception | None]:
        """The row of one stream, and the error if it is a failure."""
        try:
            if not isinstance(encoded, Exception):
                return self._put(name, item, encoded), None
        except ClipError as error:
            self.writers[name].rollback()
            encoded = error
        return {"status": "failed", "error": format_error(encoded)}, encoded

    def _put(self, name: str, item: ClipItem, encoded: EncodedStream) -> dict[str, Any]:
        array, dtype, frames, ms, _ = encoded
        has_windows = name != TEXT and self.spec.options.has_windows
        if has_windows and len(self.plans[item.key].frames) == 1:
            array = array[None]
        absmax, std = float(np.abs(array).max()), float(array.std())
        if not np.isfinite(array).all() or (dtype == "float16" and absmax > 6e4):
            raise ClipError(f"{name}: the codec gave values that float16 cannot hold (largest {absmax:g})")
        data = to_bytes(array, dtype)
        extent = self.writers[name].put(item.clip.clip_id, data, dtype, array.shape)
        facts = {"shape": list(array.shape), "dtype": dtype, "frames": frames, "absmax": absmax, "std": std}
        if name != TEXT and self.is_windowed:
            facts |= window_facts(self.plans[item.key], data if has_windows else None)
        return extent | facts | {"status": "ok", "error": None, "ms": ms}

    def _commit(self, name: str, item: ClipItem, row: dict[str, Any]) -> None:
        self.writers[name].commit({"clip_id": item.clip.clip_id, "version": self.streams[name].version} | row)


class _Begun(NamedTuple):
    """An item of which a part is stored, while the rest waits for other clips."""

    stored: list[str]  # streams
    errors: list[str]
    psnr_db: list[float]  # of the pictures, if they were decoded


def cover_short_side(clip: Clip, size_px: tuple[int, int]) -> int:
    """Short side at which decoded frames still cover `size_px`: no pixel is decoded that the crop cannot use."""
    scale = max(size_px[0] / clip.height_px, size_px[1] / clip.width_px)
    return math.ceil(min(clip.height_px, clip.width_px) * scale) if scale < 1 else 0


def window_facts(plan: ClipWindows, data: bytes | None) -> dict[str, Any]:
    """The columns that `WINDOWED_LATENT_SCHEMA` adds. `data`: the payload with all windows; None without windows."""
    facts: dict[str, Any] = {"fps": plan.fps, "height_px": plan.size_px[0], "width_px": plan.size_px[1]}
    if data is None:
        return facts | {"windows": None}
    step = len(data) // len(plan.frames)
    return facts | {
        "windows": [
            {"first_frame": int(window[0]), "xxh3": checksum(data[number * step : (number + 1) * step])}
            for number, window in enumerate(plan.frames)
        ]
    }


def to_bytes(array: np.ndarray, dtype: str) -> bytes:
    """float32 -> little-endian bytes of float16 or bfloat16, rounded to nearest even."""
    if dtype == "float16":
        return array.astype("<f2").tobytes()
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16).view(torch.int16).numpy().tobytes()


def family_record(options: EncodeOptions, codec: LatentCodec, streams: list[EncodeStream]) -> dict[str, Any]:
    """What `family.json` says, and the trainer needs to decode the latents again.

    With buckets, `size_px` and `frames` are those of the first size and the largest number; `buckets` has all.
    """
    record = {
        "codec": codec.name(),
        "options": recorded(codec),
        "version": codec.version(),
        "size_px": list(options.sizes_px[0]),
        "frames": max(options.frame_counts),
        "policy": RESIZE_POLICY,
        "modalities": sorted(stream.modality for stream in streams if stream.modality != TEXT),
        "fingerprint": family_name(options, codec),
    }
    if options.has_buckets:
        frames = list(options.frames) if isinstance(options.frames, tuple) else options.frames
        record["buckets"] = {"sizes_px": [list(size_px) for size_px in options.sizes_px], "frames": frames}
    return record | _windowing(options)


def text_family_record(codec: TextCodec, caption: str) -> dict[str, Any]:
    """What `family.json` says of a text family. `caption`: the embedded text column; empty: the clips' captions."""
    return {"codec": codec.name(), "options": recorded(codec), "version": codec.version(), "caption": caption}
