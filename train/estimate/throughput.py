"""Tokens and FLOPs of training samples, and the model FLOPs utilization (MFU) of a step."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from openuni.training.data.plan import Sample
from openuni.training.estimate.footprint import Pass, fake_model, fake_pass, sized
from openuni.training.loop.setup import Setup

# Dense bfloat16 TFLOP/s without sparsity, from the vendors' data sheets, by a part of the device's name; the first
# match counts.
PEAK_TFLOPS = (
    ("A100", 312.0),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H200", 989.0),
    ("B200", 2250.0),
    ("L40S", 362.0),
)


def peak_tflops(device: torch.device, given: float) -> float:
    """Peak TFLOP/s of a device in bfloat16: `given` if it is not 0, else by its name; 0: not known."""
    if given or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS if part in name), 0.0)


class Throughput:
    """Tokens and FLOPs of samples, known from their shapes: nothing waits for the device.

    `peak`: TFLOP/s of one device; 0: no MFU.
    """

    def __init__(self, setup: Setup, model: Any, peak: float, world: int) -> None:
        self.setup, self.patch, self.peak, self.world = setup, tuple(model.patch), peak, world
        self._passes: dict[tuple[int, int, tuple[int, ...]], Pass] = {}
        self._fake: Any = None

    def columns(self, samples: Sequence[Sample], seconds: float) -> dict[str, float]:
        """Columns `samples_per_s`, `tokens_per_s`, and `mfu` (0..1) if the peak is known, of a row of the log.

        MFU counts the FLOPs of one forward and backward pass; recomputed blocks do not count.
        """
        found = {
            "samples_per_s": len(samples) / seconds,
            "tokens_per_s": sum(map(self._tokens, samples)) / seconds,
        }
        if self.peak and (flops := self._flops(samples)):
            found["mfu"] = flops / (seconds * self.world * self.peak * 1e12)
        return found

    def _tokens(self, sample: Sample) -> int:
        """Tokens of a sample's streams."""
        per_stream = math.prod(size // part for size, part in zip(self._shape(sample)[1:], self.patch, strict=True))
        return per_stream * len(sample.task.streams) + self._text_tokens(sample)

    def _text_tokens(self, sample: Sample) -> int:
        return self.setup.recipe.text.length if self.setup.model.has_text_stream(sample.task) else 0

    def _shape(self, sample: Sample) -> tuple[int, ...]:
        return tuple(int(size) for size in self.setup.index.shapes[sample.clip])

    def _flops(self, samples: Sequence[Sample]) -> float:
        """FLOPs of the samples; each kind is computed once, from fake tensors. 0: sizes of the model not known."""
        return sum(self._pass(sample).flops for sample in samples) if self._module() is not None else 0.0

    def _module(self) -> Any:
        if self._fake is None:
            model = sized(self.setup.model)
            if model is None:
                self.peak = 0.0
                return None
            with FakeTensorMode(allow_non_fake_inputs=True):
                self._fake, _ = fake_model(model)
        return self._fake

    def _pass(self, sample: Sample) -> Pass:
        streams, tokens, shape = sample.task.streams, self._text_tokens(sample), self._shape(sample)
        key = len(streams), tokens, shape
        if key not in self._passes:
            is_low = self.setup.recipe.precision != "float32"
            with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
                warnings.simplefilter("ignore")  # of kernels, which do not run
                length = self.setup.texts.length
                self._passes[key] = fake_pass(self._fake, streams, shape, length, tokens, bfloat16=is_low)
        return self._passes[key]
