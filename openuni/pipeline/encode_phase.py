"""The encode phase: latents of every modality and embeddings of every caption, in shards the trainer reads."""

import math
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from openuni.config.recipe import EncodeOptions
from openuni.manifests.contracts import schema
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Modality, find_modality
from openuni.manifests.contracts.options import recorded
from openuni.manifests.corpus.corpus_clip import stored_blocks
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.corpus.shards import SafetensorsShard
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.decoder.limits import Limits
from openuni.pipeline.batching.video_batches import EncodedStream, VideoBatches
from openuni.pipeline.failures import format_error
from openuni.pipeline.phases import ClipItem, CorpusWorker, decoder_threads, reader_on
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
    reader: str = "pyav"  # what decodes frames: see `manifests.video.readers.clip_images`

    def start(self, device: str) -> "EncodeWorker":
        """See `Spec.start`."""
        return EncodeWorker(self, device)

    def operator_versions(self) -> dict[str, str]:
        """See `Spec.operator_versions`."""
        return {codec.name(): codec.version() for codec in (self.latent_codec, self.text_codec)}


def family_name(options: EncodeOptions, codec: LatentCodec) -> str:
    """Name of the latent family: the codec and a fingerprint of all that shapes its latents."""
    digits = fingerprint(
        codec=codec.version(), size_px=options.size_px, frames=options.frames, policy=RESIZE_POLICY, revision=1
    )
    return f"{codec.name()}-{digits[:8]}"


def text_family_name(codec: TextCodec) -> str:
    """Name of the text family: the codec and its fingerprint."""
    return f"{codec.name()}-{codec.version()[:8]}"


class EncodeWorker(CorpusWorker):
    """Holds the codecs; reads a window of each modality, renders it as RGB, encodes it."""

    def __init__(self, spec: EncodeSpec, device: str) -> None:
        super().__init__(spec.corpus_url)
        self.spec, self.reader = spec, reader_on(device, spec.reader)
        self.streams = {stream.modality: stream for stream in spec.streams}
        self.latent_model = spec.latent_codec.load(device)
        self.text_model = spec.text_codec.load(device) if TEXT in self.streams else None
        for stream in spec.streams:
            self.writers[stream.modality] = self.corpus.writer(
                stream.group, schema.LATENT_SCHEMA, stream.version, SafetensorsShard
            )
        size = spec.latent_codec.videos_per_batch(self.latent_model, *spec.options.size_px)
        self.batches = VideoBatches(spec.latent_codec, self.latent_model, size)
        self.begun: dict[str, _Begun] = {}  # by key, the items of which a part is stored

    def prepare(self, item: ClipItem) -> dict[str, Modality | ClipError]:
        """Read and fit what is to be encoded; what cannot be read stands there as its error."""
        height_px, width_px = self.spec.options.size_px
        count = encoded_frame_count(item.clip.frame_count, self.spec.options.frames)
        found: dict[str, Modality | ClipError] = {}
        for name in item.todo:
            if name == TEXT:
                continue
            try:
                found[name] = self._read(name, item, count).fit(height_px, width_px)
            except ClipError as error:
                found[name] = error
            except OpenUniError as error:  # a stored map that is damaged: this clip's failure, not the run's
                found[name] = ClipError(str(error))
        return found

    def compute(
        self, item: ClipItem, prepared: dict[str, Modality | ClipError]
    ) -> dict[str, EncodedStream | Exception]:
        """Encode each stream that is not there yet; each has a fate of its own.

        If the codec takes several videos at a time, those of this clip wait for `compute_batch`.
        """
        found: dict[str, EncodedStream | Exception] = {}
        videos: dict[str, Modality] = {}
        for name in item.todo:
            signal = prepared.get(name)
            try:
                if isinstance(signal, ClipError):
                    raise signal
                if signal is None:
                    found[name] = self._encode_caption(item)
                elif self.batches.size > 1:
                    videos[name] = signal
                else:
                    found |= self.batches.encode({name: signal})
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
        return self.batches.run()

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
        begun = self.begun.pop(item.key, None) or _Begun([], [])
        for name in [name for name in item.todo if name in computed]:
            begun.stored.append(name)
            row, error = self._row(name, item, computed.pop(name))
            if error is not None:
                self.note_failure(item.key, f"encode {name}", error)
                begun.errors.append(f"{name}: {format_error(error)}")
            self._commit(name, item, row)
        if len(begun.stored) < len(item.todo):
            self.begun[item.key] = begun
            return None
        return ItemOutcome(item.key, "failed" if begun.errors else "ok", "; ".join(begun.errors))

    def fail(self, item: ClipItem, error: str) -> ItemOutcome:
        """Nothing of the clip could be read, or it killed its workers: what is not stored has failed."""
        begun = self.begun.pop(item.key, None) or _Begun([], [])
        for name in [name for name in item.todo if name not in begun.stored]:
            self._commit(name, item, {"status": "failed", "error": error})
        return ItemOutcome(item.key, "failed", error)

    def _encode_caption(self, item: ClipItem) -> EncodedStream:
        started = time.perf_counter()
        array = self.spec.text_codec.encode(self.text_model, item.clip.caption or "")
        return EncodedStream(array, "bfloat16", None, (time.perf_counter() - started) * 1000)

    def _read(self, name: str, item: ClipItem, count: int) -> Modality:
        stream = self.streams[name]
        modality = find_modality(name)
        if not stream.annotator:
            short_side_px = cover_short_side(item.clip, self.spec.options.size_px)
            limits, threads = self.spec.limits, decoder_threads()
            indices, reader = np.arange(count), self.reader
            return modality(decode(item.clip, indices, short_side_px, limits, threads, reader=reader).frames)
        extent = item.stored[MapSource(stream.annotator, name)]
        assert extent is not None  # else it would not be planned
        group = annotation_group(stream.annotator)
        blocks = stored_blocks(self.corpus, group, modality, extent, item.clip, count, stop=count)
        return modality.joined(list(blocks))

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
        array, dtype, frames, ms = encoded
        absmax, std = float(np.abs(array).max()), float(array.std())
        if not np.isfinite(array).all() or (dtype == "float16" and absmax > 6e4):
            raise ClipError(f"{name}: the codec gave values that float16 cannot hold (largest {absmax:g})")
        extent = self.writers[name].put(item.clip.clip_id, to_bytes(array, dtype), dtype, array.shape)
        facts = {"shape": list(array.shape), "dtype": dtype, "frames": frames, "absmax": absmax, "std": std}
        return extent | facts | {"status": "ok", "error": None, "ms": ms}

    def _commit(self, name: str, item: ClipItem, row: dict[str, Any]) -> None:
        self.writers[name].commit({"clip_id": item.clip.clip_id, "version": self.streams[name].version} | row)


