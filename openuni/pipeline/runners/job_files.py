"""What travels with a submitted job: the recipe, and the local modules that its operators are made of. Nothing else."""

import ast
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import local_import_roots
from openuni.manifests.errors import OpenUniError

MAX_SENT_BYTES = 20 * 10**6
INSTALLED = {"site-packages", "dist-packages"}


def local_modules(components: Iterable[Component]) -> dict[str, Path]:
    """The files of components that lie outside the installation, and of the modules beside them that they import.

    Path relative to the folder of their imports -> file. Imports are read, also those inside functions, not executed.
    Files that code opens by itself are not found.
    """
    found: dict[str, Path] = {}
    for component in components:
        module = sys.modules[type(component).__module__]
        file = Path(getattr(module, "__file__", None) or "").absolute()
        root = next((root for root in map(Path, local_import_roots()) if file.is_relative_to(root)), None)
        if root is not None and not INSTALLED & set(file.parts) and module.__name__.split(".")[0] != "openuni":
            _collect(module.__name__, root, found)
    return dict(sorted(found.items()))


def pack(folder: Path, files: dict[str, Path]) -> None:
    """Copy files into an empty folder under their relative paths. Raises `OpenUniError` if they are too large."""
    total = sum(path.stat().st_size for path in files.values())
    if total > MAX_SENT_BYTES:
        raise OpenUniError(
            f"--submit would send {total / 1e6:.0f} MB ({', '.join(files)}); at most {MAX_SENT_BYTES / 1e6:.0f} MB are "
            "sent. Install the operators as a package on the cluster instead."
        )
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _collect(name: str, root: Path, found: dict[str, Path]) -> None:
    """Add the module of a dotted name, its packages, and what they import from the same root."""
    parts = name.split(".")
    if parts[0] == "openuni":
        return
    for count in range(1, len(parts) + 1):
        file = _file(root, parts[:count])
        if file is None or str(file.relative_to(root)) in found:
            continue
        found[str(file.relative_to(root))] = file
        package = parts[:count] if file.name == "__init__.py" else parts[: count - 1]
        for imported in _imports(file, package):
            _collect(imported, root, found)


def _file(root: Path, parts: list[str]) -> Path | None:
    base = root.joinpath(*parts)
    for file in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if file.is_file() and not INSTALLED & set(file.parts):
            return file
    return None


def _imports(file: Path, package: list[str]) -> Iterator[str]:
    """Dotted names that a module imports; of `from a import b` also `a.b`, which may be a module.

    None of a file that is not valid Python: it is sent, and fails there as it would here, if it is imported at all.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)
