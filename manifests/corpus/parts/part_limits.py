"""What a part may declare and contain. A corpus may come from anybody: parts are checked before their rows are used.

Compression hides size: a few kilobytes can declare a billion rows. A row has a clip id of its own, which takes space in
the file; therefore the number of rows is bounded by the number of bytes. Values that every accepted row has are checked
for null and for their bounds, so that no later code needs to ask.
"""

import math

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openuni.manifests.contracts.schema import OUTCOME_FIELDS, WINDOWED_LATENT_SCHEMA, clip_schema
from openuni.manifests.corpus.layout import CLIPS, LATENTS, TEXT, operator_of
from openuni.manifests.corpus.names import RULES
from openuni.manifests.errors import DamagedFile

MIN_ROWS = 10_000  # always allowed
MAX_ROWS_PER_BYTE = 2  # of a file; ids that count on take about one byte in zstd
MAX_EXPANSION = 500  # of compressed pages; zstd reaches several thousand, but not with data that anybody measured
MIN_EXPANDED_BYTES = 256 * 2**20  # always allowed
NUMBER_BYTES = 8  # of any number in memory
TEXT_KIND = "BYTE_ARRAY"  # how Parquet stores texts
PREFIX_ENCODING = "DELTA_BYTE_ARRAY"  # texts as what they share with the one before, and the rest; others write it
MAX_COLUMNS = 10_000  # leaves; all operators together have fewer than a thousand
ADVICE = (
    "OpenUni does not write such values. Do not use this corpus if you do not know where it comes from; else correct "
    "the file, or delete it and rerun."
)


# columns of every accepted row: none is null, numbers are finite and at least this
CLIP_BOUNDS: dict[str, float | None] = {
    "source": None,
    "stream_index": 0,
    "start_pts": -math.inf,
    "end_pts": -math.inf,
    "time_base_num": 1,
    "time_base_den": 1,
    "frame_count": 1,
    "fps": 0,
    "width_px": 1,
    "height_px": 1,
    "codec": None,
    "pts_hash": None,
}
EXTENT_BOUNDS: dict[str, float | None] = {"offset": 0, "nbytes": 0, "xxh3": 0}
TENSOR_BOUNDS = EXTENT_BOUNDS | {"shard": None, "shape": None, "dtype": None}
LATENT_BOUNDS = TENSOR_BOUNDS | {"fps": 0, "height_px": 1, "width_px": 1}  # the last three where the columns exist
MAP_BOUNDS = EXTENT_BOUNDS | {"frames": 1, "height_px": 1, "width_px": 1}


def check_declared(metadata: pq.FileMetaData, nbytes: int, where: str) -> list[str]:
    """Raise `DamagedFile` for a part of `nbytes` bytes whose footer declares more than such a file can hold.

    Returns the paths of the text columns that must be measured when they are read, see `part_texts.py`: a few kilobytes
    may hold one text of 100 MB in a dictionary, and ten thousand references to it. Most parts have none.
    """
    if metadata.num_rows > max(MIN_ROWS, MAX_ROWS_PER_BYTE * nbytes):
        raise DamagedFile(where, f"declares {metadata.num_rows:,} rows in {nbytes:,} bytes", ADVICE)
    if metadata.num_columns > MAX_COLUMNS:
        raise DamagedFile(where, f"has {metadata.num_columns:,} columns; at most {MAX_COLUMNS:,} are allowed", ADVICE)
    limit = max_expanded_bytes(nbytes)
    expanded, numbers, texts = 0, 0, dict[str, int]()
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        expanded += group.total_byte_size
        for chunk in (group.column(number) for number in range(group.num_columns)):
            if chunk.physical_type != TEXT_KIND:
                numbers += chunk.num_values * NUMBER_BYTES
                continue
            most, path = chunk.num_values * chunk.total_uncompressed_size, chunk.path_in_schema
            texts[path] = texts.get(path, 0) + most
            if most > limit and PREFIX_ENCODING in chunk.encodings:
                raise DamagedFile(where, f"column {path} has the encoding {PREFIX_ENCODING}", ADVICE)
    if max(expanded, numbers) > limit:
        raise DamagedFile(where, f"expands from {nbytes:,} to {max(expanded, numbers):,} bytes", ADVICE)
    return list(texts) if sum(texts.values()) > limit else []


def max_expanded_bytes(nbytes: int) -> int:
    """The memory that the rows of a part of `nbytes` bytes may take."""
    return max(MIN_EXPANDED_BYTES, MAX_EXPANSION * nbytes)


