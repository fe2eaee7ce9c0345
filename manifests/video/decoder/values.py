"""JSON form of the arguments and results of the decoder process: plain values, arrays, bytes and a few record types.

Nothing is unpickled. Classes come from a fixed table (`transferable`); what the other side sends can name no other.
"""

import base64
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

MAX_INLINE_BYTES = 2048  # larger arrays travel in shared memory

_RECORDS: dict[str, type] = {}
Record = TypeVar("Record", bound=type)


def transferable(cls: Record) -> Record:
    """Class decorator: let a NamedTuple or dataclass be an argument or a result of the decoder process."""
    _RECORDS[cls.__name__] = cls
    return cls


class Outgoing(Protocol):
    """Where encoded values leave their arrays and functions."""

    def put(self, data: np.ndarray) -> dict[str, Any]:
        """Where the other side finds a contiguous array."""

    def callback(self, function: Callable[..., Any]) -> int:
        """Number by which the other side calls a function."""


class Incoming(Protocol):
    """Where the arrays and functions of encoded values are found."""

    def get(self, place: dict[str, Any]) -> np.ndarray:
        """The bytes from a place on, uint8."""

    def function(self, number: int) -> Callable[..., Any]:
        """A function of the other side."""


def encode(value: Any, out: Outgoing) -> Any:
    """JSON form of a value. Raises `TypeError` for values of other types."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str, int, float)):
        return value
    if isinstance(value, list):
        return [encode(one, out) for one in value]
    if isinstance(value, np.ndarray):
        return {"$": "array", "dtype": value.dtype.str, "shape": value.shape, **_placed(value, out)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        array = np.frombuffer(value, np.uint8)
        return {"$": "bytes", "shape": array.shape, **_placed(array, out)}
    kind, content = _tagged(value, out)
    return {"$": kind, "value": content}


def _tagged(value: Any, out: Outgoing) -> tuple[str, Any]:
    if isinstance(value, Path):
        return "path", str(value)
    if _RECORDS.get(type(value).__name__) is type(value):
        return type(value).__name__, [encode(one, out) for one in _fields(value)]
    if isinstance(value, tuple):
        return "tuple", [encode(one, out) for one in value]
    if callable(value):
        return "function", out.callback(value)
    raise TypeError(f"{type(value).__name__} cannot be sent to the decoder process")


def decode(value: Any, found: Incoming) -> Any:
    """The value of a JSON form. Raises `ValueError`, `TypeError` or `KeyError` for anything else."""
    if isinstance(value, list):
        return [decode(one, found) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value["$"]
    if kind == "array":
        return _array(value, np.dtype(value["dtype"]), found)
    if kind == "bytes":
        return _array(value, np.dtype(np.uint8), found).tobytes()
    if kind == "path":
        return Path(value["value"])
    if kind == "function":
        return found.function(value["value"])
    parts = [decode(one, found) for one in value["value"]]
    return tuple(parts) if kind == "tuple" else _RECORDS[kind](*parts)


def _fields(record: Any) -> list[Any]:
    if dataclasses.is_dataclass(record):
        return [getattr(record, field.name) for field in dataclasses.fields(record)]
    return list(record)


def _placed(array: np.ndarray, out: Outgoing) -> dict[str, Any]:
    if array.dtype.hasobject:
        raise TypeError("arrays of objects cannot be sent to the decoder process")
    if array.nbytes <= MAX_INLINE_BYTES:
        return {"base64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}
    return out.put(array)


def _array(value: dict[str, Any], dtype: np.dtype, found: Incoming) -> np.ndarray:
    shape = tuple(int(side) for side in value["shape"])
    if dtype.hasobject or any(side < 0 for side in shape):
        raise ValueError("not an array of numbers")
    nbytes = math.prod(shape) * dtype.itemsize
    if "base64" in value:
        data = np.frombuffer(bytearray(base64.b64decode(value["base64"])), np.uint8)
    else:
        data = found.get(value)[:nbytes]
    return data.view(dtype).reshape(shape)
