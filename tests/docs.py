"""The code blocks of the documentation, so that tests can run them."""

import re
from pathlib import Path


def python_blocks(path: Path) -> list[str]:
    """Texts of the blocks fenced as python, in order."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
