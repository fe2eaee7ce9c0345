"""The architecture: imports go one way and never in a circle, inside functions too; files and folders stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {  # import name -> folder at the root
    "openuni.manifests": "manifests",
    "openuni.filters": "filters",
    "openuni.annotators": "annotators",
    "openuni.training": "train",
    "openuni": "openuni",
}
MAY_IMPORT = {
    "manifests": {"manifests"},
    "filters": {"filters", "manifests"},
    "annotators": {"annotators", "manifests"},
    "training": {"training", "manifests"},
}
LOW = {"manifests", "filters", "annotators", "training"}
# The rooms of openuni/, lowest first: each may import those above it in this list, never those below.
ROOMS = [
    "console",
    "shots",
    "dedup",
    "config",
    "pipeline",
    "launch",
    "exchange",
    "world",
    "inference",
    "evaluation",
    "unified",
    "report",
    "api",
    "demo",
    "cli",
    "__main__",
]
DYNAMIC = {"import_module", "__import__", "find_spec"}
MOST_LINES = 400
MOST_MODULES = 16
FLAT = {"filters", "annotators", "manifests/modalities"}  # collections: one file per thing


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Import name and file of every module of ours."""
    for name, folder in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            relative = path.relative_to(root / folder)
            if folder == "openuni" and relative.parts[0] in LOW:
                continue  # behind a link: listed under its own folder
            parts = relative.with_suffix("").parts
            yield ".".join([name, *(parts[:-1] if parts[-1] == "__init__" else parts)]), path


def imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, wherever it stands: also by name through importlib."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and _called(node) in DYNAMIC:
            text = _leading_text(node.args[0])
            if text:
                yield node.lineno, text


def room(name: str) -> str:
    """The part of the house a module belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def violations(root: Path) -> list[str]:
    """`file:line imports x` for every import that a module's place does not allow."""
    found = []
    for name, path in modules(root):
        own = room(name)
        for line, target in imports(name, path):
            top, other = target.split(".")[0], room(target)
            if top in {"manifests", "filters", "annotators", "train", "tests"}:
                found.append(f"{path.relative_to(root)}:{line} imports {target}")
            if top != "openuni" or own == "":
                continue
            if own in MAY_IMPORT:
                bad = other not in MAY_IMPORT[own]
            else:
                bad = other not in LOW and other in ROOMS and ROOMS.index(other) > ROOMS.index(own)
            if bad:
                found.append(f"{path.relative_to(root)}:{line} imports {target}")
    return list(dict.fromkeys(found))


def circles(root: Path) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others, inside functions too."""
    known = dict(modules(root))
    graph = {}
    for name, path in known.items():
        targets = set()
        for _, target in imports(name, path):
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target and target != name and known[target].name != "__init__.py":
                targets.add(target)
        graph[name] = targets
    return [sorted(group) for group in _components(graph) if len(group) > 1]


def _components(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """Strongly connected components: what reaches each other."""
    reach = {name: _reached(graph, name) for name in graph}
    seen: set[str] = set()
    for name in graph:
        if name not in seen:
            group = {other for other in reach[name] if name in reach[other]} | {name}
            seen |= group
            yield group


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found, stack = set[str](), [start]
    while stack:
        for target in graph[stack.pop()] - found:
            found.add(target)
            stack.append(target)
    return found


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _leading_text(node: ast.expr) -> str:
    """The constant text that a string expression begins with: of "a.b" and of f"a.{b}"."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_no_modules_import_each_other():
    assert circles(ROOT) == []


def test_every_module_and_every_room_is_looked_at():
    names = {name for name, _ in modules(ROOT)}
    for package in FOLDERS:
        assert any(name.startswith(f"{package}.") for name in names), f"no files in {package}: moved?"
    assert {room(name) for name in names} - LOW - {""} == set(ROOMS), "a room is missing in ROOMS, or gone"
    seen = {
        target.split(".")[0]
        for name, path in modules(ROOT)
        if name.startswith("openuni.annotators.")
        for _, target in imports(name, path)
    }
    assert {"openuni", "numpy", "torch"} <= seen  # torch stands inside functions only


def test_files_and_folders_stay_small():
    files = [*(path for _, path in modules(ROOT)), *(ROOT / "tests").rglob("*.py")]
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}
    counts: dict[str, int] = {}
    for _, path in modules(ROOT):
        folder = str(path.parent.relative_to(ROOT))
        counts[folder] = counts.get(folder, 0) + (path.name != "__init__.py")
    assert {name: count for name, count in counts.items() if count > MOST_MODULES and name not in FLAT} == {}


def test_paths_inside_a_corpus_are_built_in_one_place():
    """What names a folder of a corpus in a path stands in `manifests/corpus/layout.py` alone."""
    folders = ("filters/", "annotations/", "latents/", "text/", "runs/")
    for name, path in modules(ROOT):
        if name == "openuni.manifests.corpus.layout":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                assert not _leading_text(node).startswith(folders), f"{path}:{node.lineno} builds a path of a corpus"


PLANTED = {
    "at the top": ("filters/x.py", "import openuni.annotators.dis"),
    "from": ("filters/x.py", "from openuni.annotators.dis import Dis"),
    "the package": ("filters/x.py", "from openuni import annotators"),
    "inside a function": ("annotators/x.py", "def f():\n    from openuni.training.codec import LatentCodec"),
    "inside a method, under another name": (
        "train/models/x.py",
        "class A:\n    def f(self):\n        import openuni.api as o",
    ),
    "for type checkers only": (
        "manifests/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import openuni.filters",
    ),
    "relative, out of the package": ("annotators/x.py", "from ..filters import motion"),
    "relative, all the way up": ("annotators/x.py", "from .. import filters"),
    "by name": ("manifests/x.py", "import importlib\nimportlib.import_module('openuni.pipeline.runners.runner')"),
    "by a name put together": (
        "filters/x.py",
        "from importlib import import_module\nimport_module(f'openuni.training.{1}')",
    ),
    "by __import__": ("filters/x.py", "__import__('openuni.training')"),
    "the tests": ("openuni/pipeline/x.py", "from tests.moving_pictures import texture"),
    "openuni from below": ("train/x.py", "from openuni.config.recipe import Recipe"),
    "a room from below": ("openuni/config/x.py", "from openuni.pipeline.runners.runner import Runner"),
    "the old name of a folder": ("openuni/config/x.py", "from manifests.clip import Clip"),
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
        ("filters/x.py", "from openuni.manifests.video.clip import Clip\nimport openuni.filters.motion\nimport torch"),
        ("annotators/x.py", "from . import _onnx\nfrom ._onnx import inference"),
        ("train/models/x.py", "from ..codec import LatentCodec\nfrom openuni.manifests.video import clip"),
        ("openuni/cli/x.py", "from openuni import annotators, filters, training, manifests, api"),
        ("manifests/x.py", "import importlib\ndef f(name):\n    return importlib.import_module(f'{name}.x')"),
    ],
)
def test_what_is_allowed_is_not_found(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    "files",
    [
        {"a": "from openuni.manifests.b import x", "b": "from openuni.manifests import a"},
        {
            "a": "from .b import x",
            "b": "def f():\n    from openuni.manifests.c import y",
            "c": "import openuni.manifests.a",
        },
    ],
    ids=["two", "three, inside a function"],
)
def test_a_planted_circle_is_found(tmp_path, files):
    (tmp_path / "manifests").mkdir()
    for name, code in files.items():
        (tmp_path / "manifests" / f"{name}.py").write_text(code)
    assert circles(tmp_path) == [[f"openuni.manifests.{name}" for name in sorted(files)]]
