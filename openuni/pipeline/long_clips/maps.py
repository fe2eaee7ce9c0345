"""Annotators on long clips: windows of all frames, with the maps that annotators start from."""

from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import FilePayload, Modality, Payload, find_modality
from openuni.manifests.corpus.corpus_clip import stored_blocks
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.corpus.parts.spool import SpooledMaps
from openuni.manifests.errors import ClipError, OpenUniError, Unavailable
from openuni.manifests.video.reader import Frames, iter_windows
from openuni.pipeline.failures import format_error
from openuni.pipeline.long_clips.feeds import MapFeed
from openuni.pipeline.long_clips.map_coding import coded_payload
from openuni.pipeline.long_clips.window_pass import OperatorPass, frames_per_window
from openuni.pipeline.long_clips.worker import LongClip, OperatorResult, Views, WindowedWorker
from openuni.pipeline.phases import ClipItem, decoder_threads
from openuni.pipeline.planning.map_sources import MapSource


class DecodedInputs(NamedTuple):
    """A clip's frames, and its stored maps that annotators start from; the reason instead of those not to be had."""

    decoded: DecodedClip
    maps: dict[MapSource, Modality | str]


class MapWindows(WindowedWorker):
    """The part of an annotator worker that is for long clips."""

    def view(self, name: str, prepared: DecodedInputs) -> DecodedClip:
        """What the named operator sees of what was decoded. Raises `Unavailable` when it lacks a map it starts from."""
        raise NotImplementedError

    def open_windows(
        self, item: ClipItem, prepared: LongClip, passes: Mapping[str, OperatorPass], done: Mapping[str, OperatorResult]
    ) -> tuple[Generator[Frames], Views]:
        """See `WindowedWorker.open_windows`: all annotators of a pass see the same windows, each with its maps."""
        clip, size, limits = item.clip, self.spec.short_side_px, self.limits
        steps = [one.operator.window_step() for one in passes.values()]
        count = frames_per_window(clip, size, limits.max_decoded_bytes, steps)
        sources = {source for name in passes for source in self.spec.required_maps[name].values()}
        feeds = {source: MapFeed(self._map_blocks(source, item, done, count)) for source in sources}
        decoded = 0

        def views(frames: Frames) -> Iterator[tuple[str, DecodedClip | Unavailable]]:
            nonlocal decoded
            overlap = int(decoded > 0)
            first, decoded = decoded - overlap, decoded + len(frames.frames) - overlap
            shared = DecodedClip(clip, frames.frames, frames.times_s, first_frame=first, overlap_frames=overlap)
            is_last = decoded == clip.frame_count
            maps = {source: feed.take(overlap, decoded - first - overlap, is_last) for source, feed in feeds.items()}
            for name in passes:
                try:
                    yield name, self.view(name, DecodedInputs(shared, maps))
                except Unavailable as error:
                    yield name, error

        return iter_windows(clip, size, limits, count, 1, None, decoder_threads(), reader=self.reader), views

    def hand_on(self, name: str, item: ClipItem, result: OperatorResult) -> OperatorResult:
        """See `WindowedWorker.hand_on`: as they will be stored, so a run that is resumed gives the same."""
        waiting = {source for other in item.todo for source in self.spec.required_maps[other].values()}
        coded = {}
        for modality in [source.modality for source in waiting if source.annotator == name and result.status == "ok"]:
            signal = result.spooled.get(modality) or getattr(result.value, modality)
            try:
                coded[modality] = self.coded(signal, item)
            except Exception:  # it cannot be stored: `store` says so in its row, `_map_blocks` in those of the others
                continue
        return result._replace(coded=coded)

    def coded(self, signal: Modality | SpooledMaps[Any], item: ClipItem) -> Payload | FilePayload:
        """A clip's maps as they are stored. Raises `ClipError` unless there is one per frame."""
        frames = signal.frames if isinstance(signal, SpooledMaps) else len(signal.array)
        if frames != item.clip.frame_count:
            raise ClipError(f"{signal.name} has {frames} frames, the clip has {item.clip.frame_count}")
        fps, compact = item.clip.fps, self.spec.compact
        if isinstance(signal, SpooledMaps) and not signal.is_streamable(compact):
            nbytes = signal.nbytes
            if nbytes > self.limits.max_decoded_bytes:
                storage = "compact" if compact else "full"
                raise ClipError(
                    f'{signal.name} with [work] storage = "{storage}" is encoded at once, and {nbytes / 1e9:.3g} GB '
                    f"exceed the limit of {self.limits.max_decoded_bytes / 1e9:.3g} GB. Set shorter clips ([ingest] "
                    "max_s), or raise [work] max_decoded_gb."
                )
            signal = signal.whole()
        if isinstance(signal, SpooledMaps):
            return signal.encode(fps, compact=compact)
        return signal.encode_compact(fps) if compact else signal.encode(fps)

    def _map_blocks(
        self, source: MapSource, item: ClipItem, done: Mapping[str, OperatorResult], count: int
    ) -> Iterator[Modality]:
        """The maps of a source in blocks of about `count` frames, as they are stored.

        Raises `ClipError` with the reason if there are none.
        """
        kind, result = find_modality(source.modality), done.get(source.annotator)
        if result is None:
            extent = item.stored.get(source)
            if extent is None:
                raise ClipError("this clip has none: that annotator failed or was not run on it")
            try:
                yield from stored_blocks(
                    self.corpus, annotation_group(source.annotator), kind, extent, item.clip, count, self.limits
                )
            except OpenUniError as error:  # damaged: the reason of these rows, not the end of the run
                raise ClipError(format_error(error)) from error
            return
        if result.status != "ok":
            raise ClipError(f"it failed: {result.error}")
        payload = coded_payload(result.coded.get(source.modality))
        if payload is None:
            has_maps = source.modality in result.spooled or getattr(result.value, source.modality) is not None
            raise ClipError("it failed: its map cannot be stored" if has_maps else "this clip has none")
        if isinstance(payload, FilePayload):
            payload.file.seek(0)
            yield from kind.decode_blocks(payload.file, payload.constants, count)
        else:
            yield kind.decode(payload.data, payload.constants)
