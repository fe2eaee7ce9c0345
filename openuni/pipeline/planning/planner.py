"""What a recipe asks of a corpus: versions of all results, which clips are kept, and what is missing of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.captions import CaptionColumn, caption_column, clip_ids_with_caption
from openuni.config.recipe import CorpusRecipe, WorkOptions
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.operator import Operator
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import clip_ids_with_modality
from openuni.manifests.corpus.layout import (
    LATENTS,
    TEXT,
    annotation_group,
    family_record,
    latent_group,
    operator_group,
    text_group,
)
from openuni.manifests.video.decoder.limits import Limits
from openuni.pipeline import encode_phase
from openuni.pipeline.encoding.quality import psnr_clips
from openuni.pipeline.operator_phase import OperatorSpec
from openuni.pipeline.phases import ClipItem
from openuni.pipeline.planning.environments import environment_facts, ready_environments
from openuni.pipeline.planning.map_sources import MapSource, annotator_of, extents, required_maps
from openuni.pipeline.planning.plans import clip_items, missing
from openuni.pipeline.runners.resources import PoolSize
from openuni.pipeline.scope import RunScope
from openuni.pipeline.worker import Spec


class PlannedPool(NamedTuple):
    """A pool of a phase before it runs."""

    name: str
    spec: Spec
    items: Iterable[Any]
    total: int
    on_death: Callable[[list[Any]], list[Any]]
    size: PoolSize
    groups: Sequence[str]  # column groups that it fills
    follows: bool = False  # see `Pool.follows`


class Work(NamedTuple):
    """What one pool is to do, whichever clips it gets."""

    name: str
    spec: Spec
    groups: Mapping[str, str]  # by operator or stream, in the order in which they are done: its column group
    sources: frozenset[MapSource]  # the stored maps that it starts from
    captions: CaptionColumn | None = None  # where the clips' captions are taken from instead of their own rows


@dataclass
class Planner:
    """Plans the phases of one run. Nothing here starts any work."""

    recipe: CorpusRecipe
    corpus: Corpus
    scope: RunScope
    activated: set[str] = field(default_factory=set)  # kinds of operators, and "encode"

    # ------------------------------------------------------------------ clips

    def kept_clips(self, clips: pa.Table) -> pa.Table:
        """Those of the clips (`clip_id`, `row`) that pass `keep`."""
        return clips.filter(pc.is_in(clips.column("clip_id"), self.corpus.kept_clip_id_array(self.recipe.keep)))

    def items(self, work: Work, clips: pa.Table, todo: Mapping[str, pa.Array]) -> tuple[Iterable[ClipItem], int]:
        """See `clip_items`."""
        return clip_items(self.corpus, clips, todo, work.sources, work.captions)

    def unfinished(self, held: list[Any], work: Work) -> list[Any]:
        """After a worker's death: its journals are sealed, and what they hold needs no second run."""
        self.corpus.recover()
        left = []
        for item in held:
            one = pa.array([item.clip.clip_id], pa.string())
            todo = tuple(
                name for name in item.todo if not pc.any(pc.is_in(one, self.corpus.done(work.groups[name]))).as_py()
            )
            if todo:  # what it had finished may be what the others start from
                stored = {source: found[0].as_py() for source, found in extents(self.corpus, work.sources, one).items()}
                left.append(dataclasses.replace(item, todo=todo, stored=stored))
        return left

    def planned(self, work: Work, items: Iterable[Any], total: int, size: PoolSize) -> PlannedPool:
        """The pool that does the work."""
        on_death = functools.partial(self.unfinished, work=work)
        return PlannedPool(work.name, work.spec, items, total, on_death, size, [*work.groups.values()])

    # ------------------------------------------------------------------ filters and annotators

    @functools.cached_property
    def required_maps(self) -> dict[str, dict[str, MapSource]]:
        """The maps that each annotator starts from; the annotators in an order in which they can be made."""
        return required_maps(self.recipe, self.corpus)

    def operators(self, kind: str) -> dict[str, Operator]:
        """The operators of a kind within the scope of the run, in an order in which they can be made."""
        given: Mapping[str, Operator] = self.recipe.filters if kind == "filter" else self.recipe.annotators
        order = self.required_maps if kind == "annotator" else given
        return {name: given[name] for name in order if self.scope.covers(name)}

    def maps_of(self, kind: str, name: str) -> dict[str, MapSource]:
        """The maps that an operator starts from."""
        return self.required_maps[name] if kind == "annotator" else {}

    def activate(self, kind: str) -> None:
        """Make the versions of these operators the visible ones; once in a run."""
        if kind in self.activated:
            return
        self.activated.add(kind)
        for name, operator in self.operators(kind).items():
            group = operator_group(kind, name)
            self.corpus.activate_version(group, self.version(name, operator))
            if self.scope.retry_failed:
                self.corpus.delete_by_status(group, ["failed", "unavailable"])

    def operators_todo(self, kind: str, names: Iterable[str], ids: pa.ChunkedArray | pa.Array) -> dict[str, pa.Array]:
        """By operator, which of the clips have no row."""
        return {name: missing(self.corpus, operator_group(kind, name), ids) for name in names}

    def operators_work(self, kind: str, names: Sequence[str], seal_after_s: float | None = None) -> Work:
        """The work of a pool of operators. `seal_after_s`: see `PartWriter`."""
        operators = self.operators(kind)
        maps = {name: self.maps_of(kind, name) for name in names}
        options = self.recipe.work
        spec = OperatorSpec(
            corpus_url=self.corpus.store.url,
            operators={name: operators[name] for name in names},
            versions={name: self.version(name, operators[name]) for name in names},
            environments=ready_environments(self.recipe, kind, names),
            short_side_px=options.short_side_px,
            required_maps=maps,
            compact=options.storage == "compact",
            limits=options.limits(),
            reader=options.reader,
            seal_after_s=seal_after_s,
        )
        title = " + ".join(names) if len(names) <= 2 else f"{len(names)} {kind}s"
        sources = frozenset(source for of_one in maps.values() for source in of_one.values())
        return Work(title, spec, {name: operator_group(kind, name) for name in names}, sources)

    def version(self, name: str, operator: Operator) -> str:
        """The version of an operator's rows."""
        # the frames an operator sees depend on the working size, so its results do too
        parts: dict[str, Any] = {"operator": operator.version(), "short_side_px": self.recipe.work.short_side_px}
        if operator.kind == "annotator" and self.recipe.work.storage != "full":
            parts["storage"] = self.recipe.work.storage
        parts |= self._reader_facts()
        parts |= environment_facts(self.recipe, operator.kind, name)
        maps = self.maps_of(operator.kind, name)
        if maps:  # and on the maps it starts from
            parts["maps"] = [[*source, self.group_version(source.annotator)] for source in maps.values()]
        return fingerprint(**parts)

    def _reader_facts(self) -> dict[str, str]:
        """The part of a version that says by what frames are decoded; nothing for the default."""
        reader = self.recipe.work.reader
        return {} if reader == WorkOptions.reader else {"reader": reader}

    def group_version(self, annotator: str) -> str:
        """The version that an annotator's rows have, or will have after this run."""
        if annotator in self.recipe.annotators and self.scope.covers(annotator):
            return self.version(annotator, self.recipe.annotators[annotator])
        return self.corpus.group_version(annotation_group(annotator))

    # ------------------------------------------------------------------ encode

    @functools.cached_property
    def captions(self) -> CaptionColumn | None:
        """The annotator's column that captions are taken from; None: the clips' own."""
        given = self.recipe.encode.caption if self.recipe.encode else ""
        return caption_column(given, self.recipe.annotators, self.corpus) if given else None

    @functools.cached_property
    def streams(self) -> list[encode_phase.EncodeStream]:
        """What is encoded, and into which column groups."""
        assert self.recipe.encode is not None
        family, text_family = self._families()
        streams = []
        for name in self.recipe.encode.modalities:
            annotator, _, modality = name.rpartition(".")
            group = latent_group(family, modality)
            if modality == "rgb" and not annotator:
                facts = self._reader_facts()
                version = fingerprint(family=family, **facts) if facts else family
                streams.append(encode_phase.EncodeStream(modality, "", group, version))
                continue
            annotator = annotator or annotator_of(modality, "[encode] modalities", self.recipe, self.corpus)
            version = fingerprint(family=family, source=self.group_version(annotator), annotator=annotator)
            streams.append(encode_phase.EncodeStream(modality, annotator, group, version))
        version = text_family
        if self.captions:  # other texts, or the same column made anew: other embeddings
            made = self.group_version(self.captions.annotator)
            version = fingerprint(family=text_family, source=made, captions=".".join(self.captions))
        streams.append(encode_phase.EncodeStream(encode_phase.TEXT, "", text_group(text_family), version))
        return streams

    def activate_streams(self) -> None:
        """Write what describes the latents, and make the versions of all streams the visible ones; once in a run."""
        if "encode" in self.activated:
            return
        self.activated.add("encode")
        self._write_families()
        self.corpus.save_record(encoded={stream.modality: stream.group for stream in self.streams})
        for stream in self.streams:
            self.corpus.activate_version(stream.group, stream.version)
            if self.scope.retry_failed:
                self.corpus.delete_by_status(stream.group, ["failed"])

    def encodable(self, stream: encode_phase.EncodeStream) -> pa.Array | None:
        """Ids of the clips that have what a stream is made of; None: all of them."""
        if stream.annotator:
            return clip_ids_with_modality(self.corpus, stream.annotator, stream.modality)
        if self.captions and stream.modality == encode_phase.TEXT:
            return clip_ids_with_caption(self.corpus, self.captions)
        return None

    def streams_todo(self, ids: pa.ChunkedArray | pa.Array) -> dict[str, pa.Array]:
        """By stream, which of the clips have no row and can have one."""
        todo = {}
        for stream in self.streams:
            left, there = missing(self.corpus, stream.group, ids), self.encodable(stream)
            if there is not None:
                left = pc.and_(left, pc.is_in(ids, there))
            todo[stream.modality] = left.combine_chunks() if isinstance(left, pa.ChunkedArray) else left
        return todo

    def encode_work(self, ids: pa.ChunkedArray | pa.Array) -> Work:
        """The work of the pool that encodes. `ids`: of the clips that may be encoded."""
        options, codec, text_codec = self.recipe.encode, self.recipe.latent_codec, self.recipe.text_codec
        assert options is not None and codec is not None and text_codec is not None
        limits = dataclasses.replace(self.recipe.work.limits(), max_decoded_bytes=Limits.max_decoded_bytes)
        streams = tuple(self.streams)
        measured = psnr_clips(self.clips_without_latents(ids).to_pylist()) if options.psnr else frozenset()
        url, reader = self.corpus.store.url, self.recipe.work.reader
        spec = encode_phase.EncodeSpec(url, options, codec, text_codec, streams, limits, reader, measured)
        sources = frozenset(MapSource(stream.annotator, stream.modality) for stream in streams if stream.annotator)
        return Work("encode", spec, {stream.modality: stream.group for stream in streams}, sources, self.captions)

    def clips_without_latents(self, ids: pa.ChunkedArray | pa.Array) -> pa.Array:
        """Those of the clips that have no latents of their frames yet."""
        group = next((stream.group for stream in self.streams if stream.modality == "rgb"), None)
        return ids.filter(missing(self.corpus, group, ids)) if group else ids.slice(0, 0)

    @functools.cached_property
    def latent_family(self) -> str:
        """Name of the latent family that the recipe encodes into."""
        return self._families()[0]

    def _families(self) -> tuple[str, str]:
        options, codec, text_codec = self.recipe.encode, self.recipe.latent_codec, self.recipe.text_codec
        assert options is not None and codec is not None and text_codec is not None
        return encode_phase.family_name(options, codec), encode_phase.text_family_name(text_codec)

    def _write_families(self) -> None:
        options, codec, text_codec = self.recipe.encode, self.recipe.latent_codec, self.recipe.text_codec
        assert options is not None and codec is not None and text_codec is not None
        family, text_family = self._families()
        record = encode_phase.family_record(options, codec, self.streams)
        known = self.corpus.families().get(family, {}).get("modalities", [])
        record["modalities"] = sorted({*record["modalities"], *known})
        self.corpus.write_json(family_record(LATENTS, family), record)
        text_record = encode_phase.text_family_record(text_codec, ".".join(self.captions or ()))
        self.corpus.write_json(family_record(TEXT, text_family), text_record)
