"""The part of the package depth-anything-3 that we use, as version 0.1.1 has it, and nothing of what it does.

The package needs an environment of its own. What is asked of it is checked. Its network here predicts depth that is
known from the frames: 1 plus the grey level. For networks that see many frames, that is times a factor that the first
frame of a pass decides.
"""

import sys
import types
from typing import Any

import numpy as np
import torch

MODEL_REGISTRY = dict.fromkeys(("da3-small", "da3-base", "da3metric-large", "da3mono-large", "da3nested-giant-large"))
FOCAL_PX = 40.0


class InputProcessor:
    """As `depth_anything_3.utils.io.input_processor.InputProcessor`."""

    def __call__(
        self,
        image: list[np.ndarray],
        extrinsics: None = None,
        intrinsics: None = None,
        process_res: int = 504,
        process_res_method: str = "upper_bound_resize",
        *,
        num_workers: int = 8,
        sequential: bool | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        assert isinstance(image, list) and all(one.dtype == np.uint8 and one.shape[2:] == (3,) for one in image)
        assert process_res % 14 == 0 and sequential
        height, width = image[0].shape[:2]
        scale = process_res / max(height, width)
        size = [max(14, round(side * scale / 14) * 14) for side in (height, width)]
        frames = torch.from_numpy(np.stack(image)).permute(0, 3, 1, 2).float() / 255
        return torch.nn.functional.interpolate(frames, size, mode="bilinear", align_corners=False), None, None


class Network(torch.nn.Module):
    """As `depth_anything_3.model.da3.DepthAnything3Net`, in what it takes and gives."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        batch, views, channels, height, width = x.shape
        assert (batch, channels, height % 14, width % 14) == (1, 3, 0, 0)
        depth = self.scale * (1 + x.mean(dim=2))
        if self.name in ("da3metric-large", "da3mono-large"):
            assert views == 1  # the far end of the sky would be that of all frames
            return {"depth": depth, "sky": torch.zeros_like(depth)}
        if self.name != "da3nested-giant-large":
            depth = depth * (1 + round(255 * float(x[0, 0].mean())) % 7)
        intrinsics = torch.eye(3).repeat(1, views, 1, 1)
        intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = FOCAL_PX
        return {"depth": depth, "depth_conf": torch.full_like(depth, 1.5), "intrinsics": intrinsics}


class DepthAnything3(torch.nn.Module):
    """As `depth_anything_3.api.DepthAnything3`."""

    def __init__(self, model_name: str = "da3-large") -> None:
        super().__init__()
        assert model_name in MODEL_REGISTRY
        self.model, self.input_processor = Network(model_name), InputProcessor()


def modules() -> dict[str, types.ModuleType]:
    """The package and its module `api`, as `sys.modules` names them."""
    package = types.ModuleType("depth_anything_3")
    package.api = sys.modules[__name__]  # type: ignore[attr-defined]
    return {"depth_anything_3": package, "depth_anything_3.api": sys.modules[__name__]}
