"""Odd names, texts and encodings as hypothesis strategies: what file systems, CSVs and JSON allow, however unlikely.

`settings(examples)` is the profile of all tests that use them: derandomized, so that a run never differs from the one
before. OPENUNI_ODD_EXAMPLES multiplies the number of examples: the slow tests use `LARGER`, a search by hand more.
"""

import os
import re
import unicodedata

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

LARGER = 6  # times as many examples in the slow step
MAX_NAME_BYTES = 255
BYTES = re.compile("[\udc80-\udcff]")  # Python's form of bytes that are not UTF-8
NAME_PARTS = (
    *("\n", "\r", "\r\n", "\t", "\x0b", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u200f", "\u202e", "\ufeff"),
    *('"', "'", "`id`", "$(id)", "\\", "#", " #", "%", "%20", "%2e%2e", "?", "*", "**", "[", "]", "[!a]", "{a,b}"),
    *("-", "--out", ".", "..", " ", "~", "~root", "=1+1", "+", "@", "|", "&", ";", ",", "<b>", "::", ":", "s3:"),
    *(
        "#bytes=0-1",
        "CON",
        "nul",
        "com1",
        "a",
        "A",
        "\u00e9",
        "e\u0301",
        "\ufb01",
        "I",
        "\u0131",
        "\U0001f3ac",
        "\u6620",
    ),
    *("\udcff", "\udce9", "\udc80", "train", "rgb", "depth", ".depth", ".txt", ".mp4", "x" * 240, "0", "1e3", "null"),
)
CAPTION_PARTS = (
    *("\r", "\n", "\r\n", "\n\n", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\t", "\x1b[31m", "\x7f"),
    *(
        "\x01",
        "\x08",
        "\ufeff",
        "\ufffe",
        "\uffff",
        "\ufffd",
        "\u202e",
        "\u200b",
        "e\u0301",
        "\u00e9",
        "\U0001f3ac",
        "\u6620",
    ),
    *(
        '"',
        '""',
        "'",
        "''",
        ",",
        ";",
        "|",
        "=1+1",
        "+1",
        "-",
        "@SUM(A1)",
        "\\",
        "\\n",
        "\\u0000",
        "\\ud800",
        "{",
        "}",
        "[",
        "]",
    ),
    *(
        "<b>",
        "</script>",
        "&amp;",
        "&#0;",
        "**a**",
        "# a",
        "---",
        "```",
        "[a](http://x)",
        "![](y)",
        "$x$",
        "\\begin{a}",
        "%",
    ),
    *(
        "null",
        "NaN",
        "true",
        "1e3",
        "01",
        ": ",
        "- ",
        "!!python/object:os.system",
        "*a",
        "&a",
        "</s>",
        "<pad>",
        " ",
        "a cat",
    ),
)
MARKED_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")  # their files say what they are
OTHER_ENCODINGS = ("cp1252", "latin-1", "shift-jis", "gb18030", "koi8-r", "utf-16-le", "utf-32-be")


def settings(examples: int) -> hypothesis.settings:
    """Deterministic, without a deadline: other work may share the cores."""
    count = examples * int(os.environ.get("OPENUNI_ODD_EXAMPLES", "1"))
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=checks,
        phases=[Phase.explicit, Phase.generate],  # shrinking repeats whole pipeline runs for minutes
    )


def stems(*, max_bytes: int = MAX_NAME_BYTES, text: bool = False) -> st.SearchStrategy[str]:
    """Names of files without a suffix; with `text`, names that are UTF-8."""
    part = st.sampled_from(NAME_PARTS) | st.characters(codec="utf-8", exclude_characters="/\0").map(str)
    whole = st.lists(part, min_size=1, max_size=4).map("".join).map(lambda name: _cut(name, max_bytes))
    return whole.filter(lambda name: name not in ("", ".", "..") and not (text and BYTES.search(name)))


def file_names(suffix: str, *, text: bool = False) -> st.SearchStrategy[str]:
    """Names of files that end in `suffix`, at most 255 bytes long."""
    return stems(max_bytes=MAX_NAME_BYTES - len(suffix), text=text).map(lambda stem: stem + suffix)


def twins(name: str) -> list[str]:
    """The name and others that differ from it only in case or in Unicode normalization."""
    forms = [name, name.swapcase(), unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
    return [form for form in dict.fromkeys(forms) if len(os.fsencode(form)) <= MAX_NAME_BYTES]


def captions(max_parts: int = 6) -> st.SearchStrategy[str]:
    """Texts that are Unicode and not blank, as a corpus may hold them: without NUL, and stripped."""
    part = st.sampled_from(CAPTION_PARTS) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
    return st.lists(part, min_size=1, max_size=max_parts).map("".join).map(str.strip).filter(bool)


def _cut(name: str, max_bytes: int) -> str:
    """The name, shortened to a number of bytes in the file system's encoding, between characters."""
    while len(os.fsencode(name)) > max_bytes:
        name = name[:-1]
    return name