def text_bytes(values: pa.Array) -> int:
    """Bytes of all texts that an array of any type refers to by a dictionary: footers tell the size of others."""
    if pa.types.is_struct(values.type):
        return sum(text_bytes(values.field(number)) for number in range(values.type.num_fields))
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return text_bytes(values.values)
    if pa.types.is_dictionary(values.type) and _kind(values.type) == "text":
        lengths = pc.binary_length(values.dictionary).cast(pa.int64())
        return int(pc.sum(lengths.take(values.indices)).as_py() or 0)
    return 0


def checked_columns(group: str, schema: pa.Schema) -> list[str]:
    """The columns of a part that `check_values` reads, as dotted names."""
    bounds = _row_bounds(group)
    if bounds is not None:
        return [name for name in schema.names if name in bounds or name == "status"]
    return [".".join((*path, name)) for path in _map_paths(schema, group) for name in ("shard", *MAP_BOUNDS)]


def check_kinds(schema: pa.Schema, group: str, where: str) -> None:
    """Raise `DamagedFile` for a column of another kind than OpenUni's: text where a number belongs, and the like."""
    if group == CLIPS:
        expected, found = list(clip_schema()), schema
    elif _row_bounds(group) is not None:
        expected, found = list(WINDOWED_LATENT_SCHEMA), schema
    else:
        operator = operator_of(group)
        if operator is None or operator not in schema.names:
            return  # another error names it
        if not pa.types.is_struct(schema.field(operator).type):
            raise DamagedFile(where, f"column {operator} has type {schema.field(operator).type}, not struct", ADVICE)
        expected, found = OUTCOME_FIELDS, pa.schema(list(schema.field(operator).type))
    for field in expected:
        place = -1 if field.name in RULES else found.get_field_index(field.name)  # names have an error of their own
        if place >= 0 and _kind(found.field(place).type) not in (_kind(field.type), "null"):
            text = f"column {field.name} has type {found.field(place).type}, not {field.type}"
            raise DamagedFile(where, text, ADVICE)


def _kind(given: pa.DataType) -> str:
    """What other writers may store with another type, such as int32 for int64."""
    if pa.types.is_dictionary(given):
        given = given.value_type
    if pa.types.is_integer(given) or pa.types.is_floating(given):
        return "number"
    if pa.types.is_string(given) or pa.types.is_large_string(given):
        return "text"
    if pa.types.is_list(given) or pa.types.is_large_list(given):
        return f"list of {_kind(given.value_type)}"
    return str(given)


def check_values(table: pa.Table, group: str, where: str) -> None:
    """Raise `DamagedFile` for a value without which a row cannot be used. `table`: the `checked_columns` of a part."""
    bounds = _row_bounds(group)
    if bounds is not None:
        accepted = table.filter(pc.fill_null(pc.equal(table.column("status"), "ok"), False))
        for name in bounds.keys() & set(accepted.column_names):
            _check_column(accepted.column(name), name, bounds[name], where)
        return
    for path in _map_paths(table.schema, group):
        maps = table.column(path[0])
        for name in path[1:]:
            maps = pc.struct_field(maps, name)
        stored = maps.filter(pc.is_valid(pc.struct_field(maps, "shard")))
        for name, minimum in MAP_BOUNDS.items():
            _check_column(pc.struct_field(stored, name), ".".join((*path, name)), minimum, where)


def _row_bounds(group: str) -> dict[str, float | None] | None:
    """Bounds of a group's own columns; None for operators, whose maps are structs."""
    if group == CLIPS:
        return CLIP_BOUNDS
    if group.startswith(f"{LATENTS}/"):
        return LATENT_BOUNDS
    return TENSOR_BOUNDS if group.startswith(f"{TEXT}/") else None


def _map_paths(schema: pa.Schema, group: str) -> list[tuple[str, str]]:
    """(operator, modality) of the maps in an operator's column."""
    operator = operator_of(group)
    if operator is None or operator not in schema.names or not pa.types.is_struct(schema.field(operator).type):
        return []
    structs = [field for field in schema.field(operator).type if pa.types.is_struct(field.type)]
    whole = {"shard", *MAP_BOUNDS}
    return [(operator, field.name) for field in structs if whole <= {inner.name for inner in field.type}]


def _check_column(values: pa.ChunkedArray, name: str, minimum: float | None, where: str) -> None:
    if values.null_count:
        raise DamagedFile(where, f"column {name} is null in {values.null_count:,} accepted rows", ADVICE)
    if minimum is None or not len(values):
        return
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DamagedFile(where, f"column {name} has type {values.type}; must be a number", ADVICE)
    low = pc.min(values).as_py()
    finite = not pa.types.is_floating(values.type) or pc.all(pc.is_finite(values)).as_py()
    if low < minimum or not finite:
        text = "NaN or infinite" if not finite else f"{low}, below the minimum {minimum:g}"
        raise DamagedFile(where, f"column {name} contains {text}", ADVICE)
