"""The phases of filters and annotators: one decode of a clip serves all operators of a phase."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from openuni.manifests.contracts import schema
from openuni.manifests.contracts.decoded_clip import DecodedClip, decode
from openuni.manifests.contracts.modality import FilePayload, Modality, Payload, find_modality
from openuni.manifests.contracts.operator import Operator
from openuni.manifests.corpus.corpus_clip import read_modality
from openuni.manifests.corpus.layout import annotation_group, operator_group
from openuni.manifests.corpus.parts.spool import SpooledMaps
from openuni.manifests.corpus.shards import TarShard
from openuni.manifests.errors import ClipError, OpenUniError, Unavailable
from openuni.manifests.hosting.environment import ReadyEnvironment, on_this_node
from openuni.manifests.hosting.process import HostedModel, run_operator
from openuni.manifests.video.container import Limits
from openuni.manifests.video.reader import decode_count, fallback_count
from openuni.pipeline.clip_batches import ClipBatches, Waiting
from openuni.pipeline.failures import format_error
from openuni.pipeline.long_clips.map_coding import Coded, MapCoders, coded_payload
from openuni.pipeline.long_clips.maps import DecodedInputs, MapWindows
from openuni.pipeline.long_clips.samples import SampleWindows
from openuni.pipeline.long_clips.worker import LongClip, OperatorResult, WindowedWorker, with_half_batch_size
from openuni.pipeline.phases import ClipItem, decoder_threads, reader_on
from openuni.pipeline.planning.gpu_memory import VramMeter
from openuni.pipeline.planning.map_sources import MapSource
from openuni.pipeline.runners.resources import MAX_ATTEMPTS
from openuni.pipeline.worker import ItemOutcome, Spec

MAX_WAITING_CLIPS = 2  # whose maps are coded while later ones are computed
WAITING_SHARE = 4  # they take at most this fraction of `[work] max_decoded_gb`, or are one


@dataclass(frozen=True)
class OperatorSpec(Spec):
    """Run filters or annotators over clips: one decode serves all of them."""

    corpus_url: str
    operators: Mapping[str, Operator]
    versions: Mapping[str, str]
    short_side_px: int
    required_maps: Mapping[str, Mapping[str, MapSource]]  # operator -> modality -> the map it starts from
    compact: bool  # how maps are stored
    limits: Limits  # of decoding one clip
    reader: str = "pyav"  # what decodes frames: see `manifests.video.readers.clip_images`
    seal_after_s: float | None = None  # see `PartWriter`
    environments: Mapping[str, ReadyEnvironment] = dataclasses.field(default_factory=dict)  # operators' own

    def start(self, device: str) -> "OperatorWorker":
        """See `Spec.start`."""
        kinds = {operator.kind for operator in self.operators.values()}
        return (FilterWorker if kinds == {"filter"} else AnnotatorWorker)(self, device)

    def operator_versions(self) -> Mapping[str, str]:
        """See `Spec.operator_versions`."""
        return self.versions


class OperatorWorker(WindowedWorker):
    """Holds the models of all operators of a phase."""

    def __init__(self, spec: OperatorSpec, device: str) -> None:
        super().__init__(spec.corpus_url)
        self.spec = spec
        self.limits, self.reader = spec.limits, reader_on(device, spec.reader)
        self.operators = dict(spec.operators)
        self.vram = VramMeter(device)
        self.decodes_reported, self.fallbacks_reported = decode_count(), fallback_count()
        self.models: dict[str, Any] = {}
        self.batches = ClipBatches(self.operators, self.models, self.vram)
        self.begun: dict[str, _Begun] = {}  # by key, the items of which a part is stored
        self.result_types: dict[str, pa.StructType] = {}  # of each operator's struct column
        self.map_fields: dict[str, tuple[str, ...]] = {}  # by operator, the fields of its result that are maps
        for name, operator in self.operators.items():
            environment = spec.environments.get(name)
            if environment is not None:
                python, timeout_s = on_this_node(environment), environment.timeout_s
                self.models[name] = HostedModel(operator, python, device, timeout_s, MAX_ATTEMPTS)
                continue
            with self.vram.loading(name):
                self.models[name] = operator.load(device)
        for name, operator in self.operators.items():
            group, row_schema = operator_group(operator.kind, name), schema.producer_schema(type(operator))
            self.result_types[name] = row_schema.field(name).type
            self.map_fields[name] = tuple(schema.modality_fields(type(operator)))
            shard_type = TarShard if self.map_fields[name] else None
            self.writers[name] = self.corpus.writer(group, row_schema, spec.versions[name], shard_type)
            self.writers[name].seal_after_s = spec.seal_after_s

    def compute(self, item: ClipItem, prepared: Any) -> dict[str, OperatorResult]:
        """Run every operator that has not seen the clip; keep what those need of it that take several clips."""
        if isinstance(prepared, LongClip):
            return self.compute_long(item, prepared)
        alone = [name for name in item.todo if not self.batches.takes(name)]
        results = {name: self._run_one(name, item, prepared) for name in alone}
        excerpts, ms = {}, {}
        for name in [name for name in item.todo if self.batches.takes(name)]:
            started = time.perf_counter()
            try:
                model = self.models[name]  # of an operator in another process: not here
                hosted = isinstance(model, HostedModel)
                excerpts[name] = self.operators[name].excerpt(None if hosted else model, self.view(name, prepared))
            except OpenUniError:
                raise  # a missing part: no clip's fault
            except Exception as error:  # an operator may fail in any way; the others still run
                results[name] = self.error_result(name, item, error)
            ms[name] = (time.perf_counter() - started) * 1000
        if excerpts:
            self.batches.waiting.append(Waiting(item, excerpts, ms))
        return results

    def operator_seconds(self, computed: dict[str, OperatorResult], compute_s: float) -> dict[str, float]:
        """See `Worker.operator_seconds`; of the operators that have a result."""
        return {name: result.ms / 1000 for name, result in computed.items() if result.ms is not None}

    def waiting(self) -> Sequence[ClipItem]:
        """See `Worker.waiting`."""
        return [clip.item for clip in self.batches.waiting]

    def is_batch_full(self) -> bool:
        """See `Worker.is_batch_full`."""
        return self.batches.is_full

    def compute_batch(self) -> list[tuple[ClipItem, dict[str, OperatorResult]]]:
        """See `Worker.compute_batch`."""
        computed = []
        for item, found in self.batches.run():
            results = {}
            for name, (value, error, ms) in found.items():
                result = OperatorResult(value, None, ms)
                results[name] = result if error is None else self.error_result(name, item, error)
            computed.append((item, results))
        return computed

    def store(self, item: ClipItem, computed: dict[str, OperatorResult]) -> ItemOutcome | None:
        """Write the rows of the operators that are done; each has a fate of its own. None while others are not."""
        begun = self.begun.pop(item.key, None) or _Begun([], [])
        for name in [name for name in item.todo if name in computed]:
            begun.stored.append(name)
            error = self._store_one(name, item, computed.pop(name))
            if error:
                begun.errors.append(f"{name}: {error}")
        if len(begun.stored) < len(item.todo):
            self.begun[item.key] = begun
            return None
        return self._done(item, "failed" if begun.errors else "ok", "; ".join(begun.errors))

    def fail(self, item: ClipItem, error: str) -> ItemOutcome:
        """The clip could not be decoded, or killed its workers: that is the outcome of every operator without a row."""
        begun = self.begun.pop(item.key, None) or _Begun([], [])
        for name in [name for name in item.todo if name not in begun.stored]:
            self._commit(name, item, self._outcome(name, "failed", error, None))
        return self._done(item, "failed", error)

    def finish(self) -> None:
        """See `Worker.finish`."""
        for model in self.models.values():
            if isinstance(model, HostedModel):
                model.close()
        super().finish()

    def view(self, name: str, prepared: Any) -> DecodedClip:
        """What the named operator sees of what was decoded. Raises `Unavailable` when it lacks a map it starts from."""
        raise NotImplementedError

    def field(self, key: str, value: Any, name: str, item: ClipItem, result: OperatorResult) -> Any:
        """A result's field `key` as the row of the named operator holds it."""
        return schema.stored(value, self.result_types[name].field(key).type, f"{name}.{key}")

    def _done(self, item: ClipItem, status: str, error: str) -> ItemOutcome:
        decodes, fallbacks = decode_count(), fallback_count()
        new, self.decodes_reported = decodes - self.decodes_reported, decodes
        new_fallbacks, self.fallbacks_reported = fallbacks - self.fallbacks_reported, fallbacks
        outcome = ItemOutcome(item.key, status, error, new, self.vram.peaks_mb())
        return outcome._replace(decode_fallbacks=new_fallbacks)

    def _run_one(self, name: str, item: ClipItem, prepared: Any) -> OperatorResult:
        started = time.perf_counter()
        try:
            with self.vram.running(name):
                value = self._value(name, self.view(name, prepared))
        except OpenUniError:
            raise  # a missing part: no clip's fault
        except Exception as error:  # an operator may fail in any way; the others still run
            return self.error_result(name, item, error)
        return OperatorResult(value, None, (time.perf_counter() - started) * 1000)

    def _store_one(self, name: str, item: ClipItem, result: OperatorResult) -> str | None:
        """Write one row; returns the reason where it is a failure."""
        fields: dict[str, Any] = {}
        text, ms, status = result.error, result.ms, result.status
        if status == "ok":
            try:
                values = result.value._asdict()
                fields = {key: self.field(key, value, name, item, result) for key, value in values.items()}
            except OpenUniError:
                raise  # a full disk: no clip's fault
            except Exception as error:  # its result cannot be stored
                self.note_failure(item.key, name, error)
                self.writers[name].rollback()
                fields, text, ms, status = {}, format_error(error), None, "failed"
            finally:
                result.close()
        self._commit(name, item, self._outcome(name, status, text, ms) | fields)
        return text if status == "failed" else None

    def _value(self, name: str, clip: DecodedClip) -> Any:
        operator = self.operators[name]
        try:
            result = run_operator(operator, self.models[name], clip)
        except RuntimeError as error:
            smaller = with_half_batch_size(operator)
            if type(error).__name__ != "OutOfMemoryError" or smaller is None:
                raise
            self.operators[name] = smaller  # the GPU will not grow: stay with the smaller batch
            result = run_operator(smaller, self.models[name], clip)
        if not isinstance(result, operator.result_type()):
            raise ClipError(f"returned {type(result).__name__}, declared {operator.result_type().__name__}")
        return result

    def _outcome(self, name: str, status: str, error: str | None, ms: float | None) -> dict[str, Any]:
        return {"status": status, "error": error, "version": self.spec.versions[name], "ms": ms}

    def _commit(self, name: str, item: ClipItem, row: dict[str, Any]) -> None:
        self.writers[name].commit({"clip_id": item.clip.clip_id, name: row})


