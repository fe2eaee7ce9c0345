"""Runs the graph of an ONNX file with PyTorch, on any of its devices, without waiting for the device.

For the networks of `dwpose` (YOLOX, RTMPose) on GPUs for which onnxruntime is not built. Shapes and the small constants
that operators read (axes, sizes, limits) are NumPy arrays on the host; only images and weights are on the device.
Converters of other projects were tried on such graphs (28 November 2026): onnx2torch 1.5 does not convert RTMPose's
limits, onnx2pytorch 0.6 converts both, and reads 13 to 85 values back from the device in every forward pass.
"""

from pathlib import Path
from typing import Any

import numpy as np

from openuni.annotators._onnx_graph import Node, read_graph
from openuni.annotators._onnx_operators import OPERATORS, Call
from openuni.manifests.errors import OpenUniError

SMALL = 64  # constants of at most so many elements are kept on the host too


class TorchGraph:
    """An ONNX network as a function of a float32 tensor [N, C, H, W].

    Raises `OpenUniError` if the graph has operators that are not supported, or attributes of them.
    """

    def __init__(self, path: Path, device: str) -> None:
        import torch

        self.path, self.device = path, torch.device(device)
        self.graph = read_graph(path)
        unknown = sorted({node.kind for node in self.graph.nodes} - OPERATORS.keys() - {"Constant"})
        if unknown:
            raise OpenUniError(
                f"{path}: operators without a PyTorch counterpart here: {', '.join(unknown)}. Use a plain export of "
                'YOLOX or RTMPose, or backend = "onnxruntime"'
            )
        constants = dict(self.graph.weights)
        for node in self.graph.nodes:
            if node.kind == "Constant":
                constants[node.outputs[0]] = _constant(node, path)
        self.host = {name: value for name, value in constants.items() if value.size <= SMALL or value.dtype.kind != "f"}
        self.weights = {
            name: torch.from_numpy(value.astype(np.float32)).to(self.device)
            for name, value in constants.items()
            if value.dtype.kind == "f"
        }
        self.nodes = [node for node in self.graph.nodes if node.kind != "Constant"]
        last = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}
        self.finished = [[name for name in node.inputs if last[name] == index] for index, node in enumerate(self.nodes)]

    def __call__(self, images: Any) -> list[Any]:
        """Outputs for images, float32 [N, C, H, W] on the device, as tensors. To be called in `inference`."""
        values: dict[str, Any] = {**self.host, **self.weights, self.graph.inputs[0]: images}
        for node, finished in zip(self.nodes, self.finished, strict=True):
            call = Call(node, self.graph.opset, values, self.host)
            try:
                found = OPERATORS[node.kind](call)
            except NotImplementedError as error:
                raise OpenUniError(f'{self.path}: {node.kind} {error} Use backend = "onnxruntime"') from error
            outputs = found if isinstance(found, (list, tuple)) else [found]
            values.update(zip(node.outputs, outputs, strict=False))
            for name in finished:
                if name not in self.graph.outputs:
                    values.pop(name, None)
        return [values[name] for name in self.graph.outputs]


def _constant(node: Node, path: Path) -> np.ndarray:
    value = next(iter(node.attributes.values()), None)
    if value is None or isinstance(value, str):
        raise OpenUniError(f'{path}: a constant that is no number. Use backend = "onnxruntime"')
    return np.asarray(value, None if isinstance(value, np.ndarray) else np.float32 if _is_float(value) else np.int64)


def _is_float(value: Any) -> bool:
    return any(isinstance(one, float) for one in (value if isinstance(value, list) else [value]))
