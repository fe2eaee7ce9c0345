"""Parquet schemas derived from Python types: the result type of a producer defines its column group."""

import dataclasses
import math
import types
from functools import cache
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.options import annotation_text, strip_annotation
from openuni.manifests.contracts.producer import Producer
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.clip import Clip

SCALARS: dict[Any, pa.DataType] = {
    float: pa.float64(),
    np.float32: pa.float32(),  # for vectors: lists that are valid only as a whole
    int: pa.int64(),
    str: pa.string(),
    bool: pa.bool_(),
}

# first fields of every producer's struct
OUTCOME_FIELDS = [
    pa.field("status", pa.string()),  # ok, failed, unavailable
    pa.field("error", pa.string()),  # reason, if not ok
    pa.field("version", pa.string()),  # see Component.version
    pa.field("ms", pa.float64()),  # duration of `run`, milliseconds
]

OUTCOME = frozenset(field.name for field in OUTCOME_FIELDS)

# location of a payload
EXTENT_FIELDS = [
    pa.field("shard", pa.string()),  # file name, in the folder of the Parquet file
    pa.field("offset", pa.int64()),  # position of the payload's first byte
    pa.field("nbytes", pa.int64()),
    pa.field("xxh3", pa.uint64()),  # checksum
]

MAP_FIELDS = [
    *EXTENT_FIELDS,
    pa.field("frames", pa.int32()),
    pa.field("height_px", pa.int32()),
    pa.field("width_px", pa.int32()),
    pa.field("pts_hash", pa.string()),  # equals the clip's: the same timestamps
]

LATENT_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        *OUTCOME_FIELDS,
        *EXTENT_FIELDS,
        pa.field("shape", pa.list_(pa.int32())),  # C, T', H', W' for latents; L, D for text
        pa.field("dtype", pa.string()),
        pa.field("frames", pa.int32()),  # number of encoded video frames; null for text
        pa.field("absmax", pa.float64()),
        pa.field("std", pa.float64()),
    ]
)

# of families with a frame rate, buckets or windows of their own
WINDOWED_LATENT_SCHEMA = pa.schema(
    [
        *LATENT_SCHEMA,  # shape: of families with windows N, C, T', H', W'
        pa.field("fps", pa.float64()),  # frames per second of the encoded video
        pa.field("height_px", pa.int32()),  # of the encoded video
        pa.field("width_px", pa.int32()),
        # the windows in the payload, one after another, all of the same length; null in families without windows
        pa.field("windows", pa.list_(pa.struct([("first_frame", pa.int32()), ("xxh3", pa.uint64())]))),
    ]
)


class Column(NamedTuple):
    """One column of a producer, for `openuni show`."""

    name: str
    type: str
    doc: str


@cache
def clip_schema() -> pa.Schema:
    """Schema of `clips/`: the fields of `Clip`, then `status` and `error` of ingest."""
    hints = get_type_hints(Clip)
    fields = [pa.field(field.name, SCALARS[_strip_optional(hints[field.name])]) for field in dataclasses.fields(Clip)]
    return pa.schema([*fields, pa.field("status", pa.string()), pa.field("error", pa.string())])


def producer_schema(producer: type[Producer]) -> pa.Schema:
    """Schema of a producer's column group: `clip_id` and one struct column named after the producer."""
    fields = list(OUTCOME_FIELDS)
    for name, hint in result_hints(producer).items():
        if name in OUTCOME:
            raise OpenUniError(f'{producer.name()}: result field "{name}" is a reserved name. Rename the field.')
        fields.append(pa.field(name, arrow_type(hint, f"{producer.name()}.{name}")))
    return pa.schema([pa.field("clip_id", pa.string()), pa.field(producer.name(), pa.struct(fields))])


def text_columns(fields: pa.StructType) -> list[str]:
    """Names of the text columns in a producer's struct, without `status`, `error` and `version`."""
    return [field.name for field in fields if pa.types.is_string(field.type) and field.name not in OUTCOME]


def result_hints(producer: type[Producer]) -> dict[str, Any]:
    """Field name -> annotated type of the producer's result."""
    return get_type_hints(producer.result_type(), include_extras=True)


