"""Which names a corpus may contain. A corpus may come from anybody, so its names are checked when it is read.

Clip ids and shard names become file names: of exports, of members of archives, of payloads. Collections and splits are
labels that people choose; folders name operators, families and modalities. `check_part_names` is called before the rows
of a part are used, so that no later code needs to ask whether a name leads somewhere else.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openuni.manifests.errors import OpenUniError

# without dots: WebDataset takes what follows the first for a suffix
CLIP_ID = r"[0-9A-Za-z_](?:[0-9A-Za-z_ -]{0,126}[0-9A-Za-z_-])?"
# file names that Windows gives to devices, with any suffix
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE | re.DOTALL)
LONGEST_RESERVED, LONGEST_ID = 4, 128
PLAIN = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
SHARD = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.+-]{0,199}")
FOLDER = re.compile(r"\w[\w.+-]{0,199}")
MAX_LABEL_CHARS = 255
NEW_LABEL = re.compile(r"\w[\w .,:/@()+-]{0,99}")
NEW_LABEL_RULE = (
    "1 to 100 letters, digits, spaces and _ . , : / @ ( ) + -, beginning with a letter, digit or _, without a "
    'part ".." between slashes and without a space at the end'
)
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories that no label may contain
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # show a text in another order


def is_clip_id(text: str) -> bool:
    """Whether a text can be a clip id: 1 to 128 ASCII letters, digits, _, - and inner spaces."""
    return re.fullmatch(CLIP_ID, text) is not None and not RESERVED.fullmatch(text)


def is_shard(text: str) -> bool:
    """Whether a text can be the name of a shard: a plain file name."""
    return SHARD.fullmatch(text) is not None and not RESERVED.fullmatch(text)


def is_folder(text: str) -> bool:
    """Whether a text can name an operator, family or modality, which are folders of a corpus."""
    return FOLDER.fullmatch(text) is not None and not RESERVED.fullmatch(text)


def is_label(text: str) -> bool:
    """Whether a stored collection or split is harmless: it is no path out of a folder and has no control characters."""
    is_path = text.startswith(("/", "~")) or "\\" in text or ".." in text.split("/")
    hidden = any(unicodedata.category(sign) in CONTROLS or sign in DIRECTIONS for sign in text)
    return len(text) <= MAX_LABEL_CHARS and not is_path and not hidden


def new_label_fault(text: str) -> str | None:
    """Why a text must not become a collection or split, which cards, tables and terminals show; None if it may."""
    if NEW_LABEL.fullmatch(text) and ".." not in text.split("/") and not text.endswith(" "):
        return None
    return f"{shown(text)}: must be {NEW_LABEL_RULE}"


def shown(text: str) -> str:
    """The text in quotes, with escapes instead of control characters, shortened to 80 characters."""
    short = text if len(text) <= 80 else f"{text[:77]}..."
    return f'"{short}"' if short.isprintable() else ascii(short)


RULES: dict[str, tuple[Callable[[str], bool], str]] = {
    "clip_id": (
        is_clip_id,
        "1 to 128 ASCII letters, digits, _, - and inner spaces, and not a device of Windows such as NUL",
    ),
    "shard": (is_shard, "a plain file name of ASCII letters, digits and _ . + -"),
    "collection": (is_label, 'at most 255 characters without control characters, backslashes and parts ".."'),
}
RULES["split"] = RULES["collection"]


def name_columns(schema: pa.Schema) -> Iterator[tuple[str, ...]]:
    """The columns of a part that hold names: clip_id, collection, split, shard and the shard of every map."""
    for field in schema:
        if field.name in RULES:
            yield (field.name,)
        elif pa.types.is_struct(field.type):  # an operator
            for inner in field.type:
                if pa.types.is_struct(inner.type) and inner.type.get_field_index("shard") >= 0:
                    yield (field.name, inner.name, "shard")


def find_fault(values: pa.ChunkedArray, column: Sequence[str]) -> tuple[int, Any, str] | None:
    """(row, value, rule) of the first value that is not allowed in the column; None if all are."""
    is_allowed, rule = RULES[column[-1]]
    if pa.types.is_null(values.type):
        return (0, None, rule) if column[-1] == "clip_id" and len(values) else None
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return 0, f"a column of {values.type}", "text"
    if column[-1] == "clip_id":  # all differ, and there may be millions
        if all(map(_are_plain_ids, values.chunks)):
            return None
        allowed = pc.match_substring_regex(values, rf"\A{CLIP_ID}\z")
        if pc.all(allowed, skip_nulls=False).as_py() is True:
            short = pc.unique(values.filter(pc.less_equal(pc.binary_length(values), LONGEST_RESERVED))).to_pylist()
            if all(map(is_allowed, short)):
                return None
    faults = [text for text in pc.unique(values).to_pylist() if not _is_valid(text, column[-1], is_allowed)]
    if not faults:
        return None
    row = min(pc.index(values, value).as_py() if value is not None else _first_null(values) for value in faults[:1000])
    return row, values[row].as_py(), rule


def _are_plain_ids(values: pa.Array) -> bool:
    """Whether all are of letters, digits and _ alone, and too long for a reserved name: as OpenUni makes them.

    Ten times as fast as the pattern. Offsets have been validated when the part was read.
    """
    if values.null_count or not len(values):
        return not values.null_count
    kind = np.int64 if pa.types.is_large_string(values.type) else np.int32
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, kind)[values.offset : values.offset + len(values) + 1]
    lengths = np.diff(ends)
    if lengths.min() <= LONGEST_RESERVED or lengths.max() > LONGEST_ID or data is None:
        return False
    return not bytes(memoryview(data)[ends[0] : ends[-1]]).translate(None, PLAIN)


def _is_valid(text: str | None, column: str, is_allowed: Callable[[str], bool]) -> bool:
    return column != "clip_id" if text is None else is_allowed(text)


def _first_null(values: pa.ChunkedArray) -> int:
    return int(pc.index(pc.is_null(values), True).as_py())


def check_part_names(table: pa.Table, columns: Sequence[Sequence[str]], where: str) -> None:
    """Raise `OpenUniError` for the first name in a part that a corpus may not contain. `table`: these columns."""
    for column in columns:
        if not all(map(is_folder, column)):
            raise OpenUniError(f"{where}: column {shown('.'.join(column))} is not allowed: it is not a modality's name")
        values = table.column(column[0])
        for name in column[1:]:
            values = pc.struct_field(values, name)
        fault = find_fault(values, column)
        if fault is not None:
            row, value, rule = fault
            given = shown(value) if isinstance(value, str) else f"{value}"
            raise OpenUniError(
                f"{where}, row {row}, column {'.'.join(column)}: {given} is not allowed; must be {rule}. OpenUni does "
                "not write such names: do not use this corpus if you do not know where it comes from. Else correct "
                "the row, or delete the file and rerun."
            )


def check_folder_names(names: Sequence[str], where: str) -> list[str]:
    """Return the names. Raises `OpenUniError` for a folder that cannot be an operator, family or modality."""
    for name in names:
        if not is_folder(name):
            raise OpenUniError(
                f"{where}: folder {shown(name)} is not allowed; must be 1 to 200 letters, digits and _ . + -, and not "
                "a device of Windows. OpenUni does not create such folders. Delete or rename it."
            )
    return list(names)
