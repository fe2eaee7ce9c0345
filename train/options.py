"""Dataclasses from dicts, strictly: an unknown key or a wrong type is an error that names the place."""

import dataclasses
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from openuni.manifests.contracts.component import Component, annotation_text, strip_annotation
from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.errors import OpenUniError, did_you_mean

C = TypeVar("C", bound=Component)
T = TypeVar("T")


def find_and_build(kind: str, base: Any, name: str, options: dict[str, Any]) -> Any:
    """The component `name` of a kind such as "codecs", deriving from `base`, with these options."""
    return build(find_component(kind, base, name), options)


def build(kind: type[C], options: dict[str, Any]) -> C:
    """A component from its options as TOML gives them; raises `OpenUniError` on an unknown one."""
    return from_dict_strict(kind, options, kind.name())


def from_dict_strict(kind: type[T], record: dict[str, Any], where: str) -> T:
    """An instance of a dataclass from a dict; unknown keys and wrong types are errors that name the place."""
    types = get_type_hints(kind, include_extras=True)
    hints = {field.name: types[field.name] for field in _fields(kind)}
    for key in record:
        if key not in hints:
            raise OpenUniError(
                f'{where}: key "{key}" is not known.{did_you_mean(key, hints)} Known: {", ".join(hints)}.'
            )
    return kind(**{key: _value(hints[key], value, f"{where}: {key}") for key, value in record.items()})


def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _value(hint: Any, value: Any, where: str) -> Any:
    meaning, hint = annotation_text(hint), strip_annotation(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise OpenUniError(f"{where} must be a table, got {value!r}")
        return from_dict_strict(hint, value, where)
    if get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]):
        return _tables(get_args(hint)[0], value, where)
    if not _fits(hint, value):
        wanted = " or ".join(repr(v) for v in get_args(hint)) if get_origin(hint) is Literal else _plain(hint)
        raise OpenUniError(f"{where} must be {wanted}, got {value!r} ({meaning})")
    if get_origin(hint) is tuple:
        return tuple(value)
    if hint is not float:
        return value
    try:
        return float(value)
    except OverflowError:
        raise OpenUniError(f"{where} has more digits than a number can have ({meaning})") from None


def _tables(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    """One dataclass per table of a TOML array of tables."""
    if not isinstance(value, list | tuple) or not all(isinstance(entry, dict) for entry in value):
        raise OpenUniError(f"{where} must be tables, got {value!r}")
    return tuple(from_dict_strict(kind, entry, f"{where} {number}") for number, entry in enumerate(value, start=1))


def _fits(hint: Any, value: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(get_args(hint)[0], entry) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(get_args(hint)[1], entry) for entry in value.values())
    if hint is Any or not isinstance(hint, type):
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _plain(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
