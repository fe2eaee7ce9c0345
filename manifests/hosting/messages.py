"""Clips, results and errors as messages between a worker and the process of an operator's environment.

JSON with arrays in shared memory; nothing is pickled. Records (dataclasses and NamedTuples) are named by module and
class. The process of the environment imports the classes that its parent names. The parent accepts results only: those
of its operator and of our modalities, from modules that it has imported itself.
"""

import dataclasses
import mmap
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError, Unavailable
from openuni.manifests.video.decoder import values
from openuni.manifests.video.decoder.channel import Payload
from openuni.manifests.video.decoder.memory import has_size

MAX_TRACE_CHARS = 8000
OUR_ERRORS: dict[str, type[Exception]] = {
    cls.__name__: cls for cls in (Unavailable, ClipError, MissingRequirement, OpenUniError)
}
CLASS_NAME = re.compile(r"[A-Za-z_]\w{0,99}")


class ForeignError(Exception):
    """An error of a class that exists in the process of the environment; raised here under the same name."""


class ForeignTraceback(Exception):
    """The traceback of an error there, as the cause of the error raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Received:
    """The arrays of a message. See `values.Incoming`."""

    def __init__(self, fds: list[int]) -> None:
        self.data: Any = b""
        try:
            for fd in fds[:1]:
                size = os.fstat(fd).st_size
                if not has_size(fd, size):
                    raise ValueError("unusable memory")
                self.data = mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            for fd in fds:
                os.close(fd)

    def get(self, place: dict[str, Any]) -> np.ndarray:
        """See `values.Incoming`."""
        at = int(place["at"])
        if not 0 <= at <= len(self.data):
            raise ValueError("no such place")
        return np.frombuffer(self.data, np.uint8)[at:]

    def function(self, number: int) -> Callable[..., Any]:
        """Messages hold no functions."""
        raise ValueError(f"function {number} in a message")


def pack(value: Any, out: Payload) -> Any:
    """JSON form of plain values, arrays, tables, and records of them. Raises `TypeError` for others."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys must be texts: {list(value)[:3]}")
        return {"$": "table", "value": [[key, pack(entry, out)] for key, entry in value.items()]}
    if isinstance(value, list):
        return [pack(entry, out) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _record(value, fields, out)
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return _record(value, dict(zip(value._fields, value, strict=True)), out)
        return {"$": "tuple", "value": [pack(entry, out) for entry in value]}
    if callable(value):
        raise TypeError(f"{value!r} cannot be sent to another process")
    return values.encode(value, out)


def _record(value: Any, fields: Mapping[str, Any], out: Payload) -> dict[str, Any]:
    kind = type(value)
    named = {name: pack(entry, out) for name, entry in fields.items()}
    return {"$": "record", "module": kind.__module__, "class": kind.__qualname__, "fields": named}


def unpack(message: Any, found: Received, find_class: Callable[[str, str], type]) -> Any:
    """The value of a JSON form. `find_class`: the class of a module and name. Raises `ValueError` and its kin."""
    if isinstance(message, list):
        return [unpack(entry, found, find_class) for entry in message]
    if not isinstance(message, dict):
        return message
    kind = message["$"]
    if kind == "table":
        return {key: unpack(entry, found, find_class) for key, entry in message["value"]}
    if kind == "tuple":
        return tuple(unpack(entry, found, find_class) for entry in message["value"])
    if kind == "record":
        fields = {name: unpack(entry, found, find_class) for name, entry in message["fields"].items()}
        return find_class(message["module"], message["class"])(**fields)
    return values.decode(message, found)


def result_classes(operator: Any) -> Callable[[str, str], type]:
    """`find_class` for results of an operator's class: NamedTuples and maps of its modules and of our modalities."""
    modules = {cls.__module__ for cls in operator.__mro__} | {operator.result_type().__module__}

    def find(module: str, name: str) -> type:
        is_known = module in modules or module.startswith("openuni.manifests.modalities.")
        found: Any = getattr(sys.modules.get(module), name, None) if is_known else None
        is_record = isinstance(found, type) and (
            issubclass(found, Modality) or (issubclass(found, tuple) and hasattr(found, "_fields"))
        )
        if not is_record:
            raise ValueError(f"{module}.{name} is not a result of {operator.__module__}")
        kind: type = found
        return kind

    return find


def describe(error: BaseException) -> dict[str, str]:
    """An error as JSON: its class, the one of ours that it derives from, text and traceback."""
    base = next((cls.__name__ for cls in type(error).__mro__ if OUR_ERRORS.get(cls.__name__) is cls), "")
    trace = "".join(traceback.format_exception(error))[-MAX_TRACE_CHARS:]
    return {"class": type(error).__name__, "base": base, "text": str(error), "traceback": trace}


def error_of(described: Mapping[str, Any]) -> Exception:
    """The error that `describe` described. Those of foreign classes get a class of the same name."""
    base, name, text = OUR_ERRORS.get(str(described["base"])), str(described["class"]), str(described["text"])
    if base is None:
        base = type(name, (ForeignError,), {}) if CLASS_NAME.fullmatch(name) else ForeignError
    error = base(text)
    error.__cause__ = ForeignTraceback(str(described["traceback"])[-MAX_TRACE_CHARS:])
    return error
