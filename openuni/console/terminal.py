"""What commands print. Names, captions and errors of others pass through here and cannot control the terminal."""

import re
import sys

# Control characters but line feed and tab, line separators, marks that reorder text, invisible tags, lone surrogates.
# Joiners (U+200C, U+200D) and all spaces stay: words and emoji need them.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def escape(text: str) -> str:
    r"""The text with control characters as escapes such as `\x1b`; line feeds and tabs stay."""
    return UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    r"""The text on one line: line feeds and tabs are escaped too (`\n`), so that no value can pass for another line."""
    return escape(text).replace("\n", "\\n").replace("\t", "\\t")


def print_text(text: object, *, end: str = "\n", error: bool = False) -> None:
    """Print to stdout, or with `error` to stderr: `escape(str(text))`, as far as the stream's encoding can show it."""
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = escape(f"{text}").encode(encoding, "backslashreplace").decode(encoding)
    print(shown, end=end, file=stream, flush=True)


def _escaped(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
