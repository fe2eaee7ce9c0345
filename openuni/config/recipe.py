"""Recipes: one TOML file that says what to measure and what to make. Strict: what is not known is an error."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from openuni.config.captions import caption_column
from openuni.config.encode_options import EncodeOptions as EncodeOptions
from openuni.dedup.deduplicator import deduplicator_schemas
from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.operator import Annotator, Filter, find_operator
from openuni.manifests.contracts.options import Formerly, check_options, recorded
from openuni.manifests.contracts.parsing import parse_options, reject_unknown_keys
from openuni.manifests.contracts.schema import clip_schema, producer_schema
from openuni.manifests.corpus import keep_rule
from openuni.manifests.corpus.layout import filter_group
from openuni.manifests.corpus.names import new_label_fault
from openuni.manifests.errors import OpenUniError
from openuni.manifests.hosting.environment import Environment, split_table
from openuni.manifests.text_files import load_toml
from openuni.manifests.video.decoder.limits import Limits
from openuni.shots.shot_detector import ShotDetector, find_shot_detector, shot_detector_names
from openuni.training.codec import LatentCodec, TextCodec


@dataclass(frozen=True)
class IngestOptions:
    """How sources become clips."""

    shots: Annotated[str, "shot detector (see `openuni list`); none: one clip per file"] = "none"
    min_s: Annotated[
        float, "minimum clip length, seconds; shorter clips are discarded, after all other steps", Ge(0)
    ] = 0.0
    max_s: Annotated[float, "maximum clip length, seconds; 0: no limit", Ge(0)] = 0.0
    split: Annotated[
        Literal["equal", "windows", "first", "drop"],
        "handling of shots longer than max_s: equal parts, windows of max_s and a remainder, the first window only, or "
        "discard",
    ] = "equal"
    trim_frames: Annotated[
        int, "number of frames trimmed from both ends of a shot, in addition to dissolves and fades", Ge(0)
    ] = 0
    captions: Annotated[bool, "whether the sidecar file NAME.txt of NAME.mp4 is the caption of its clip"] = True
    copy_caption_to_clips: Annotated[
        bool, "whether all clips of a file get its caption, if it is split into several", Formerly("share_captions")
    ] = False
    collection: Annotated[str, "collection (dataset) name of the sources, such as koala36m; empty: none"] = ""
    max_duration_s: Annotated[float, "maximum file length, seconds; longer files are rejected", Gt(0)] = 4 * 3600.0
    max_frame_px: Annotated[int, "maximum number of pixels per frame; larger files are rejected", Ge(1)] = 8192 * 8192
    probe_timeout_s: Annotated[float, "maximum probing time per file, seconds", Gt(0)] = 120.0

    def __post_init__(self) -> None:
        check_options(self, "[ingest]")
        if self.collection and (fault := new_label_fault(self.collection)):
            raise OpenUniError(f"[ingest] collection = {fault}")
        if 0 < self.max_s < self.min_s:
            raise OpenUniError(
                f"[ingest]: max_s = {self.max_s:g} is less than min_s = {self.min_s:g}. Raise max_s or lower min_s."
            )


@dataclass(frozen=True)
class WorkOptions:
    """Preprocessing of frames, and storage of maps."""

    short_side_px: Annotated[
        int, "working size: short side of the frames that operators get, pixels; 0: original size", Ge(0)
    ] = 720
    max_decoded_gb: Annotated[
        float,
        "maximum size of the decoded frames of a clip, GB; larger clips are processed in windows of about 3 % of it, "
        "or fail in operators that need all frames at once (openuni show NAME), which take up to 15 times that. If all "
        "annotators of a worker can, clips above a quarter of it are processed in windows, too",
        Gt(0),
    ] = 4.0
    decoder_memory_gb: Annotated[
        float,
        "maximum memory of a decoder process, GB, without the frames it returns; a clip that needs more fails",
        Gt(0),
    ] = 4.0
    decoder_timeout_s: Annotated[
        float, "time without a packet or frame, seconds, after which a decoder is stopped and its clip fails", Gt(0)
    ] = 60.0
    reader: Annotated[
        Literal["pyav", "decord", "nvdec"],
        "decoder of frames: PyAV on the CPU; decord, which rejects clips that it would show otherwise; or NVDEC, with "
        "the frames of PyAV (openuni doctor checks that a GPU can)",
    ] = "pyav"
    storage: Annotated[
        Literal["full", "compact"],
        "storage of modality maps: full precision, or compact (about 2 bits per pixel of depth, 4 of flow; for the "
        "errors see openuni show depth)",
    ] = "full"
    overlap: Annotated[
        bool, "whether GPU workers of a Ray cluster annotate or encode clips while CPU workers still filter others"
    ] = True

    def __post_init__(self) -> None:
        check_options(self, "[work]")

    def limits(self) -> Limits:
        """The limits on decoding a clip."""
        return Limits(
            max_decoded_bytes=round(self.max_decoded_gb * 1e9),
            max_decoder_bytes=round(self.decoder_memory_gb * 1e9),
            max_stall_s=self.decoder_timeout_s,
        )


@dataclass(frozen=True)
class CorpusRecipe:
    """A parsed recipe: everything a run does, as objects."""

    keep: str = ""
    accept: tuple[str, ...] = ()  # checkpoints whose licence the user has found to fit
    ingest: IngestOptions = IngestOptions()
    shot_detector: ShotDetector = field(default_factory=lambda: find_shot_detector(IngestOptions.shots)())
    work: WorkOptions = WorkOptions()
    filters: Mapping[str, Filter] = field(default_factory=dict)
    annotators: Mapping[str, Annotator] = field(default_factory=dict)
    environments: Mapping[str, Environment] = field(default_factory=dict)  # by "filters.NAME" or "annotators.NAME"
    encode: EncodeOptions | None = None
    latent_codec: LatentCodec | None = None
    text_codec: TextCodec | None = None

    @classmethod
    def load(cls, path: str | Path) -> "CorpusRecipe":
        """Read and check a recipe file."""
        file = Path(path)
        if not file.is_file():
            raise OpenUniError(f"there is no recipe {file}. Write one with: openuni init {file}")
        return cls.parse(load_toml(file), str(file))

    @classmethod
    def parse(cls, tables: Mapping[str, Any], where: str = "recipe", *, imports: bool = True) -> "CorpusRecipe":
        """Check tables as `tomllib` gives them. Raises `OpenUniError` with the nearest known name.

        `imports`: whether dotted names may import modules; not for tables that are data, such as those of a ledger.
        """
        reject_unknown_keys(tables, ["keep", "accept", "ingest", "work", "filters", "annotators", "encode"], where)
        keep = tables.get("keep", "")
        if not isinstance(keep, str):
            raise OpenUniError(f"{where}: keep must be a string, got {keep!r}")
        accept = tables.get("accept", [])
        if not (isinstance(accept, list | tuple) and all(isinstance(name, str) for name in accept)):
            raise OpenUniError(f"{where}: accept must be a list of checkpoint names, got {accept!r}")
        environments: dict[str, Environment] = {}
        filters = {
            name: _operator("filter", name, options, where, environments, imports)
            for name, options in _tables(tables, "filters", where)
        }
        annotators = {
            name: _operator("annotator", name, options, where, environments, imports)
            for name, options in _tables(tables, "annotators", where)
        }
        recipe = cls(
            keep=keep,
            accept=tuple(accept),
            **_ingest_parts(tables.get("ingest", {}), where, imports),
            work=parse_options(WorkOptions, tables.get("work", {}), f"{where}: [work]"),
            filters=filters,
            annotators=annotators,
            environments=environments,
            **_encode_parts(tables.get("encode"), where, imports),
        )
        recipe.check()
        return recipe

    def check(self) -> None:
        """What no single table can know: that `keep` and `encode.caption` read columns which the recipe fills."""
        schemas = {"clips": clip_schema()}
        schemas |= {filter_group(name): producer_schema(type(operator)) for name, operator in self.filters.items()}
        schemas |= deduplicator_schemas()  # made between runs
        keep_rule.check(keep_rule.parse(self.keep), schemas)
        if self.encode is not None and self.encode.caption:
            caption_column(self.encode.caption, self.annotators)
        for name, operator in self.filters.items():
            if self.work.reader == "decord" and getattr(operator, "requires_motion_vectors", False):
                raise OpenUniError(
                    f'[work] reader = "decord" gives no motion vectors, which [filters.{name}] requires. Set reader = '
                    '"pyav" or "nvdec", or leave the filter out.'
                )

    def components(self) -> list[Component]:
        """Every component that a run of this recipe loads."""
        codecs = [codec for codec in (self.latent_codec, self.text_codec) if codec is not None]
        return [self.shot_detector, *self.filters.values(), *self.annotators.values(), *codecs]

    def as_tables(self) -> dict[str, Any]:
        """All options, defaults included, as JSON-able tables: what the ledger of a run keeps."""
        tables: dict[str, Any] = {
            "keep": self.keep,
            "accept": list(self.accept),
            "ingest": recorded(self.ingest) | {self.ingest.shots: recorded(self.shot_detector)},
            "work": recorded(self.work),
            "filters": {name: recorded(operator) for name, operator in self.filters.items()},
            "annotators": {name: recorded(operator) for name, operator in self.annotators.items()},
        }
        for place, environment in self.environments.items():
            kind, _, name = place.partition(".")
            tables[kind][name] |= {key: value for key, value in recorded(environment).items() if value}
        if self.encode is not None and self.latent_codec is not None and self.text_codec is not None:
            tables["encode"] = recorded(self.encode) | {
                self.encode.latents: recorded(self.latent_codec),
                self.encode.text: recorded(self.text_codec),
            }
        return tables


def parse_assignments(given: Sequence[str], where: str) -> dict[str, Any]:
    """Options from `name=value` texts, as a command line has them; values are written as in TOML, or bare words."""
    table: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise OpenUniError(f'{where}: "{text}" must be written name=value')
        name = name.strip()
        if name in table:
            raise OpenUniError(f'{where}: "{name}" is given twice. Give it once.')
        try:
            table[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            table[name] = value.strip()  # a text without quotes
        except (ValueError, RecursionError) as error:  # thousands of digits or brackets
            raise OpenUniError(f"{where}: {name}={value[:40]}... is not valid TOML: {error}") from error
    return table


def _tables(tables: Mapping[str, Any], kind: str, where: str) -> list[tuple[str, Any]]:
    group = tables.get(kind, {})
    if not isinstance(group, Mapping):
        raise OpenUniError(f"{where}: write [{kind}.NAME] tables, got {kind} = {group!r}")
    return list(group.items())


def _operator(
    kind: str, name: str, options: Any, where: str, environments: dict[str, Environment], imports: bool
) -> Any:
    """An operator from its table. If that names an environment, it is added to those."""
    cls, table = find_operator(kind, name, imports=imports), f"{where}: [{kind}s.{name}]"
    options, environment = split_table(cls, options)
    if environment:
        environments[f"{kind}s.{name}"] = parse_options(Environment, environment, table)
    return parse_options(cls, options, table)


def _ingest_parts(table: Any, where: str, imports: bool) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise OpenUniError(f"{where}: [ingest] must be a table, got {table!r}")
    name = str(table.get("shots", IngestOptions.shots))
    for key in table.keys() & set(shot_detector_names()) - {name}:
        raise OpenUniError(f'{where}: [ingest.{key}] applies only to shots = "{key}", but shots = "{name}"')
    detector = table.get(name, {})
    ingest = parse_options(
        IngestOptions, {key: value for key, value in table.items() if key != name}, f"{where}: [ingest]"
    )
    cls = find_shot_detector(ingest.shots, imports=imports)
    return {"ingest": ingest, "shot_detector": parse_options(cls, detector, f"{where}: [ingest.{name}]")}


def _encode_parts(table: Any, where: str, imports: bool) -> dict[str, Any]:
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        raise OpenUniError(f"{where}: [encode] must be a table, got {table!r}")
    names = [table.get("latents", EncodeOptions.latents), table.get("text", EncodeOptions.text)]
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    known = [item.name for item in dataclasses.fields(EncodeOptions)]
    reject_unknown_keys(table, [*known, *map(str, names)], f"{where}: [encode]")
    encode = parse_options(
        EncodeOptions, {key: value for key, value in table.items() if key not in inner}, f"{where}: [encode]"
    )
    codecs = {}
    for key, base, name in (("latent_codec", LatentCodec, encode.latents), ("text_codec", TextCodec, encode.text)):
        cls = find_component("codecs", base, name, imports=imports)
        codecs[key] = parse_options(cls, inner.get(name, {}), f"{where}: [encode.{name}]")
    encode.check_codec(codecs["latent_codec"])
    return {"encode": encode, **codecs}
