"""Reads the graph of an ONNX file: the parts of its protobuf messages that running a network needs, as plain data."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.errors import OpenUniError

DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}  # TensorProto.DataType
# fields of the messages, by number, as onnx.proto states them
MODEL_GRAPH, MODEL_OPSETS = 7, 8
NODES, WEIGHTS, INPUTS, OUTPUTS = 1, 5, 11, 12


class Node(NamedTuple):
    """One operator of a graph. An empty name is an input or output that is left out."""

    kind: str  # "Conv"; with its domain, unless that is ONNX: "com.microsoft.FusedConv"
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Any]  # numbers, texts, lists of numbers, arrays


class Graph(NamedTuple):
    """A network: nodes in an order in which they can be computed."""

    nodes: Sequence[Node]
    weights: Mapping[str, np.ndarray]
    inputs: Sequence[str]  # without weights
    outputs: Sequence[str]
    opset: int


def read_graph(path: Path) -> Graph:
    """Read an ONNX file. Raises `OpenUniError` for files of another kind and for weights in other files."""
    try:
        model = _message(memoryview(path.read_bytes()))
        opsets = [_message(one) for one in model.get(MODEL_OPSETS, [])]
        graph = _message(model[MODEL_GRAPH][0])
        weights = dict(_tensor(one) for one in graph.get(WEIGHTS, []))
        return Graph(
            [_node(one) for one in graph.get(NODES, [])],
            weights,
            [name for one in graph.get(INPUTS, []) if (name := _text(_message(one), 1)) not in weights],
            [_text(_message(one), 1) for one in graph.get(OUTPUTS, [])],
            max(int(one[2][0]) for one in opsets if _text(one, 1) in ("", "ai.onnx")),
        )
    except (KeyError, IndexError, ValueError, TypeError, struct.error) as error:
        raise OpenUniError(
            f"{path} cannot be read as ONNX ({type(error).__name__}: {error}). Use an ONNX file."
        ) from error


def _node(data: memoryview) -> Node:
    node = _message(data)
    domain, kind = _text(node, 7), _text(node, 4)
    return Node(
        kind if domain in ("", "ai.onnx") else f"{domain}.{kind}",
        [bytes(one).decode() for one in node.get(1, [])],
        [bytes(one).decode() for one in node.get(2, [])],
        dict(_attribute(one) for one in node.get(5, [])),
    )


def _attribute(data: memoryview) -> tuple[str, Any]:
    """Name and value; the kind of the value is told by the field that holds it, since only one is written."""
    fields = _message(data)
    name = _text(fields, 1)
    if 2 in fields:
        return name, struct.unpack("<f", fields[2][0])[0]
    if 3 in fields:
        return name, _signed(fields[3][0])
    if 4 in fields:
        return name, bytes(fields[4][0]).decode()
    if 5 in fields:
        return name, _tensor(fields[5][0])[1]
    if 7 in fields:
        return name, [value for one in fields[7] for value in struct.unpack(f"<{len(one) // 4}f", one)]
    return name, _integers(fields.get(8, []))


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    fields = _message(data)
    name, kind, sides = _text(fields, 8), int(fields[2][0]), _integers(fields.get(1, []))
    if fields.get(14, [0])[0]:
        raise ValueError(f'weight "{name}" is stored in another file')
    if kind not in DTYPES:
        raise ValueError(f'weight "{name}" has data type {kind}')
    dtype = np.dtype(DTYPES[kind])
    if 9 in fields:
        values = np.frombuffer(fields[9][0], dtype)
    elif 4 in fields:
        values = np.concatenate([np.frombuffer(one, "<f4") for one in fields[4]])
    elif 10 in fields:
        values = np.concatenate([np.frombuffer(one, "<f8") for one in fields[10]])
    else:  # integers, and 16-bit floats as their bits
        values = np.array(_integers(fields.get(7, fields.get(5, []))), np.int64)
        values = values.astype(np.uint16).view(np.float16) if dtype == np.float16 else values
    return name, values.astype(dtype).reshape(sides)


def _text(fields: Mapping[int, list[Any]], number: int) -> str:
    return bytes(fields[number][-1]).decode() if number in fields else ""


def _integers(values: list[Any]) -> list[int]:
    """Repeated integers, packed or one by one."""
    found: list[int] = []
    for value in values:
        found += [_signed(value)] if isinstance(value, int) else map(_signed, _varints(value))
    return found


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _message(data: memoryview) -> dict[int, list[Any]]:
    """Fields of a message by number: integers, or the bytes of everything else."""
    fields: dict[int, list[Any]] = {}
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        value: Any
        if wire == 0:
            value, place = _varint(data, place)
        else:
            if wire == 2:
                length, place = _varint(data, place)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire}")
            if length > len(data) - place:
                raise ValueError("truncated")
            value, place = data[place : place + length], place + length
        fields.setdefault(number, []).append(value)
    return fields


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value & (1 << 64) - 1, place
    raise ValueError("an integer of more than 64 bits")
