"""Frozen dataclasses from tables, as TOML and JSON give them: the one parser of recipes, components and records.

Strict: no text for a number, no unknown key. `options` states which values an option allows.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.options import former_names, parse_value, strip_annotation
from openuni.manifests.errors import OpenUniError, did_you_mean

T = TypeVar("T")
logger = logging.getLogger(__name__)


def parse_options(kind: type[T], table: Any, where: str, *, quiet: bool = False) -> T:
    """An instance of a dataclass from a table. Options may have their former names, which is logged.

    `where`: what the table is called in errors. `quiet`: for records, which keep former names. Raises `OpenUniError`
    that names the option, what was given, and what is allowed.
    """
    if not isinstance(table, Mapping):
        raise OpenUniError(f"{where} must be a table of options, got {table!r}")
    table = _renamed(kind, table, where, quiet)
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    reject_unknown_keys(table, fields, where)
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{name: _value(hints[name], given, f"{where}: {name}", quiet) for name, given in table.items()})


def find_and_parse(kind: str, base: Any, name: str, options: Mapping[str, Any]) -> Any:
    """The component `name` of a kind such as "codecs", deriving from `base`, with options from a record."""
    component = find_component(kind, base, name)
    return parse_options(component, options, component.name(), quiet=True)


def reject_unknown_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise `OpenUniError` for the first key that is not known."""
    known = list(known)
    for key in table:
        if key not in known:
            raise OpenUniError(
                f'{where} has no option "{key}".{did_you_mean(key, known)} Options: {", ".join(known) or "none"}.'
            )


def _renamed(kind: Any, table: Mapping[str, Any], where: str, quiet: bool) -> dict[str, Any]:
    current = {former: field for field, former in former_names(kind).items()}
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = current.get(key, key)
        if name in found or (name != key and name in table):
            raise OpenUniError(f'{where}: "{key}" is the former name of "{name}": give only one of them')
        if name != key and not quiet:
            logger.warning('%s: option "%s" is now "%s"; the former name still works', where, key, name)
        found[name] = value
    return found


def _value(hint: Any, given: Any, where: str, quiet: bool) -> Any:
    bare = strip_annotation(hint)
    if dataclasses.is_dataclass(bare) and isinstance(bare, type):
        return parse_options(bare, given, where, quiet=quiet)
    if get_origin(bare) is tuple and dataclasses.is_dataclass(get_args(bare)[0]):
        if not isinstance(given, list | tuple):
            raise OpenUniError(f"{where} must be tables, got {given!r}")
        kind = get_args(bare)[0]
        return tuple(parse_options(kind, entry, f"{where} {n}", quiet=quiet) for n, entry in enumerate(given, start=1))
    return parse_value(hint, given, where)
