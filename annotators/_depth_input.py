"""Input of Depth Anything's network from frames, on the device of the network.

`transformers`' image processor resizes 8-bit images with the bicubic, antialiased kernel of PyTorch's CPU backend,
which is Pillow's: weights rounded to 16-bit integers, and the result of the first axis rounded and clipped to 8 bits
before the second. On other devices PyTorch interpolates in floating point, which at edges with high contrast differs by
up to 30 of 255. `resize_8_bit` computes the integers of the CPU on any device.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

ROUNDED_BITS = 15  # a weight has at most so many bits, besides its sign
MAX_PRECISION_BITS = 22
BICUBIC = 3  # Pillow's number


class AxisWeights(NamedTuple):
    """Resizing along one axis: output i is the sum of `weights[k, i]` times input `places[k, i]`, over 2^`bits`.

    `places`, `weights`: int64 and int32 [taps, size]; unused taps have weight 0.
    """

    places: np.ndarray
    weights: np.ndarray
    bits: int


def can_process(processor: Any) -> bool:
    """Whether `process` does all that this image processor would do. False: call the processor itself."""
    from transformers import DPTImageProcessor

    return (
        type(processor) is DPTImageProcessor
        and bool(processor.do_resize and processor.do_rescale and processor.do_normalize)
        and processor.resample == BICUBIC
        and not (processor.do_center_crop or processor.do_pad or processor.do_reduce_labels)
    )


def process(processor: Any, images: Any, input_size: int) -> Any:
    """Pixels of the network, float32 [B, 3, h, w], from uint8 [B, 3, H, W]: bit for bit those of the processor.

    `processor`: one that `can_process` accepts. All work happens on the device of `images`.
    """
    from transformers.image_utils import SizeDict
    from transformers.models.dpt.image_processing_dpt import get_resize_output_image_size

    if images.device.type == "cpu":
        size = SizeDict(height=input_size, width=input_size)
        rule = {"ensure_multiple_of": processor.ensure_multiple_of, "keep_aspect_ratio": processor.keep_aspect_ratio}
        resized = processor.resize(images, size=size, resample=processor.resample, **rule)
    else:
        target: Any = get_resize_output_image_size(
            images, (input_size, input_size), processor.keep_aspect_ratio, processor.ensure_multiple_of
        )
        resized = resize_8_bit(images, target.height, target.width)
    mean, std = _normalization(
        tuple(processor.image_mean), tuple(processor.image_std), processor.rescale_factor, images.device
    )
    return resized.float().sub_(mean).div_(std)


@lru_cache(maxsize=8)
def _normalization(mean: tuple[float, ...], std: tuple[float, ...], factor: float, device: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of 8-bit values, float32 [3, 1, 1], rounded as the image processor rounds them.

    Kept on the device: the processor would copy them, and wait for the device, with every batch.
    """
    import torch

    with torch.inference_mode(False):
        mean_8_bit, std_8_bit = (torch.tensor(values) * (1.0 / factor) for values in (mean, std))
        return mean_8_bit.view(-1, 1, 1).to(device), std_8_bit.view(-1, 1, 1).to(device)


def resize_8_bit(images: Any, height_px: int, width_px: int) -> Any:
    """uint8 [B, C, H, W] -> uint8 [B, C, `height_px`, `width_px`], bicubic with antialiasing, exact on every device."""
    rows, columns = images.shape[-2:]
    if columns != width_px:
        images = _along(images, -1, width_px)
    if rows != height_px:
        images = _along(images, -2, height_px)
    return images


def _along(images: Any, axis: int, size_px: int) -> Any:
    import torch

    places, weights, bits = _on_device(images.shape[axis], size_px, images.device)
    shape = (-1,) if axis == -1 else (-1, 1)
    total: Any = 1 << (bits - 1)  # half, to round
    for place, weight in zip(places, weights, strict=True):
        total = images.index_select(axis, place).int().mul_(weight.view(shape)).add_(total)
    return (total >> bits).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=8)
def _on_device(before_px: int, after_px: int, device: Any) -> tuple[Any, Any, int]:
    """`axis_weights` as tensors on the device, where they stay: copying them would wait for it with every batch."""
    import torch

    found = axis_weights(before_px, after_px)
    with torch.inference_mode(False):
        return torch.tensor(found.places).to(device), torch.tensor(found.weights).to(device), found.bits


def axis_weights(before_px: int, after_px: int) -> AxisWeights:
    """The weights of PyTorch's CPU kernel for 8-bit images, from `before_px` to `after_px` pixels."""
    scale = before_px / after_px
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    lines = []
    for place in range(after_px):
        centre = scale * (place + 0.5)
        first = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), before_px)
        line = [_cubic((tap - centre + 0.5) * (1 / stretch)) for tap in range(first, stop)]
        total = sum(line)
        lines.append((first, [weight / total for weight in line]))
    largest = max(max(line) for _, line in lines)
    bits = next(
        (bits for bits in range(MAX_PRECISION_BITS) if int(0.5 + largest * (1 << (bits + 1))) >= 1 << ROUNDED_BITS),
        MAX_PRECISION_BITS,
    )
    taps = max(len(line) for _, line in lines)
    places, weights = np.zeros((taps, after_px), np.int64), np.zeros((taps, after_px), np.int32)
    for number, (first, line) in enumerate(lines):
        for tap, weight in enumerate(line):
            places[tap, number] = first + tap
            weights[tap, number] = int(weight * (1 << bits) + (0.5 if weight >= 0 else -0.5))
    return AxisWeights(places, weights, bits)


def _cubic(x: float) -> float:
    """Keys's cubic convolution kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0
