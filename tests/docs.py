"""The fenced blocks of the documentation, so that tests can run them."""

import re
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(
    r"^(?:<!-- (?P<note>.*?) -->\n)?```(?:\{code-block\} )?(?P<language>\w+)\n(?::caption: (?P<file>\S+)\n\n?)?"
    r"(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    text: str
    file: str | None  # the file that a reader makes of it
    note: str  # the comment before it

    @property
    def is_run(self) -> bool:
        return not self.note.startswith("not run")


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The blocks of a page in order: those of one language, or all that have one."""
    found = [
        Block(match["language"], match["text"], match["file"], match["note"] or "")
        for match in FENCE.finditer(page.read_text(encoding="utf-8"))
    ]
    return [block for block in found if language in (None, block.language)]


def commands(block: Block) -> list[str]:
    """Commands of a console block; its other lines are output."""
    return [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
