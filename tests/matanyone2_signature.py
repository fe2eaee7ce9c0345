"""The part of matanyone2-runtime 0.2.0 that we use, and nothing of what it does.

The package needs an environment of its own. What is asked of it is checked. Its core here keeps the mask it is given
for the first frame, and gives of every other frame the grey level as alpha.
"""

import sys
import types
from typing import Any, ClassVar

import cv2
import numpy as np
import torch


class OmegaConf:
    """As `omegaconf.OmegaConf`."""

    @staticmethod
    def create(values: dict[str, Any]) -> types.SimpleNamespace:
        plain = {key: OmegaConf.create(one) if isinstance(one, dict) else one for key, one in values.items()}
        return types.SimpleNamespace(**plain)


class MatAnyone2(torch.nn.Module):
    """As `matanyone2.model.matanyone2.MatAnyone2`."""

    def __init__(self, cfg: Any, *, single_object: bool = False) -> None:
        super().__init__()
        assert cfg.model.pretrained_resnet is False and single_object
        self.cfg, self.scale = cfg, torch.nn.Parameter(torch.ones(1))


class InferenceCore:
    """As `matanyone2.inference.inference_core.InferenceCore`."""

    made: ClassVar[list["InferenceCore"]] = []

    def __init__(self, network: MatAnyone2, cfg: Any = None, *, device: Any = None) -> None:
        self.network, self.cfg, self.device = network, cfg, torch.device(device)
        self.mask: torch.Tensor | None = None
        self.refined = self.propagated = 0
        InferenceCore.made.append(self)

    def step(
        self,
        image: torch.Tensor,
        mask: torch.Tensor | None = None,
        objects: list[int] | None = None,
        *,
        first_frame_pred: bool = False,
    ) -> torch.Tensor:
        assert image.shape[0] == 3 and image.min() >= 0 and image.max() <= 1
        features = -(-image.shape[1] // 16) * -(-image.shape[2] // 16)
        assert self.cfg.top_k <= features
        if mask is not None:
            assert objects == [1] and mask.shape == image.shape[1:] and mask.unique().tolist() in ([0, 255], [255])
            self.mask = mask / 255
        assert self.mask is not None
        alpha = self.mask
        if first_frame_pred:
            self.refined += 1
        elif mask is None:
            self.propagated += 1
            alpha = self.network.scale * image.mean(dim=0)
        return torch.stack([1 - alpha, alpha])

    def output_prob_to_mask(self, output_prob: torch.Tensor) -> torch.Tensor:
        return output_prob[1:].squeeze(0)


def set_default_device(device: str) -> None:
    """As `matanyone2.utils.device.set_default_device`."""
    torch.device(device)


def gen_dilate(alpha: np.ndarray, min_kernel_size: int, max_kernel_size: int) -> np.ndarray:
    """As `matanyone2.utils.inference_utils.gen_dilate`: an ellipse of a size between both, which are equal here."""
    assert min_kernel_size == max_kernel_size
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (min_kernel_size, min_kernel_size))
    return cv2.dilate((alpha != 0).astype(np.float32), disc) * 255


def gen_erosion(alpha: np.ndarray, min_kernel_size: int, max_kernel_size: int) -> np.ndarray:
    """As `matanyone2.utils.inference_utils.gen_erosion`."""
    assert min_kernel_size == max_kernel_size
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (min_kernel_size, min_kernel_size))
    return cv2.erode((alpha == 255).astype(np.float32), disc) * 255


def modules() -> dict[str, types.ModuleType]:
    """The package's modules that we import, as `sys.modules` names them."""
    names = ("", ".model", ".model.matanyone2", ".utils", ".utils.device", ".utils.inference_utils", ".inference")
    found = {f"matanyone2{name}": types.ModuleType(f"matanyone2{name}") for name in names}
    found["matanyone2.inference.inference_core"] = found["matanyone2.utils.device"] = sys.modules[__name__]
    found["matanyone2.utils.inference_utils"] = found["matanyone2.model.matanyone2"] = sys.modules[__name__]
    found["matanyone2.model"].matanyone2 = sys.modules[__name__]  # type: ignore[attr-defined]
    return found
