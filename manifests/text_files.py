"""Text from untrusted files (captions, lists, recipes, CSVs): UTF-8, or UTF-16 and UTF-32 with a byte order mark."""

import codecs
import tomllib
from pathlib import Path
from typing import Any

from openuni.manifests.errors import ClipError, OpenUniError

# UTF-32 first: its little-endian mark begins with that of UTF-16. These codecs strip the mark.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARK_BYTES = 4  # of the longest mark


def encoding_of(head: bytes) -> str:
    """Name of the codec for a file that begins with these bytes (at least `MARK_BYTES` of a longer file)."""
    return next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")


def decode_text(data: bytes, where: str) -> str:
    """The text in `data`, without byte order mark. Line ends are unchanged. `where`: the file, for errors.

    Raises `ClipError` that names the line for other encodings, which cannot be told apart reliably, and for NUL
    characters, which text does not contain (but UTF-16 without a byte order mark does).
    """
    encoding = encoding_of(data[:MARK_BYTES])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x} is not {encoding.removesuffix('-sig').upper()} ({error.reason})"
        raise ClipError(f"{where}, line {line}: {found}. Save the file as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ClipError(
            f"{where}, line {line}: contains a NUL character: not text, or UTF-16 without a byte order mark. "
            "Save the file as UTF-8."
        )
    return text


def load_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises `OpenUniError` for invalid TOML, `OSError` if the file cannot be read."""
    try:
        return tomllib.loads(decode_text(path.read_bytes(), str(path)))
    except ClipError as error:
        raise OpenUniError(str(error)) from error
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise OpenUniError(f"{path} is not valid TOML: {error}") from error