class _Begun(NamedTuple):
    """An item of which a part is stored, while the rest waits for other clips."""

    stored: list[str]  # streams
    errors: list[str]


def encoded_frame_count(frame_count: int, frames: int) -> int:
    """How many frames of a clip are encoded: the largest 4k + 1 that it has, at most `frames`."""
    return (min(frame_count, frames) - 1) // 4 * 4 + 1


def cover_short_side(clip: Clip, size_px: tuple[int, int]) -> int:
    """Short side at which decoded frames still cover `size_px`: no pixel is decoded that the crop cannot use."""
    scale = max(size_px[0] / clip.height_px, size_px[1] / clip.width_px)
    return math.ceil(min(clip.height_px, clip.width_px) * scale) if scale < 1 else 0


def to_bytes(array: np.ndarray, dtype: str) -> bytes:
    """float32 -> little-endian bytes of float16 or bfloat16, rounded to nearest even."""
    if dtype == "float16":
        return array.astype("<f2").tobytes()
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16).view(torch.int16).numpy().tobytes()


def family_record(options: EncodeOptions, codec: LatentCodec, streams: list[EncodeStream]) -> dict[str, Any]:
    """What `family.json` says, and the trainer needs to decode the latents again."""
    return {
        "codec": codec.name(),
        "options": recorded(codec),
        "version": codec.version(),
        "size_px": list(options.size_px),
        "frames": options.frames,
        "policy": RESIZE_POLICY,
        "modalities": sorted(stream.modality for stream in streams if stream.modality != TEXT),
        "fingerprint": family_name(options, codec),
    }


def text_family_record(codec: TextCodec, caption: str) -> dict[str, Any]:
    """What `family.json` says of a text family. `caption`: the embedded text column; empty: the clips' captions."""
    return {"codec": codec.name(), "options": recorded(codec), "version": codec.version(), "caption": caption}
