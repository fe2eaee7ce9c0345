"""ONNX networks, run by onnxruntime on the requested device without silent fallback."""

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
    """Out of memory in onnxruntime. Named as in PyTorch, so the worker recognizes it and halves the batch size."""


class OnnxNetwork:
    """A network with one image input, float32 [N, C, H, W].

    `path`: the .onnx file. `device`: "cpu", "cuda" or "cuda:1". An ONNX file is data: onnxruntime executes only its
    built-in operators. It can refer to external weight files; these are rejected, because their digests would not be
    verified. Raises `OpenUniError` if the file is not such a network, `MissingRequirement` if onnxruntime cannot run on
    that device.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        self.session = _session(path, device)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise OpenUniError(f"{path}: must have one input, float32 [N, 3, height, width]; found {found}")
        self.input = inputs[0].name
        fixed = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
        self.batch, self.height_px, self.width_px = fixed[0], fixed[2], fixed[3]  # None: dynamic
        outputs = self.session.get_outputs()
        self.outputs = [[side if isinstance(side, int) else None for side in one.shape] for one in outputs]

    def each(self, pictures: Iterable[np.ndarray], per_batch: int) -> Iterator[list[np.ndarray]]:
        """Outputs of the network for each image [C, H, W], without the batch axis.

        `per_batch`: images per forward pass if the batch axis is dynamic. For a fixed batch size, the last batch is
        padded with black images.
        """
        pending, size = iter(pictures), self.batch or per_batch
        with ThreadPoolExecutor(1) as ahead:  # prepares the next batch during inference
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
                raise OutOfMemoryError(f"{self.path.name}, batch of {len(batch)} images: {error}") from error
            raise
        wrong = [output.shape for output in found if output.ndim < 1 or len(output) != len(batch)]
        if wrong:
            raise OpenUniError(
                f"{self.path}: output of shape {wrong[0]} for a batch of {len(batch)} images. The first axis must be "
                "the batch; export the network with a batch axis on every output."
            )
        return found


def _session(path: Path, device: str) -> Any:
    import onnxruntime

    wanted = providers_of(device)
    if wanted[0][0] != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # the CUDA libraries that PyTorch installs
    require_provider(wanted[0][0], onnxruntime.get_available_providers(), "not included in this build")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OPENUNI_THREADS", "0"))  # set per worker; 0: all cores
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only; they are raised as well
    options.add_session_config_entry("session.load_model_format", "ONNX")
    with tempfile.TemporaryDirectory() as nothing:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", nothing)
        try:
            session = onnxruntime.InferenceSession(
                path, options, providers=wanted, enable_fallback=0, read_config_from_model=0
            )
        except Exception as error:
            raise OpenUniError(
                f"{path} cannot be loaded: damaged, not ONNX, or with external weights ({str(error)[:300]}). Use a "
                "single .onnx file that contains all weights."
            ) from error
    require_provider(wanted[0][0], session.get_providers(), "its CUDA libraries are missing or have another version")
    return session


def providers_of(device: str) -> list[tuple[str, dict[str, str]]]:
    """Execution providers for a device with options for deterministic float32 computation, in order of preference."""
    kind, _, number = device.partition(":")
    cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    if kind == "cpu":
        return [cpu]
    if kind == "cuda":
        repeatable = {"device_id": number or "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        return [("CUDAExecutionProvider", repeatable), cpu]  # shapes are computed on the CPU
    raise OpenUniError(f'device "{device}" is not supported by onnxruntime. Allowed: "cpu", "cuda".')


def require_provider(wanted: str, there: list[str], why: str) -> None:
    """Raise `MissingRequirement` unless `wanted` is available; onnxruntime would silently fall back to another."""
    if wanted not in there:
        raise MissingRequirement(
            f"onnxruntime cannot use the requested device: {wanted} is not available, only {', '.join(there)} ({why}). "
            "For a GPU, replace the package: pip uninstall onnxruntime, then pip install onnxruntime-gpu for your CUDA "
            'version (the two packages conflict). Or run on the CPU: provider = "cpu"'
        )
