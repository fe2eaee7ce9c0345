"""The values an option allows, stated once: its type, with bounds from `annotated_types` beside its meaning.

    frames_per_batch: Annotated[int, "frames in one forward pass", Ge(1)] = 4

Checked by pydantic, strictly, whether a component is created in Python or parsed from a recipe; `openuni show` and
`openuni init` print it. Bounds of a tuple, a table or `X | None` are those of the numbers in it (`MinLen`: of the
tuple). Numbers must be finite.
"""

import json
import types
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen, MultipleOf

from openuni.manifests.errors import OpenUniError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter

UNIT_INTERVAL = Interval(ge=0, le=1)

TYPE_NAMES = {int: "integer", float: "number", str: "string", bool: "true or false"}
PLURALS = {int: "integers", float: "numbers", str: "strings"}
# pydantic's names of what is wrong with a value of the right type
OUT_OF_BOUNDS = {
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    *("multiple_of", "too_short", "finite_number"),
}


@dataclass(frozen=True)
class Formerly:
    """Beside an option's meaning: the name it had before. Recipes may still use it, and records and versions do."""

    name: str


@dataclass(frozen=True)
class Added:
    """Beside the meaning of an option that was added to a component which corpora had been made with.

    Records and versions leave it out at its default, so they stay what they were.
    """


@dataclass(frozen=True)
class Execution(Added):
    """As `Added`, beside an option that decides how the work is done and not what comes out: batch size, GPUs.

    Versions always leave it out: another value recomputes nothing.
    """


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
    return {
        field: extra.name
        for field, hint in _hints(kind).items()
        for extra in annotation_extras(hint)
        if isinstance(extra, Formerly)
    }


def recorded(options: Any, *, version: bool = False) -> dict[str, Any]:
    """The fields of a dataclass as records and versions name them: those renamed since under their former names.

    Without what was added since and has its default (`Added`). `version`: also without `Execution` options.
    """
    kind: Any = type(options)
    former, hints = former_names(kind), _hints(kind)
    found = {}
    for field in fields(options):
        extras, value = annotation_extras(hints[field.name]), getattr(options, field.name)
        is_added = any(isinstance(extra, Added) for extra in extras)
        is_execution = any(isinstance(extra, Execution) for extra in extras)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if (is_added and value == default) or (is_execution and version):
            continue
        found[former.get(field.name, field.name)] = _recorded(value, version)
    return found


def _recorded(value: Any, version: bool) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return recorded(value, version=version)
    if isinstance(value, list | tuple):
        return type(value)(_recorded(entry, version) for entry in value)
    return {key: _recorded(entry, version) for key, entry in value.items()} if isinstance(value, dict) else value


_are_checked = False  # by the parent of this process


def options_are_checked() -> None:
    """In the process of an operator's own environment: its parent has checked all options; pydantic is not needed."""
    global _are_checked
    _are_checked = True


def check_options(options: Any, name: str) -> None:
    """Raises `OpenUniError` for the first field of a dataclass whose value its type or its bounds do not allow."""
    if _are_checked:
        return
    kind: Any = type(options)
    hints = _hints(kind)
    for field in fields(options):
        _validate(hints[field.name], getattr(options, field.name), f"{name}: {field.name}")


def parse_value(hint: Any, given: Any, where: str) -> Any:
    """The value of an option from what TOML and JSON give, where arrays stand for tuples.

    `where`: what the option is called in errors. Raises `OpenUniError` that names what was given and what is allowed.
    """
    return _validate(hint, given, where, as_json=True)


def _validate(hint: Any, given: Any, where: str, *, as_json: bool = False) -> Any:
    from pydantic import ValidationError

    option = _option(hint)
    if option.adapter is None:
        return given
    try:
        if as_json:
            return option.adapter.validate_json(_json(given), strict=True)
        return option.adapter.validate_python(given, strict=True)
    except ValidationError as error:
        faults = {detail["type"] for detail in error.errors()}
        allowed = option.allowed if faults <= OUT_OF_BOUNDS else option.allowed_with_type
        near = did_you_mean(given, map(str, option.choices)) if isinstance(given, str) else ""
        raise OpenUniError(f"{where} = {_format_value(given)}.{near} Allowed: {allowed}.") from error


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


def _json(given: Any) -> str:
    try:
        return json.dumps(given)
    except (TypeError, ValueError):  # an object of Python's, or an integer of too many digits
        return json.dumps(repr(given))


class _Option(NamedTuple):
    """What a hint allows."""

    adapter: "TypeAdapter[Any] | None"  # None: a dataclass, which checks itself
    choices: tuple[Any, ...]
    allowed: str  # for a value of the right type: "at least 1"
    allowed_with_type: str  # "integer, at least 1 (frames in one forward pass)"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _option(hint: Any) -> _Option:
    from pydantic import ConfigDict, TypeAdapter

    bare, bounds = strip_annotation(hint), bounds_of(hint)
    if is_dataclass(bare):
        return _Option(None, (), "", "")
    choices = get_args(bare) if get_origin(bare) is Literal else ()
    if choices:
        with_type = ", ".join(map(str, choices))
    else:
        with_type = ", ".join(filter(None, [_type_text(bare), bounds_text(bounds)]))
        with_type += f" ({meaning})" if (meaning := annotation_text(hint)) else ""
    adapter = TypeAdapter[Any](_bounded(bare, bounds), config=ConfigDict(allow_inf_nan=False))
    return _Option(adapter, choices, bounds_text(bounds) or "finite numbers", with_type)


def _bounded(bare: Any, bounds: list[BaseMetadata]) -> Any:
    """The type with the bounds at the numbers in it, where pydantic reads them."""
    from pydantic import InstanceOf

    if get_origin(bare) is tuple:
        lengths = [bound for bound in bounds if isinstance(bound, MinLen)]
        entries = [bound for bound in bounds if not isinstance(bound, MinLen)]
        inner = tuple(arg if arg is Ellipsis else _bounded(arg, entries) for arg in get_args(bare))
        return _annotated(types.GenericAlias(tuple, inner), lengths)
    if get_origin(bare) in (Union, types.UnionType):
        return Union[tuple(arg if arg is type(None) else _bounded(arg, bounds) for arg in get_args(bare))]  # noqa: UP007
    if get_origin(bare) is dict:
        key, value = get_args(bare)
        return types.GenericAlias(dict, (key, _bounded(value, bounds)))
    return Annotated[bare, InstanceOf()] if is_dataclass(bare) else _annotated(bare, bounds)


def _annotated(bare: Any, extras: Sequence[BaseMetadata]) -> Any:
    return Annotated[(bare, *extras)] if extras else bare


def _type_text(bare: Any) -> str:
    """ "integer", "list of numbers", "2 integers", "string or none"."""
    if get_origin(bare) is tuple:
        args = get_args(bare)
        entry = f"lists of {_type_text(args[0])}" if get_origin(args[0]) is tuple else PLURALS.get(args[0], "tables")
        return f"list of {entry}" if args[-1] is Ellipsis else f"{len(args)} {entry}"
    if get_origin(bare) in (Union, types.UnionType):
        return " or ".join("none" if arg is type(None) else _type_text(arg) for arg in get_args(bare))
    if get_origin(bare) is dict:
        return f"table of {PLURALS.get(get_args(bare)[1], 'options')}"
    return TYPE_NAMES.get(bare, str(bare))


def _format_value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
