"""`openuni list` and `openuni show`: every name that a recipe or a command can use, and a page for each."""

import difflib
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from openuni.manifests.contracts.discovery import all_component_names, component_names, find_component
from openuni.manifests.errors import OpenUniError, did_you_mean

RECIPES = {"training_recipes": "openuni.training", "corpus_presets": "openuni.config"}  # kind -> package
KIND_WIDTH = 18
MAX_SIMILAR = 4  # names that an error lists beside the nearest one


def all_names() -> dict[str, list[str]]:
    """Kind -> names: all components, training recipes and corpus presets. Imports no component."""
    return all_component_names() | {kind: _recipe_names(kind) for kind in RECIPES}


def format_names(width: int) -> str:
    """All names as a table for terminals: one kind after the other, wrapped to `width` characters."""
    return "\n".join(
        textwrap.fill(
            "  ".join(names),
            max(width, KIND_WIDTH + 30),
            initial_indent=f"{kind.replace('_', ' '):<{KIND_WIDTH}}",
            subsequent_indent=" " * KIND_WIDTH,
            break_on_hyphens=False,
        )
        for kind, names in all_names().items()
    )


def page(name: str) -> str:
    """The page of a component, recipe, preset or column, or of a component by its dotted path.

    Raises `OpenUniError` with the nearest names if nothing has this name.
    """
    from openuni.config.template import component_page

    names = all_names()
    plain = name.replace("-", "_")
    if any(name in names[kind] or plain in names[kind] for kind in all_component_names()):
        return component_page(name)
    for kind in RECIPES:
        if plain in names[kind]:
            return _recipe_page(kind, plain)
    columns = list(_columns())
    found = [column for column in columns if name in (column.name, column.name.rpartition(".")[2])]
    if found:
        return "\n".join(f"{one.name} ({one.type}): column of {one.producer}\n  {one.doc}" for one in found)
    if any(column.name.startswith(f"{name.partition('.')[0]}.") for column in columns):
        raise OpenUniError(_not_found(name, sorted(column.name for column in columns)))
    if "." in name:
        return component_page(name)
    known = {known for listed in names.values() for known in listed}
    raise OpenUniError(_not_found(name, sorted(known | {column.name.rpartition(".")[2] for column in columns})))


def _recipe_names(kind: str) -> list[str]:
    folder = files(RECIPES[kind]) / "recipes"
    return sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))


def _recipe_page(kind: str, name: str) -> str:
    """The recipe's TOML, headed by the command that uses it."""
    use = {
        "training_recipes": f"openuni train {name} --corpus CORPUS --out FOLDER",
        "corpus_presets": f"openuni init corpus.toml --preset {name}",
    }[kind]
    text = (files(RECIPES[kind]) / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    title = kind.removesuffix("s").replace("_", " ").capitalize()
    return f"# {title} {name}. Use it with: {use}\n\n{text.rstrip()}"


class ListedColumn(NamedTuple):
    """A column of a filter or annotator."""

    name: str  # with its producer's, such as motion.camera_share
    type: str
    doc: str
    producer: str  # kind and name


def _columns() -> Iterator[ListedColumn]:
    """The columns of all filters and annotators. Imports these components."""
    from openuni.manifests.contracts import schema
    from openuni.manifests.contracts.producer import Producer

    for kind in ("filters", "annotators"):
        for component in component_names(kind):
            for column in schema.columns(find_component(kind, Producer, component)):
                yield ListedColumn(*column, f"the {kind.removesuffix('s')} {component}")


def _not_found(name: str, known: list[str]) -> str:
    near = did_you_mean(name, known)
    similar = [other for other in difflib.get_close_matches(name, known, MAX_SIMILAR + 1) if f'"{other}"' not in near]
    listed = f" Similar: {', '.join(similar)}." if similar else ""
    return f'"{name}" not found.{near}{listed} List all names with: openuni list'
