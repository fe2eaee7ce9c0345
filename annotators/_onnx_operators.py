"""ONNX operators in PyTorch: those of YOLOX and RTMPose exports, of the versions that exporters write (opset 11 on).

Tensors are on the device. NumPy arrays are values that the host has to know: shapes, axes, sizes, limits. Whatever is
not supported raises `NotImplementedError` with the end of a sentence that begins with the operator.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from openuni.annotators._onnx_graph import Node

HALF_PIXEL = ("half_pixel", "pytorch_half_pixel")


class Call:
    """One node with the values that it gets: tensors on the device, NumPy arrays on the host."""

    def __init__(self, node: Node, opset: int, values: Mapping[str, Any], host: Mapping[str, np.ndarray]) -> None:
        self.node, self.opset, self.values, self._host = node, opset, values, host

    @property
    def inputs(self) -> list[Any]:
        """All inputs, without those that are left out."""
        return [self.values[name] for name in self.node.inputs if name]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attributes.get(name, default)

    def host(self, place: int, attribute: str = "") -> np.ndarray | None:
        """An input that the host has to know, or the attribute that it was in older versions; None if absent."""
        if attribute and attribute in self.node.attributes:
            return np.array(self.node.attributes[attribute])
        name = self.node.inputs[place] if place < len(self.node.inputs) else ""
        if not name:
            return None
        value = self._host.get(name, self.values.get(name))
        if not isinstance(value, np.ndarray):
            raise NotImplementedError(f'with a computed input "{name}" is not supported.')
        return value


def _elementwise(on_device: Callable[..., Any], on_host: Callable[..., Any]) -> Callable[[Call], Any]:
    """An operator of one or several inputs, on the host if all of them are there."""

    def operator(call: Call) -> Any:
        import torch

        inputs = call.inputs
        if all(isinstance(value, np.ndarray) for value in inputs):
            return np.asarray(on_host(*inputs))
        device = next(value.device for value in inputs if isinstance(value, torch.Tensor))
        return on_device(
            *(torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value for value in inputs)
        )

    return operator


def _torch(name: str) -> Callable[..., Any]:
    """A function of PyTorch, imported at its first call."""

    def function(*given: Any) -> Any:
        import torch

        return getattr(torch, name)(*given)

    return function


def _folded(name: str) -> Callable[..., Any]:
    """A function of two tensors, for any number of them."""

    def function(*given: Any) -> Any:
        found = given[0]
        for other in given[1:]:
            found = _torch(name)(found, other)
        return found

    return function


def _same_padding(call: Call, value: float) -> tuple[Any, Any]:
    """The first input and its padding, as PyTorch's functions take it; padded here if both sides differ."""
    import torch

    images, pads = call.inputs[0], call.attribute("pads", [0, 0, 0, 0])
    if call.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError("with auto_pad is not supported.")
    if images.ndim != 4:
        raise NotImplementedError("of other than two dimensions is not supported.")
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return images, (top, left)
    return torch.nn.functional.pad(images, (left, right, top, bottom), value=value), (0, 0)


def _conv(call: Call) -> Any:
    import torch

    images, padding = _same_padding(call, 0.0)
    weight, *bias = call.inputs[1:]
    return torch.nn.functional.conv2d(
        images,
        weight,
        bias[0] if bias else None,
        stride=call.attribute("strides", [1, 1]),
        padding=padding,
        dilation=call.attribute("dilations", [1, 1]),
        groups=call.attribute("group", 1),
    )


def _max_pool(call: Call) -> Any:
    import torch

    images, padding = _same_padding(call, -float("inf"))
    return torch.nn.functional.max_pool2d(
        images,
        call.attribute("kernel_shape"),
        call.attribute("strides", [1, 1]),
        padding,
        call.attribute("dilations", [1, 1]),
        bool(call.attribute("ceil_mode", 0)),
    )


