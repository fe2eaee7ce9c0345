"""Networks in ONNX files, run by onnxruntime where they were asked to run, or not at all."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from openuni.manifests.errors import MissingRequirement, OpenUniError

OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "ALLOC_FAILED", "bad allocation")


class OutOfMemoryError(RuntimeError):
    """The network's batch does not fit: the same name as PyTorch's, so that the worker halves the batch."""


class OnnxNetwork:
    """A network with one input of pictures, float32 [N, C, H, W].

    A file that comes from anyone is data here, not a program; onnxruntime runs only the operators that it knows. But it
    may name further files with weights: those are refused, wherever they lie, since nothing would hold them against a
    digest. `path`: the .onnx file. `device`: "cpu", "cuda" or "cuda:1". Raises `OpenUniError` for a file that is no
    such network, `MissingRequirement` where onnxruntime cannot run on that device.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        self.session = _session(path, device)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise OpenUniError(f"{path} must have one input, float32 [N, 3, height, width]; it has {found}")
        self.input = inputs[0].name
        fixed = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
        self.batch, self.height_px, self.width_px = fixed[0], fixed[2], fixed[3]  # None: the graph leaves it open
        outputs = self.session.get_outputs()
        self.outputs = [[side if isinstance(side, int) else None for side in one.shape] for one in outputs]

    def each(self, pictures: Iterable[np.ndarray], per_batch: int) -> Iterator[list[np.ndarray]]:
        """What the network says of each picture ([C, H, W]): its outputs, without the batch.

        `per_batch`: pictures in one pass, where the graph leaves that open. A graph with a fixed number gets so many,
        with black ones at the end.
        """
        pending, size = iter(pictures), self.batch or per_batch
        with ThreadPoolExecutor(1) as ahead:  # makes the next pictures while the network looks at these
            coming = ahead.submit(lambda: list(islice(pending, size)))
            while batch := coming.result():
                coming = ahead.submit(lambda: list(islice(pending, size)))
                fill = [np.zeros_like(batch[0])] * ((self.batch or 0) - len(batch))
                found = self._run(np.stack([*batch, *fill]))
                yield from ([output[place] for output in found] for place in range(len(batch)))

    def _run(self, batch: np.ndarray) -> list[np.ndarray]:
        try:
            found: list[np.ndarray] = self.session.run(None, {self.input: batch})
        except Exception as error:
            if any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise OutOfMemoryError(f"{self.path.name}, {len(batch)} pictures in one pass: {error}") from error
            raise
        wrong = [output.shape for output in found if output.ndim < 1 or len(output) != len(batch)]
        if wrong:
            raise OpenUniError(f"{self.path} gave an output of shape {wrong[0]} for {len(batch)} pictures")
        return found


def _session(path: Path, device: str) -> Any:
    import onnxruntime

    wanted = providers_of(device)
    if wanted[0][0] != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's libraries as PyTorch brings them
    require_provider(wanted[0][0], onnxruntime.get_available_providers(), "it was built without it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OPENUNI_THREADS", "0"))  # the worker's share; 0: all cores
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors; they are raised too
    options.add_session_config_entry("session.load_model_format", "ONNX")
    with tempfile.TemporaryDirectory() as nothing:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", nothing)
        try:
            session = onnxruntime.InferenceSession(
                path, options, providers=wanted, enable_fallback=0, read_config_from_model=0
            )
        except Exception as error:
            raise OpenUniError(
                f"{path} cannot be run: it is damaged, not ONNX, or not whole in one file ({str(error)[:300]})"
            ) from error
    require_provider(wanted[0][0], session.get_providers(), "its CUDA libraries are missing or of another version")
    return session


def providers_of(device: str) -> list[tuple[str, dict[str, str]]]:
    """onnxruntime's name of a device with its options, repeatable and in full 32 bits; then what may come after it."""
    kind, _, number = device.partition(":")
    cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    if kind == "cpu":
        return [cpu]
    if kind == "cuda":
        repeatable = {"device_id": number or "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        return [("CUDAExecutionProvider", repeatable), cpu]  # shapes are computed on the CPU
    raise OpenUniError(f'onnxruntime runs on "cpu" and "cuda", not on "{device}"')


def require_provider(wanted: str, there: list[str], why: str) -> None:
    """Raise `MissingRequirement` unless `wanted` is available; onnxruntime itself would silently use another."""
    if wanted not in there:
        raise MissingRequirement(
            f"onnxruntime cannot run on the device asked for: {wanted} is not active, only {', '.join(there)} ({why}). "
            "For a GPU: pip uninstall onnxruntime, then pip install onnxruntime-gpu for this CUDA: both at once break "
            'each other. Or choose the CPU: provider = "cpu"'
        )
