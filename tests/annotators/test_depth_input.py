"""The input of Depth Anything's network on the device: the pixels of transformers' image processor, bit for bit."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional
from transformers import BeitImageProcessor, DPTImageProcessor

from openuni.annotators._depth_anything import original_pixels, original_size
from openuni.annotators._depth_input import axis_weights, can_process, process, resize_8_bit

DEPTH_ANYTHING = {"keep_aspect_ratio": True, "ensure_multiple_of": 14, "size": {"height": 518, "width": 518}}
# rows and columns before and after: the network's at 480p, both sides smaller, one of them, extremes
SIZES = [(480, 832, 518, 896), (45, 80, 28, 42), (45, 80, 45, 98), (45, 80, 126, 80), (1, 7, 5, 1), (90, 3, 4, 90)]


def pictures(height_px, width_px, contrast):
    """uint8 [2, 3, H, W]; only 0 and 255 if `contrast`, where bicubic weights overshoot."""
    noise = np.random.default_rng(height_px).integers(0, 256, (2, 3, height_px, width_px), dtype=np.uint8)
    return torch.from_numpy(np.where(noise > 127, 255, 0).astype(np.uint8) if contrast else noise)


@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_integers_are_those_of_pytorchs_kernel_for_8_bits(size, contrast):
    images, wanted = pictures(*size[:2], contrast), size[2:]
    theirs = functional.resize(images, list(wanted), functional.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(resize_8_bit(images, *wanted), theirs)


def test_floating_point_would_differ_at_edges():
    """Why the device does not simply call the image processor, which interpolates in floating point there."""
    images = pictures(45, 80, contrast=True)
    floats = torch.nn.functional.interpolate(images.float(), (70, 126), mode="bicubic", antialias=True)
    rounded = floats.round().clamp(0, 255).int()
    assert (rounded - resize_8_bit(images, 70, 126).int()).abs().max() > 10


def test_weights_fit_into_the_integers():
    for before_px, after_px in ((7, 900), (480, 518), (832, 896), (4000, 3)):
        _, weights, bits = axis_weights(before_px, after_px)
        assert np.abs(weights).max() < 1 << 15
        assert np.abs(weights).astype(np.int64).sum(axis=0).max() * 255 + (1 << bits) < 1 << 31, "sums fit into int32"


@pytest.mark.parametrize("settings", [{}, {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}])
def test_pixels_equal_the_image_processor(settings):
    processor = DPTImageProcessor(**DEPTH_ANYTHING, **settings)
    frames = np.random.default_rng(0).integers(0, 256, (3, 45, 80, 3), dtype=np.uint8)
    theirs = processor(list(frames), size={"height": 70, "width": 70}, return_tensors="pt")["pixel_values"]
    assert can_process(processor)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    assert torch.equal(process(processor, images, 70), theirs)


def test_other_processors_are_left_alone():
    assert not can_process(BeitImageProcessor())
    for setting in ({"resample": 2}, {"do_normalize": False}, {"do_pad": True}, {"do_resize": False}):
        assert not can_process(DPTImageProcessor(**DEPTH_ANYTHING, **setting))


def test_the_authors_rule_in_threads_is_the_authors_rule():
    import cv2

    frames = np.random.default_rng(0).integers(0, 256, (5, 45, 80, 3), dtype=np.uint8)
    height_px, width_px = original_size(45, 80, 70)
    found = original_pixels(frames, 70)
    for frame, pixels in zip(frames, found, strict=True):
        image = cv2.resize(frame / 255.0, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
        image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert np.array_equal(pixels, image.transpose(2, 0, 1).astype(np.float32))