def modality_fields(producer: type[Producer]) -> dict[str, type[Modality]]:
    """Field name -> modality class, for the modalities in the producer's result."""
    found = {}
    for name, hint in result_hints(producer).items():
        bare = _strip_optional(strip_annotation(hint))
        if isinstance(bare, type) and issubclass(bare, Modality):
            found[name] = bare
    return found


def arrow_type(hint: Any, where: str) -> pa.DataType:
    """Arrow type of a result field. Raises `OpenUniError` that lists the allowed types; `where`: name of the field."""
    bare = _strip_optional(strip_annotation(hint))
    if bare in SCALARS:
        return SCALARS[bare]
    if get_origin(bare) in (list, tuple):
        return pa.list_(arrow_type(get_args(bare)[0], where))
    if isinstance(bare, type) and issubclass(bare, Modality):
        return pa.struct([*MAP_FIELDS, *_tuple_fields(bare.constants_type, where)])
    if isinstance(bare, type) and hasattr(bare, "_fields"):
        return pa.struct(_tuple_fields(bare, where))
    allowed = "float, int, str, bool, lists and NamedTuples of them, modalities; each optionally | None"
    raise OpenUniError(f"{where}: results of type {hint!r} cannot be stored. Allowed: {allowed}.")


def columns(producer: type[Producer]) -> list[Column]:
    """The columns of a producer, with types and descriptions."""
    schema = producer_schema(producer).field(producer.name()).type
    listed = []
    for name, hint in result_hints(producer).items():
        bare = _strip_optional(strip_annotation(hint))
        is_map = isinstance(bare, type) and issubclass(bare, Modality)
        kind = f"modality {bare.name}" if is_map else str(schema.field(name).type)
        doc = annotation_text(hint) or (_first_line(bare.__doc__) if is_map else "")
        listed.append(Column(f"{producer.name()}.{name}", kind, doc))
    return listed


def plain(value: Any) -> Any:
    """Convert a result to plain Python for JSON and Arrow: NumPy scalars and arrays, and NamedTuples to dicts."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def stored(value: Any, kind: pa.DataType, where: str) -> Any:
    """A result as its row stores it: plain Python without NaN and infinities. `kind`: Arrow type of the column.

    A float that is NaN or infinite was not measured: null, at any depth of NamedTuples and lists, so that it never
    passes a keep rule (DuckDB orders NaN above every number). A list of `np.float32` is a vector, such as an
    embedding, and valid only as a whole: raises `ClipError`, since a changed component would make it another vector.
    `where`: name of the column.
    """
    return _finite(plain(value), kind, where)


def stored_constants(constants: Any, where: str) -> dict[str, Any]:
    """A map's constants as its row stores them. Raises `ClipError` if one is NaN or infinite."""
    found: dict[str, Any] = plain(constants)
    for name, value in found.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ClipError(f"{where}: constant {name} must be finite, got {value:g}")
    return found


def null_nonfinite(array: pa.Array) -> pa.Array:
    """An Arrow array with null for every float that is NaN or infinite, also in structs; lists stay as they are.

    For rows of corpora that were written before `stored` did so.
    """
    if pa.types.is_struct(array.type):
        fields = [null_nonfinite(array.field(number)) for number in range(array.type.num_fields)]
        names = [field.name for field in array.type]
        if not fields:
            return array
        return pa.StructArray.from_arrays(fields, names, mask=pc.is_null(array) if array.null_count else None)
    if pa.types.is_floating(array.type):
        return pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))
    return array


def _finite(value: Any, kind: pa.DataType, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return {key: _finite(item, kind.field(key).type, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list) and pa.types.is_list(kind):
        inner = kind.value_type
        if pa.types.is_float32(inner):
            nonfinite = sum(not math.isfinite(item) for item in value if isinstance(item, float))
            if nonfinite:
                raise ClipError(f"{where}: {nonfinite} of {len(value)} components are NaN or infinite")
            return value
        return [_finite(item, inner, where) for item in value]
    return value


def _tuple_fields(kind: type[Any], where: str) -> list[pa.Field]:
    hints = get_type_hints(kind, include_extras=True)
    return [pa.field(name, arrow_type(hint, f"{where}.{name}")) for name, hint in hints.items()]


def _strip_optional(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        if len(rest) == 1:
            return strip_annotation(rest[0])
    return hint


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]