def _map_bytes(result: OperatorResult) -> int:
    """Memory of the maps of a result."""
    values = result.value if isinstance(result.value, tuple) else ()
    return sum(value.array.nbytes for value in values if isinstance(value, Modality))


class _Begun(NamedTuple):
    """An item of which a part is stored, while the rest waits for other clips."""

    stored: list[str]  # operators
    errors: list[str]


class FilterWorker(SampleWindows, OperatorWorker):
    """One sparse decode of the union of all filters' samples."""

    def prepare(self, item: ClipItem) -> tuple[DecodedClip, dict[str, np.ndarray]] | LongClip:
        """Decode the frames any of the filters wants; remember which are whose."""
        if self.is_long(item.clip):
            return self.prepare_long(item)
        wanted: dict[str, np.ndarray] = {}

        def choose(times_s: np.ndarray) -> np.ndarray:
            wanted.update({name: self.sample(name, times_s) for name in item.todo})
            return np.unique(np.concatenate(list(wanted.values())))

        vectors = self.wants_vectors(item)
        short_side_px = self.spec.short_side_px
        threads, reader = decoder_threads(), self.reader
        decoded = decode(item.clip, choose, short_side_px, self.limits, threads, vectors, reader)
        union = np.unique(np.concatenate(list(wanted.values())))
        return decoded, {name: np.searchsorted(union, indices) for name, indices in wanted.items()}

    def view(self, name: str, prepared: tuple[DecodedClip, dict[str, np.ndarray]]) -> DecodedClip:
        """See `OperatorWorker.view`."""
        decoded, positions = prepared
        return decoded.take(positions[name])


