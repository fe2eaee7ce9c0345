"""Code in the documentation, as tests run it."""

import re
from pathlib import Path


def python_blocks(path: Path) -> list[str]:
    """The fenced blocks of a Markdown file that are marked ```python, in order."""
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)
