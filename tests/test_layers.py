"""Imports go one way: manifests <- (filters, annotators, train) <- openuni. Inside functions too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "manifests": {"manifests"},
    "filters": {"filters", "manifests"},
    "annotators": {"annotators", "manifests"},
    "train": {"train", "manifests"},
    "openuni": {"openuni", "train", "annotators", "filters", "manifests"},
}
DYNAMIC = {"import_module", "__import__", "find_spec"}


def violations(root: Path) -> list[str]:
    """`file:line imports x` for every import of one of our packages that its own package may not see."""
    found = []
    for package, allowed in MAY_IMPORT.items():
        for path in sorted((root / package).rglob("*.py")):
            for line, target in imports(path, root):
                top = target.split(".")[0]
                if top in (MAY_IMPORT.keys() | {"tests"}) - allowed:
                    found.append(f"{path.relative_to(root)}:{line} imports {target}")
    return found


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, wherever it stands: also by name through importlib."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for name in [base] if base else [alias.name for alias in node.names]:
                yield node.lineno, name
        elif isinstance(node, ast.Call) and node.args and _called(node) in DYNAMIC:
            text = _leading_text(node.args[0])
            if text:
                yield node.lineno, text


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _leading_text(node: ast.expr) -> str:
    """The constant text that a string expression begins with: of "a.b" and of f"a.{b}"."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_all_five_packages_are_looked_at():
    for package in MAY_IMPORT:
        assert list((ROOT / package).rglob("*.py")), f"no files in {package}: moved?"
    seen = {target.split(".")[0] for path in (ROOT / "annotators").glob("*.py") for _, target in imports(path, ROOT)}
    assert {"manifests", "annotators", "numpy", "torch"} <= seen  # torch stands inside functions only


PLANTED = {
    "at the top": ("filters/x.py", "import annotators.dis"),
    "from": ("filters/x.py", "from annotators.dis import Dis"),
    "inside a function": ("annotators/x.py", "def f():\n    from train.codec import LatentCodec"),
    "inside a method, under another name": (
        "train/models/x.py",
        "class A:\n    def f(self):\n        import openuni as o",
    ),
    "for type checkers only": (
        "manifests/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import filters",
    ),
    "relative, out of the package": ("annotators/x.py", "from ..filters import motion"),
    "relative, all the way up": ("annotators/x.py", "from .. import filters"),
    "by name": ("manifests/x.py", "import importlib\nimportlib.import_module('openuni.runner')"),
    "by a name put together": ("filters/x.py", "from importlib import import_module\nimport_module(f'train.{1}')"),
    "by __import__": ("filters/x.py", "__import__('train')"),
    "the tests": ("openuni/x.py", "from tests.moving_pictures import texture"),
    "openuni from below": ("train/x.py", "from openuni.recipe import Recipe"),
}


@pytest.mark.parametrize(("file", "code"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_found(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:{len(code.splitlines())} imports ")


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("filters/x.py", "from manifests.clip import Clip\nimport filters.motion\nimport torch, filtersmith"),
        ("annotators/x.py", "from . import _inference\nfrom ._inference import inference"),
        ("train/models/x.py", "from ..codec import LatentCodec\nfrom manifests import clip"),
        ("openuni/x.py", "import annotators, filters, train, manifests"),
        ("manifests/x.py", "import importlib\ndef f(name):\n    return importlib.import_module(f'{name}.x')"),
    ],
)
def test_what_is_allowed_is_not_found(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert violations(tmp_path) == []