class AnnotatorWorker(MapWindows, OperatorWorker):
    """All frames, decoded once, for all annotators; those that start from maps of others come after these.

    Maps are coded in threads, from when their annotator has made them; `store` waits for them, in order.
    """

    def __init__(self, spec: OperatorSpec, device: str) -> None:
        super().__init__(spec, device)
        self.coders = MapCoders(decoder_threads(), self.limits.max_decoded_bytes)

    def may_wait(self, waiting: Sequence[tuple[Any, Any]]) -> bool:
        """See `Worker.may_wait`: as long as the maps that wait take a quarter of the memory for decoded frames."""
        nbytes = sum(_map_bytes(result) for _, computed in waiting for result in [*computed.values()])
        return len(waiting) <= MAX_WAITING_CLIPS and nbytes <= self.limits.max_decoded_bytes / WAITING_SHARE

    def compute(self, item: ClipItem, prepared: Any) -> dict[str, OperatorResult]:
        """See `OperatorWorker.compute`."""
        results = super().compute(item, prepared)
        return {name: self._start_coding(name, item, result) for name, result in results.items()}

    def finish(self) -> None:
        """See `Worker.finish`."""
        self.coders.close()
        super().finish()

    def prepare(self, item: ClipItem) -> DecodedInputs | LongClip:
        """Decode every frame at the working size, and read the stored maps."""
        if self.is_long(item.clip) or self.is_better_in_windows(item):
            return LongClip()
        maps: dict[MapSource, Modality | str] = {}
        for source in {source for name in item.todo for source in self.spec.required_maps[name].values()}:
            if source.annotator not in item.todo:
                maps[source] = self._stored(source, item)
        threads, reader = decoder_threads(), self.reader
        decoded = decode(item.clip, None, self.spec.short_side_px, self.limits, threads, reader=reader)
        return DecodedInputs(decoded, maps)

    def view(self, name: str, prepared: DecodedInputs) -> DecodedClip:
        """See `OperatorWorker.view`."""
        maps = {}
        for modality, source in self.spec.required_maps[name].items():
            found = prepared.maps[source]
            if isinstance(found, str):
                raise Unavailable(f"requires {modality} of {source.annotator}, but {found}")
            maps[modality] = found
        return dataclasses.replace(prepared.decoded, maps=maps) if maps else prepared.decoded

    def field(self, key: str, value: Any, name: str, item: ClipItem, result: OperatorResult) -> Any:
        """Modalities go to the shard, and their extent and constants into the row."""
        signal: Any = result.spooled.get(key, value)
        if not isinstance(signal, Modality | SpooledMaps):
            return super().field(key, value, name, item, result)
        payload = coded_payload(result.coded.get(key)) or self.coded(signal, item)
        entry = f"{item.clip.clip_id}.{signal.name}.{payload.suffix}"
        if isinstance(payload, FilePayload):
            frames, (height_px, width_px) = payload.frames, payload.size_px
            with payload.file:
                extent = self.writers[name].put_file(entry, payload.file)
        else:
            frames, (height_px, width_px) = item.clip.frame_count, payload.size_px or signal.size_px
            extent = self.writers[name].put(entry, payload.data)
        size = {"frames": frames, "height_px": height_px, "width_px": width_px, "pts_hash": item.clip.pts_hash}
        return extent | size | schema.stored_constants(payload.constants, f"{name}.{key}")

    def _run_one(self, name: str, item: ClipItem, prepared: DecodedInputs) -> OperatorResult:
        """Also hands on the maps that others of this clip start from, as they will be stored: so a run that is
        resumed, and reads them back, gives the same.
        """
        result = super()._run_one(name, item, prepared)
        waiting = {source for other in item.todo for source in self.spec.required_maps[other].values()}
        coded = {}
        for source in waiting:
            if source.annotator != name:
                continue
            try:
                prepared.maps[source], coded[source.modality] = self._pass_to_dependents(result, source.modality, item)
            except Exception as error:  # it cannot be stored: `store` will say so in its row, this in the others'
                prepared.maps[source] = f"it failed: {format_error(error)}"
        return self._start_coding(name, item, result._replace(coded=coded))

    def _start_coding(self, name: str, item: ClipItem, result: OperatorResult) -> OperatorResult:
        """The same result; those of its maps that are not coded yet are, from now on."""
        coded = dict(result.coded)
        for key in self.map_fields[name] if result.status == "ok" else ():
            signal: Any = result.spooled.get(key) or getattr(result.value, key)
            if key not in coded and isinstance(signal, Modality | SpooledMaps):
                nbytes = signal.array.nbytes if isinstance(signal, Modality) else 0
                coded[key] = self.coders.submit(nbytes, functools.partial(self._code, signal, item))
        return result._replace(coded=coded)

    def _code(self, signal: Modality | SpooledMaps[Any], item: ClipItem) -> Coded:
        with self.working_on(item.key):
            return self.coded(signal, item)

    def _pass_to_dependents(self, result: OperatorResult, modality: str, item: ClipItem) -> tuple[Modality, Payload]:
        if result.status != "ok":
            raise ClipError(str(result.error))
        signal = getattr(result.value, modality)
        if signal is None:
            raise Unavailable("this clip has none")
        payload = self.coded(signal, item)
        assert isinstance(payload, Payload)  # of maps that are in memory
        return type(signal).decode(payload.data, payload.constants), payload

    def _stored(self, source: MapSource, item: ClipItem) -> Modality | str:
        extent = item.stored.get(source)
        if extent is None:
            return "this clip has none: that annotator failed or was not run on it"
        group = annotation_group(source.annotator)
        try:
            return read_modality(self.corpus, group, find_modality(source.modality), extent, item.clip)
        except (ClipError, OpenUniError) as error:  # damaged: the reason of these rows, not the end of the run
            return format_error(error)
