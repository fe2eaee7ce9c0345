"""ONNX networks, run by onnxruntime or PyTorch on the requested device without silent fallback."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from openuni.annotators._onnx_torch import TorchGraph
from openuni.annotators._threads import in_threads
from openuni.manifests.contracts.device_batches import transfers
from openuni.manifests.contracts.inference import inference
from openuni.manifests.errors import MissingRequirement, OpenUniError

OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "ALLOC_FAILED", "bad allocation")
T = TypeVar("T")


class OutOfMemoryError(RuntimeError):
    """Out of memory in onnxruntime. Named as in PyTorch, so the worker recognizes it and halves the batch size."""


Backend = Literal["auto", "onnxruntime", "torch"]
GPU_BATCHES = 4  # images per forward pass on a GPU for each of `per_batch`: it is not filled otherwise


class OnnxNetwork:
    """A network with one image input, float32 [N, C, H, W].

    `path`: the .onnx file. `device`: "cpu", "cuda" or "cuda:1". `backend`: onnxruntime, PyTorch (`TorchGraph`), or
    "auto": onnxruntime on a CPU, PyTorch elsewhere. An ONNX file is data: only built-in operators are executed. It can
    refer to external weight files; these are rejected, because their digests would not be verified. Raises
    `OpenUniError` if the file is not such a network, `MissingRequirement` if onnxruntime cannot run on that device.
    """

    def __init__(self, path: Path, device: str, backend: Backend = "auto") -> None:
        self.path, self.device = path, device
        is_torch = backend == "torch" or (backend == "auto" and device != "cpu")
        # onnxruntime checks the file for both
        self.session = _session(path, "cpu" if is_torch else device)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise OpenUniError(f"{path}: must have one input, float32 [N, 3, height, width]; found {found}")
        self.input = inputs[0].name
        fixed = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
        self.batch, self.height_px, self.width_px = fixed[0], fixed[2], fixed[3]  # None: dynamic
        outputs = self.session.get_outputs()
        self.outputs = [[side if isinstance(side, int) else None for side in one.shape] for one in outputs]
        self.graph: TorchGraph | None = None
        self.levels: tuple[np.ndarray, Any] | None = None  # the last table of levels, and its copy on the device
        if is_torch:
            self.graph, self.session = TorchGraph(path, device), None
            self.transfers = transfers(self.graph.device)

    def batch_size(self, per_batch: int) -> int:
        """Images per forward pass: those of the file, or `per_batch`, on a GPU `GPU_BATCHES` times as many."""
        return self.batch or per_batch * (GPU_BATCHES if self.device != "cpu" else 1)

    def each(
        self,
        items: Sequence[T],
        picture: Callable[[T], np.ndarray],
        per_batch: int,
        levels: np.ndarray | None = None,
        columns: int | None = None,
    ) -> Iterator[list[np.ndarray]]:
        """Outputs of the network for each item, without the batch axis.

        `picture`: the image of an item, uint8 [H, W, C], computed in threads while the network runs. `levels`: float32
        [256, C], what becomes of the 8-bit levels of each channel; None: the levels as numbers. For a fixed batch
        size, the last batch is padded with black images. `columns`: how much of the outputs' last axis is copied from
        the device; None: all. A batch is awaited when the next one is queued.
        """
        size = self.batch_size(per_batch)
        waiting: Callable[[], list[list[np.ndarray]]] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="images") as ahead:

            def prepared(start: int) -> "Future[np.ndarray]":
                return ahead.submit(lambda: self._batch(in_threads(picture, items[start : start + size]), levels))

            coming = prepared(0) if len(items) else None
            for start in range(0, len(items), size):
                batch = coming.result() if coming else np.empty(0)
                coming = prepared(start + size) if start + size < len(items) else None
                count = min(size, len(items) - start)
                queued = self._queued(batch, count, levels, columns)
                if waiting is not None:
                    yield from waiting()
                waiting = queued
        if waiting is not None:
            yield from waiting()

    def _batch(self, pictures: Sequence[np.ndarray], levels: np.ndarray | None) -> np.ndarray:
        """Images filled up to a fixed batch size: uint8 [N, H, W, C] for PyTorch, the input itself for onnxruntime."""
        fill = [np.zeros_like(pictures[0])] * ((self.batch or 0) - len(pictures))
        batch = np.stack([*pictures, *fill])
        return as_input(batch, levels) if self.graph is None else batch

    def _queued(
        self, batch: np.ndarray, count: int, levels: np.ndarray | None, columns: int | None
    ) -> Callable[[], list[list[np.ndarray]]]:
        """Start a forward pass of a `_batch`. Returns a function that waits for the outputs of `count` images."""
        outputs = self._run(batch) if self.graph is None else self._torch_run(batch, levels)
        wrong = [tuple(output.shape) for output in outputs if output.ndim < 1 or len(output) != len(batch)]
        if wrong:
            raise OpenUniError(
                f"{self.path}: output of shape {wrong[0]} for a batch of {len(batch)} images. The first axis must be "
                "the batch; export the network with a batch axis on every output."
            )
        wanted = [output[:count] if columns is None else output[:count, ..., :columns] for output in outputs]
        on_host = (lambda: wanted) if self.graph is None else self.transfers.down(tuple(wanted))
        return lambda: [list(one) for one in zip(*on_host(), strict=True)]

    def _run(self, batch: np.ndarray) -> list[np.ndarray]:
        try:
            found: list[np.ndarray] = self.session.run(None, {self.input: batch})
        except Exception as error:
            if any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise OutOfMemoryError(f"{self.path.name}, batch of {len(batch)} images: {error}") from error
            raise
        return found

    def _torch_run(self, batch: np.ndarray, levels: np.ndarray | None) -> list[Any]:
        """Outputs as tensors on the device. Images are copied to it with 8 bits per value, which is a quarter."""
        import torch

        assert self.graph is not None
        device = self.graph.device
        with inference(device.type, "fp32"):
            images = self.transfers.up(batch).permute(0, 3, 1, 2)
            if levels is None:
                return self.graph(images.float().contiguous())
            if self.levels is None or self.levels[0] is not levels:
                self.levels = levels, torch.from_numpy(levels).to(device)
            table = self.levels[1]
            channels = [table[:, channel][images[:, channel].long()] for channel in range(images.shape[1])]
            return self.graph(torch.stack(channels, dim=1))


def as_input(pictures: np.ndarray, levels: np.ndarray | None) -> np.ndarray:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W]. `levels`: see `OnnxNetwork.each`."""
    channels = range(pictures.shape[-1])
    if levels is None:
        return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)
    return np.stack([levels[:, channel].take(pictures[..., channel]) for channel in channels], axis=1)


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
            'Use PyTorch, backend = "torch" (or "auto"), or the CPU, provider = "cpu". To use onnxruntime on a GPU, '
            "replace the package: pip uninstall onnxruntime, then pip install onnxruntime-gpu for your CUDA version "
            "(the two packages cannot be installed together)"
        )
