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


def former_names(kind: Any) -> dict[str, str]:
    """Field -> its former name, for the fields of a dataclass that were renamed."""
    found = {}
    for field, hint in get_type_hints(kind, include_extras=True).items():
        for extra in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if isinstance(extra, Formerly):
                found[field] = extra.name
    return found


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
    for extra in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        found += list(extra) if isinstance(extra, GroupedMetadata) else [extra]
    return [bound for bound in found if isinstance(bound, BaseMetadata)]


def bounds_text(bounds: list[BaseMetadata]) -> str:
    """ "1 and more", "0 to 1", "above 0, at most 0.5", "14 and more, multiples of 14"; empty without bounds."""
    ends: dict[type, Any] = {type(bound): bound for bound in bounds}
    parts = []
    if Ge in ends and Le in ends:
        parts.append(f"{ends[Ge].ge:g} to {ends[Le].le:g}")
    elif Ge in ends and Lt not in ends:
        parts.append(f"{ends[Ge].ge:g} and more")
    else:
        parts += [f"from {ends[Ge].ge:g}"] if Ge in ends else []
        parts += [f"above {ends[Gt].gt:g}"] if Gt in ends else []
        parts += [f"at most {ends[Le].le:g}"] if Le in ends else []
        parts += [f"below {ends[Lt].lt:g}"] if Lt in ends else []
    parts += [f"multiples of {ends[MultipleOf].multiple_of}"] if MultipleOf in ends else []
    parts += [f"{ends[MinLen].min_length} or more entries"] if MinLen in ends else []
    return ", ".join(parts)


@cache
def _allowed(kind: type) -> Mapping[str, tuple[tuple[Any, ...], list[BaseMetadata]]]:
    """By field: its literals, and its bounds."""
    found = {}
    for field, hint in get_type_hints(kind, include_extras=True).items():
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if get_origin(hint) is Annotated:
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
            raise TypeError(f"{bound!r} is no bound of a number that options know")


def _format_value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
