"""Finding components by name: the files of our folders, entry points of installed packages, dotted paths in recipes.

A component of ours is a file in the folder of its kind; nothing is registered. A package outside adds its own with an
entry point whose group is the kind and whose name is the component's:

    [project.entry-points."openuni.annotators"]
    canny = "my_lab.canny"              # a module with one class of the kind, or "my_lab.canny:Canny"

A recipe may also name any module by its dotted path. Data may not: names that come from a corpus, a run or a folder
(`imports=False`) find what is ours, what is installed with an entry point, and modules that are imported already.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from openuni.manifests.errors import OpenUniError, unknown_name

# Kind -> the package that holds our components of that kind, one file each. The only list of kinds there is.
KINDS = {
    "filters": "openuni.filters",
    "annotators": "openuni.annotators",
    "modalities": "openuni.manifests.modalities",
    "shots": "openuni.shots.detectors",
    "deduplicators": "openuni.dedup.deduplicators",
    "importers": "openuni.exchange.importers",
    "exporters": "openuni.exchange.exporters",
    "codecs": "openuni.training.codecs",
    "models": "openuni.training.models",
    "metrics": "openuni.training.metrics",
    "trackers": "openuni.training.trackers",
}

# subpackage of openuni -> its folder at the repository's root
AT_THE_ROOT = {"filters": "filters", "annotators": "annotators", "manifests": "manifests", "training": "train"}

_local_roots: list[str] = []  # folders outside the installation that named modules were imported from


def component_names(kind: str) -> list[str]:
    """Names of all components of a kind, ours and those of installed packages. Imports none of them."""
    return sorted({*_own_names(kind), *_entry_points(kind)})


def all_component_names() -> dict[str, list[str]]:
    """Kind -> names of its components. Instant: nothing is imported."""
    return {kind: component_names(kind) for kind in KINDS}


def component_name(component: type[Any]) -> str:
    """The name of a component's class: its file's for ours, its entry point's, else the dotted path of its module."""
    package, _, stem = component.__module__.rpartition(".")
    if package in KINDS.values():
        return stem
    for kind in KINDS:
        for name, point in _entry_points(kind).items():
            if point.module == component.__module__ and point.attr in (None, component.__qualname__):
                return name
    return component.__module__


def find_component(kind: str, base: Any, name: str, *, imports: bool = False) -> Any:
    """The class deriving from `base` that has this name among the components of a kind.

    `imports`: whether a dotted name may import any module, also one that lies in the current folder; only for names
    that a person wrote in a recipe or a command. Raises `OpenUniError` with the nearest name and where to add a file.
    """
    what = _words(base.__name__)
    points = _entry_points(kind)
    if name in _own_names(kind):
        return _class_in(importlib.import_module(f"{KINDS[kind]}.{name}"), base)
    if name in points:
        return _loaded(points[name], base)
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return _class_in(_module(name, what, imports), base)
    to_add = f"To add one, create {_folder(kind)}/{name}.py, or install a package with an openuni.{kind} entry point."
    raise OpenUniError(f"{unknown_name(what, name, component_names(kind))} {to_add}")


def local_import_roots() -> list[str]:
    """Folders outside the installation from which recipes' modules came: worker processes need them on their path."""
    return list(_local_roots)


def _words(class_name: str) -> str:
    """ "ShotDetector" as messages write it: "shot detector"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", class_name).lower()


def _folder(kind: str) -> str:
    """The folder of a kind in the repository, where the five packages lie at the root."""
    parts = KINDS[kind].split(".")
    if parts[1] in AT_THE_ROOT:
        parts = [AT_THE_ROOT[parts[1]], *parts[2:]]
    return "/".join(parts)


@cache
def _own_names(kind: str) -> frozenset[str]:
    spec = importlib.util.find_spec(KINDS[kind])
    if spec is None or not spec.submodule_search_locations:
        raise OpenUniError(f"the package {KINDS[kind]} is missing. Reinstall openuni.")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return frozenset(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


@cache
def _entry_points(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    points: dict[str, importlib.metadata.EntryPoint] = {}
    for point in _installed().select(group=f"openuni.{kind}"):
        if point.name in _own_names(kind):
            raise OpenUniError(
                f'the package {_package_of(point)} defines the openuni.{kind} entry point "{point.name}", which is the '
                "name of a built-in component. Uninstall that package."
            )
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            packages = " and ".join(sorted([_package_of(other), _package_of(point)]))
            raise OpenUniError(
                f'the packages {packages} both define the openuni.{kind} entry point "{point.name}". Uninstall one.'
            )
    return points


@cache
def _installed() -> Any:
    """The entry points of all installed packages, in one scan for all kinds; its type depends on Python's version."""
    return importlib.metadata.entry_points()


def _package_of(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def _loaded(point: importlib.metadata.EntryPoint, base: type[Any]) -> Any:
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise OpenUniError(
            f'{_words(base.__name__)} "{point.name}" cannot be loaded from the package {_package_of(point)}: {error}. '
            "Reinstall that package."
        ) from error
    if isinstance(found, ModuleType):
        return _class_in(found, base)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise OpenUniError(f'the entry point "{point.name}" ({point.value}) is not a subclass of {base.__name__}')
    return found


def _module(name: str, what: str, imports: bool) -> ModuleType:
    """The module of a dotted name."""
    if name in sys.modules:
        note_import_root(name)
        return sys.modules[name]
    if not imports and not name.startswith("openuni."):
        raise OpenUniError(
            f'{what} "{name}" is named by a file of data, which is not a reason to import code. Name it in a recipe, '
            f"import {name} first, or install a package with an entry point for it."
        )
    here = Path.cwd() / name.split(".")[0]
    if not _is_known(name) and (here.is_dir() or here.with_suffix(".py").is_file()):
        sys.path.append(str(here.parent))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise OpenUniError(
                f'{what} "{name}": no module named {missing}. Install its package, add its folder to PYTHONPATH, or '
                f"run from that folder (also searched: {Path.cwd()})."
            ) from error
        raise OpenUniError(f'{what} "{name}" requires the module {missing}, which is not installed') from error
    except Exception as error:  # the author's code ran, and may fail in any way
        raise OpenUniError(f'{what} "{name}" cannot be imported: {type(error).__name__}: {error}') from error
    note_import_root(name)
    return module


def _is_known(name: str) -> bool:
    """Whether the first part of a dotted name is importable as things are."""
    try:
        return importlib.util.find_spec(name.split(".")[0]) is not None
    except ValueError:  # a module without a spec, such as __main__
        return True


def note_import_root(name: str) -> None:
    """Remember from which folder a module that is imported came; see `local_import_roots`."""
    top = sys.modules[name.split(".")[0]]
    places = list(getattr(top, "__path__", [])) or [getattr(top, "__file__", None) or ""]
    for place in places:
        root = str(Path(place).absolute().parent)
        if place and root not in _local_roots and not {"site-packages", "dist-packages"} & set(Path(root).parts):
            _local_roots.append(root)


def _class_in(module: ModuleType, base: type[Any]) -> Any:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__:
            return value
    raise OpenUniError(
        f"{module.__name__} defines no {base.__name__}. It must define one class derived from {base.__name__}."
    )
