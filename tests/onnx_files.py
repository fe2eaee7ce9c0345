"""ONNX files written without the `onnx` package: the few messages of the format that small networks need."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OPSET, IR_VERSION = 13, 8
FLOAT, INT64 = 1, 7  # TensorProto.DataType


class Node(NamedTuple):
    """One operator: its type, the names of what goes in and comes out, and attributes: integers and texts."""

    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int | str | Sequence[int]] = {}


def write_onnx(
    path: Path,
    nodes: Sequence[Node],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    extra: bytes = b"",
) -> str:
    """A model of float32 inputs and outputs (name -> sides, a text where a side is open); returns the path as text.

    `weights`: float32 and int64 arrays by name. `extra`: further bytes of the graph, such as `tensor_elsewhere`.
    """
    graph = b"".join(_field(1, _node(node)) for node in nodes) + _field(2, "graph") + extra
    graph += b"".join(_field(5, _tensor(name, value)) for name, value in weights.items())
    graph += b"".join(_field(11, _value(name, sides)) for name, sides in inputs.items())
    graph += b"".join(_field(12, _value(name, sides)) for name, sides in outputs.items())
    path.write_bytes(_field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(1, "") + _field(2, OPSET)))
    return str(path)


def tensor_elsewhere(name: str, sides: Sequence[int], location: str, offset: int = 0) -> bytes:
    """A float32 weight whose bytes lie in another file, as a field of the graph."""
    tensor = b"".join(_field(1, side) for side in sides) + _field(2, FLOAT) + _field(8, name)
    facts = {"location": location, "offset": str(offset), "length": str(4 * int(np.prod(sides)))}
    tensor += b"".join(_field(13, _field(1, key) + _field(2, value)) for key, value in facts.items())
    return _field(5, tensor + _field(14, 1))


def _node(node: Node) -> bytes:
    data = b"".join(_field(1, name) for name in node.inputs) + b"".join(_field(2, name) for name in node.outputs)
    return data + _field(4, node.kind) + b"".join(_field(5, _attribute(*pair)) for pair in node.attributes.items())


def _attribute(name: str, value: int | str | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, 2)
    if isinstance(value, str):
        return _field(1, name) + _field(4, value) + _field(20, 3)
    return _field(1, name) + b"".join(_field(8, one) for one in value) + _field(20, 7)


def _tensor(name: str, value: np.ndarray) -> bytes:
    kind = {"f": FLOAT, "i": INT64}[value.dtype.kind]
    data = value.astype("<f4" if kind == FLOAT else "<i8").tobytes()
    return b"".join(_field(1, side) for side in value.shape) + _field(2, kind) + _field(8, name) + _field(9, data)


def _value(name: str, sides: Sequence[int | str]) -> bytes:
    shape = b"".join(_field(1, _field(1 if isinstance(side, int) else 2, side)) for side in sides)
    return _field(1, name) + _field(2, _field(1, _field(1, FLOAT) + _field(2, shape)))


def _field(number: int, value: Any) -> bytes:
    """One field of a message: integers as they are, texts and messages with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    value %= 1 << 64  # negative numbers are two's complement
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
