"""What an option may be, said once: literals in its type, bounds from `annotated_types` beside its meaning.

    frames_per_batch: Annotated[int, "frames in one forward pass", Ge(1)] = 4

Components check themselves by it when they are made, and `openuni show` and `openuni init` print it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen, MultipleOf

from openuni.manifests.errors import OpenUniError, did_you_mean

UNIT_INTERVAL = Interval(ge=0, le=1)


@dataclass(frozen=True)
class Formerly:
    """Beside an option's meaning: the name it had before. Recipes may still use it, and records and versions do."""

    name: str


def strip_annotation(hint: Any) -> Any:
    """The bare type of `Annotated[type, ...]`."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def annotation_extras(hint: Any) -> tuple[Any, ...]:
    """What stands behind the type in `Annotated[type, ...]`: meaning, bounds, former name."""
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def annotation_text(hint: Any) -> str:
    """The text of `Annotated[type, "text"]`, or an empty one."""
    return next((extra for extra in annotation_extras(hint) if isinstance(extra, str)), "")


def option_text(hint: Any) -> str:
    """The meaning of an option with its bounds: "frames in one forward pass (at least 1)"."""
    bounds = bounds_text(bounds_of(hint))
    return f"{annotation_text(hint)} ({bounds})" if bounds else annotation_text(hint)


def former_names(kind: Any) -> dict[str, str]:
    """Field -> its former name, for the fields of a dataclass that were renamed."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field: extra.name
        for field, hint in hints.items()
        for extra in annotation_extras(hint)
        if isinstance(extra, Formerly)
    }


def recorded(options: Any) -> dict[str, Any]:
    """The fields of a dataclass as records and versions name them: those renamed since under their former names."""
    former = former_names(type(options))
    return {former.get(field.name, field.name): _recorded(getattr(options, field.name)) for field in fields(options)}


def _recorded(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return recorded(value)
    if isinstance(value, list | tuple):
        return type(value)(_recorded(entry) for entry in value)
    return {key: _recorded(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def check_options(options: Any, name: str) -> None:
    """Raises `OpenUniError` for the first field of a dataclass that has a value its hint does not allow.

    Bounds of a tuple's field are those of its entries (`MinLen`: of the tuple). Numbers must be finite; None passes.
    """
    kind: Any = type(options)
    for field, (literals, bounds) in _allowed(kind).items():
        value = getattr(options, field)
        if value is None or (not literals and not isinstance(value, int | float | tuple)):
            continue
        fits = value in literals if literals else _in_bounds(value, bounds)
        if not fits:
            text = ", ".join(map(str, literals)) if literals else bounds_text(bounds) or "finite numbers"
            hint = did_you_mean(str(value), map(str, literals))
            raise OpenUniError(f"{name}: {field} = {_format_value(value)}.{hint} Allowed: {text}.")


def bounds_of(hint: Any) -> list[BaseMetadata]:
    """The bounds beside the meaning in `Annotated[type, "meaning", ...]`, one by one."""
    found: list[Any] = []
    for extra in annotation_extras(hint):
        found += list(extra) if isinstance(extra, GroupedMetadata) else [extra]
    return [bound for bound in found if isinstance(bound, BaseMetadata)]


def bounds_text(bounds: list[BaseMetadata]) -> str:
    """ "at least 1", "0 to 1", "above 0, at most 0.5", "at least 14, multiples of 14"; empty without bounds."""
    ends: dict[type, Any] = {type(bound): bound for bound in bounds}
    parts = []
    if Ge in ends and Le in ends:
        parts.append(f"{ends[Ge].ge:g} to {ends[Le].le:g}")
    else:
        parts += [f"at least {ends[Ge].ge:g}"] if Ge in ends else []
        parts += [f"above {ends[Gt].gt:g}"] if Gt in ends else []
        parts += [f"at most {ends[Le].le:g}"] if Le in ends else []
        parts += [f"below {ends[Lt].lt:g}"] if Lt in ends else []
    parts += [f"multiples of {ends[MultipleOf].multiple_of}"] if MultipleOf in ends else []
    if MinLen in ends:
        least = ends[MinLen].min_length
        parts.append(f"at least {least} {'entry' if least == 1 else 'entries'}")
    return ", ".join(parts)


@cache
def _allowed(kind: type) -> Mapping[str, tuple[tuple[Any, ...], list[BaseMetadata]]]:
    """By field: its literals, and its bounds."""
    found = {}
    for field, hint in get_type_hints(kind, include_extras=True).items():
        bare = strip_annotation(hint)
        if annotation_extras(hint):
            found[field] = (get_args(bare) if get_origin(bare) is Literal else (), bounds_of(hint))
    return found


def _in_bounds(value: Any, bounds: list[BaseMetadata]) -> bool:
    if isinstance(value, tuple):
        lengths = [bound.min_length for bound in bounds if isinstance(bound, MinLen)]
        entries = [bound for bound in bounds if not isinstance(bound, MinLen)]
        return all(len(value) >= length for length in lengths) and all(_in_bounds(entry, entries) for entry in value)
    if not isinstance(value, int | float):
        return True
    finite = not isinstance(value, float) or math.isfinite(value)
    return finite and all(_satisfies(value, bound) for bound in bounds)


def _satisfies(value: Any, bound: Any) -> bool:
    match bound:
        case Ge(least):
            return bool(value >= least)
        case Gt(below):
            return bool(value > below)
        case Le(most):
            return bool(value <= most)
        case Lt(above):
            return bool(value < above)
        case MultipleOf(unit):
            return bool(value % unit == 0)
        case _:
            raise TypeError(f"{bound!r} is not a bound that options support")


def _format_value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