def _average_pool(call: Call) -> Any:
    import torch

    include_pad = bool(call.attribute("count_include_pad", 0))
    pads = call.attribute("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:] and not include_pad:
        raise NotImplementedError("with uneven padding is not supported.")
    images, padding = _same_padding(call, 0.0)
    return torch.nn.functional.avg_pool2d(
        images,
        call.attribute("kernel_shape"),
        call.attribute("strides", [1, 1]),
        padding,
        bool(call.attribute("ceil_mode", 0)),
        include_pad,
    )


def _resize(call: Call) -> Any:
    import torch

    images = call.inputs[0]
    sizes, scales = call.host(3), call.host(2)
    if sizes is None and scales is None:
        raise NotImplementedError("without scales and sizes is not supported.")
    wanted = np.array(images.shape) * scales if sizes is None else sizes
    size = [int(side) for side in wanted[2:]]
    mode, place = call.attribute("mode", "nearest"), call.attribute("coordinate_transformation_mode", "half_pixel")
    factors = {side / old for side, old in zip(size, images.shape[2:], strict=True)}
    if mode == "linear" and place in HALF_PIXEL:
        return torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
    rounding = call.attribute("nearest_mode", "round_prefer_floor")
    is_floor = place == "asymmetric" and (rounding == "floor" or factors == {2.0})
    is_whole = place in HALF_PIXEL and rounding == "round_prefer_floor" and all(one == int(one) for one in factors)
    if mode == "nearest" and (is_floor or is_whole):
        return torch.nn.functional.interpolate(images, size, mode="nearest")
    raise NotImplementedError(f"with mode {mode}, {place}, {rounding} is not supported.")


def _reduce(name: str) -> Callable[[Call], Any]:
    def operator(call: Call) -> Any:
        axes = call.host(1, "axes")
        value, keep = call.inputs[0], bool(call.attribute("keepdims", 1))
        dims = list(range(value.ndim)) if axes is None or not axes.size else [int(axis) for axis in axes]
        if name == "l2":
            return (value * value).sum(dims, keepdim=keep).sqrt()
        return getattr(value, name)(dims, keepdim=keep)

    return operator


def _reshape(call: Call) -> Any:
    value, wanted = call.inputs[0], call.host(1)
    sides = [] if wanted is None else [int(side) for side in wanted]
    if not call.attribute("allowzero", 0):
        sides = [side or value.shape[axis] for axis, side in enumerate(sides)]
    return value.reshape(sides)


def _flatten(call: Call) -> Any:
    value, axis = call.inputs[0], call.attribute("axis", 1)
    return value.reshape(int(np.prod(value.shape[:axis])), -1)


def _transpose(call: Call) -> Any:
    value = call.inputs[0]
    order = call.attribute("perm", list(range(value.ndim))[::-1])
    return value.transpose(order) if isinstance(value, np.ndarray) else value.permute(order)


def _slice(call: Call) -> Any:
    value = call.inputs[0]
    starts, ends = call.host(1, "starts"), call.host(2, "ends")
    axes, steps = call.host(3, "axes"), call.host(4)
    if starts is None or ends is None:
        raise NotImplementedError("without starts and ends is not supported.")
    parts = [slice(None)] * value.ndim
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        step = 1 if steps is None else int(steps[row])
        if step < 1:
            raise NotImplementedError("backwards is not supported.")
        parts[row if axes is None else int(axes[row])] = slice(start, end, step)
    return value[tuple(parts)]


def _split(call: Call) -> Any:
    value, axis = call.inputs[0], call.attribute("axis", 0)
    sizes = call.host(1, "split")
    if sizes is None:
        each = -(-value.shape[axis] // len(call.node.outputs))
        return value.split(each, axis)
    return value.split([int(size) for size in sizes], axis)


def _axes(call: Call) -> list[int] | None:
    axes = call.host(1, "axes")
    return None if axes is None else [int(axis) for axis in np.atleast_1d(axes)]


def _unsqueeze(call: Call) -> Any:
    value, axes = call.inputs[0], _axes(call) or []
    count = value.ndim + len(axes)
    added = {axis % count for axis in axes}
    sides = iter(value.shape)
    return value.reshape([1 if axis in added else next(sides) for axis in range(count)])


def _squeeze(call: Call) -> Any:
    value, axes = call.inputs[0], _axes(call)
    dropped = (
        {axis % value.ndim for axis in axes} if axes is not None else {a for a, n in enumerate(value.shape) if n == 1}
    )
    return value.reshape([side for axis, side in enumerate(value.shape) if axis not in dropped])


def _concat(call: Call) -> Any:
    import torch

    values, axis = call.inputs, call.attribute("axis")
    is_host = all(isinstance(value, np.ndarray) for value in values)
    return np.concatenate(values, axis) if is_host else torch.cat(values, axis)


def _gather(call: Call) -> Any:
    value, places, axis = call.inputs[0], call.host(1), call.attribute("axis", 0)
    if isinstance(value, np.ndarray) and places is not None:
        return np.take(value, places, axis)
    if places is None or places.ndim:
        raise NotImplementedError("of several places is not supported.")
    return value.select(axis, int(places))


def _expand(call: Call) -> Any:
    import torch

    value, wanted = call.inputs[0], call.host(1)
    sides = torch.broadcast_shapes(tuple(value.shape), tuple(int(side) for side in ([] if wanted is None else wanted)))
    return np.broadcast_to(value, sides) if isinstance(value, np.ndarray) else value.expand(sides)


def _clip(call: Call) -> Any:
    limits = [call.host(place, name) for place, name in ((1, "min"), (2, "max"))]
    low, high = (None if one is None else float(one) for one in limits)
    return call.inputs[0].clamp(low, high)


def _leaky_relu(call: Call) -> Any:
    import torch

    return torch.nn.functional.leaky_relu(call.inputs[0], call.attribute("alpha", 0.01))


def _softmax(call: Call) -> Any:
    value = call.inputs[0]
    axis = call.attribute("axis", -1 if call.opset >= 13 else 1)
    if call.opset < 13 and axis % value.ndim != value.ndim - 1:
        raise NotImplementedError("over several axes is not supported.")
    return value.softmax(axis)


def _gemm(call: Call) -> Any:
    a, b, *rest = call.inputs
    a = a.T if call.attribute("transA", 0) else a
    b = b.T if call.attribute("transB", 0) else b
    found = call.attribute("alpha", 1.0) * (a @ b)
    return found + call.attribute("beta", 1.0) * rest[0] if rest else found


def _batch_norm(call: Call) -> Any:
    import torch

    value, scale, bias, mean, variance = call.inputs
    eps = call.attribute("epsilon", 1e-5)
    return torch.nn.functional.batch_norm(value, mean, variance, scale, bias, False, 0.0, eps)


def _cast(call: Call) -> Any:
    value, kind = call.inputs[0], call.attribute("to")
    if isinstance(value, np.ndarray):
        return value.astype({1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_}[kind])
    if kind != 1:
        raise NotImplementedError("to another type than float32 is not supported.")
    return value


def _constant_of_shape(call: Call) -> Any:
    sides = call.host(0)
    value = call.attribute("value", np.zeros(1, np.float32))
    return np.full([] if sides is None else [int(side) for side in sides], value.reshape(-1)[0], value.dtype)


OPERATORS: Mapping[str, Callable[[Call], Any]] = {
    "Add": _elementwise(_torch("add"), np.add),
    "Sub": _elementwise(_torch("sub"), np.subtract),
    "Mul": _elementwise(_torch("mul"), np.multiply),
    "Div": _elementwise(_torch("div"), lambda a, b: a // b if a.dtype.kind == "i" else a / b),
    "Pow": _elementwise(_torch("pow"), np.power),
    "Max": _elementwise(_folded("maximum"), lambda *given: np.maximum.reduce(given)),
    "Min": _elementwise(_folded("minimum"), lambda *given: np.minimum.reduce(given)),
    "Equal": _elementwise(_torch("eq"), np.equal),
    "Where": _elementwise(_torch("where"), np.where),
    "MatMul": _elementwise(_torch("matmul"), np.matmul),
    "Abs": _elementwise(_torch("abs"), np.abs),
    "Neg": _elementwise(_torch("neg"), np.negative),
    "Exp": _elementwise(_torch("exp"), np.exp),
    "Sqrt": _elementwise(_torch("sqrt"), np.sqrt),
    "Sigmoid": lambda call: call.inputs[0].sigmoid(),
    "Tanh": lambda call: call.inputs[0].tanh(),
    "Relu": lambda call: call.inputs[0].relu(),
    "LeakyRelu": _leaky_relu,
    "HardSigmoid": lambda call: (call.inputs[0] * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5)).clamp(
        0.0, 1.0
    ),
    "Softmax": _softmax,
    "Clip": _clip,
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda call: call.inputs[0].mean((2, 3), keepdim=True),
    "BatchNormalization": _batch_norm,
    "Gemm": _gemm,
    "Resize": _resize,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("amax"),
    "ReduceMin": _reduce("amin"),
    "ReduceL2": _reduce("l2"),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Gather": _gather,
    "Expand": _expand,
    "Shape": lambda call: np.array(call.inputs[0].shape, np.int64),
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "Identity": lambda call: call.inputs[0],
    "Dropout": lambda call: call.inputs[0],
}
