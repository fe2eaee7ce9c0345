"""Albedo and irradiance by Marigold, a diffusion model for single images."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._marigold import NEEDED_FILES, Marigold
from openuni.annotators._temporal_consistency import mean_change, warped_change
from openuni.manifests.arrays.srgb import srgb_to_linear
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.irradiance import Irradiance

LIGHTING, APPEARANCE = "prs-eth/marigold-iid-lighting-v1-1", "prs-eth/marigold-iid-appearance-v1-1"
SATURATED = 250  # levels from here on may stand for more light than they say


class Intrinsics(NamedTuple):
    """Albedo and, from the lighting model, irradiance of every frame."""

    albedo: Albedo
    irradiance: Irradiance | None
    product_error: Annotated[
        float | None,
        "mean absolute difference between the picture and albedo x irradiance + residual, linear light, 0 to 1, "
        "saturated pixels left out; null without irradiance",
    ]
    residual_share: Annotated[
        float | None,
        "share of the picture's light in the residual (gloss, lamps), which is not stored; null without irradiance",
    ]
    flow_change: Annotated[
        float | None,
        "change of the albedo along the motion, 0 to 1: median over the pixels that can be followed of the mean over "
        "channels, mean over adjacent frames; 0 is steady; null where nothing can be followed",
    ]
    spread: Annotated[
        float | None, "median distance of the ensemble's albedos from their median, 0 to 1; null for fewer than 3"
    ]


@dataclass(frozen=True)
class MarigoldIntrinsics(Marigold):
    """Intrinsic decomposition of every frame by Marigold, at the size of the frames, linear light.

    Which checkpoint gives what: `prs-eth/marigold-iid-lighting-v1-1` albedo and irradiance, by linear rgb = albedo x
    irradiance + residual; `prs-eth/marigold-iid-appearance-v1-1` albedo (of physically based materials, with roughness
    and metallicity, which are no modalities here) and no irradiance. Whether an output is linear or sRGB stands in the
    checkpoint; sRGB is taken to linear light.

    The network gives shading and residual on an arbitrary scale of each frame. Irradiance is shading times the factor
    that brings albedo x shading + residual nearest to the frame's linear light (least squares, unsaturated pixels).
    Frames go in as sRGB values with their longer side scaled to `processing_px`.

    Each frame is an image of its own to the network. That all frames start from the same noise takes away the flicker
    that comes from noise, not what comes from the picture. Deterministic; noise is drawn on the CPU, and batches do not
    change it.
    """

    checkpoint: Annotated[str, "Hugging Face name or folder of a MarigoldIntrinsicsPipeline (safetensors)"] = LIGHTING

    origin: ClassVar[str] = "Ke et al. 2025 (arXiv:2505.09358); diffusers.MarigoldIntrinsicsPipeline"

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' models."""
        return tuple(Checkpoint(name, "hub", "OpenRAIL++-M", only=NEEDED_FILES) for name in (LIGHTING, APPEARANCE))

    @classmethod
    def pipeline_name(cls) -> str:
        """diffusers' class."""
        return "MarigoldIntrinsicsPipeline"

    def load(self, device: str) -> Any:
        """The pipeline on `device`. Raises `OpenUniError` for one that makes no albedo, or says nothing of its maps."""
        pipeline = super().load(device)
        names = target_names(pipeline)
        known = {name: _space(pipeline, name) for name in ("albedo", "shading", "residual") if name in names}
        for name, space in known.items():
            if space not in ("linear", "srgb"):
                raise OpenUniError(f'{self.checkpoint}: {name} is in "{space}". Allowed: linear, srgb.')
        if "albedo" not in names or len(names) != pipeline.n_targets:
            raise OpenUniError(
                f"{self.checkpoint} makes {', '.join(names) or 'maps without names'} in {pipeline.n_targets} maps. "
                f"Allowed: a model with an albedo, such as {LIGHTING} or {APPEARANCE}."
            )
        return pipeline

    def run(self, model: Any, clip: DecodedClip) -> Intrinsics:
        """Albedo and irradiance, float32 [T, H, W, 3] each, linear."""
        maps, spread = self.predict(model, clip.frames)
        names = target_names(model)

        def linear(name: str) -> np.ndarray:
            values = np.clip(maps[:, names.index(name)], 0, 1)
            return srgb_to_linear(values) if _space(model, name) == "srgb" else values

        albedo = Albedo(linear("albedo"))
        change = warped_change(clip, albedo, mean_change)
        apart = None if spread is None else float(np.median(spread[:, names.index("albedo")]))
        if "shading" not in names:
            return Intrinsics(albedo, None, None, None, change, apart)
        shading = linear("shading")
        residual = linear("residual") if "residual" in names else np.zeros_like(shading)
        shading, residual, error, share = scaled_to(clip.frames, albedo.array, shading, residual)
        return Intrinsics(albedo, Irradiance(shading), error, share, change, apart)


def target_names(pipeline: Any) -> list[str]:
    """What the pipeline makes, in order."""
    return list((pipeline.target_properties or {}).get("target_names", []))


def _space(pipeline: Any, name: str) -> str:
    return str(pipeline.target_properties.get(name, {}).get("prediction_space", "srgb"))


def scaled_to(
    frames: np.ndarray, albedo: np.ndarray, shading: np.ndarray, residual: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float | None, float | None]:
    """Shading and residual times each frame's factor; the error that is left, and the residual's share of the light.

    `frames`: uint8 [T, H, W, 3] sRGB; the others float32 of that shape, linear. The factor minimises the squares of
    frame - factor (albedo shading + residual) over channels that are not saturated; where there is nothing to find it
    from, it is 1. Error and share are None where all is saturated or black.
    """
    light = srgb_to_linear(np.arange(256) / 255).astype(np.float32)[frames]
    shading, residual = shading.copy(), residual.copy()
    errors, rest, total = [], 0.0, 0.0
    for frame, wanted, colour, shade, left in zip(frames, light, albedo, shading, residual, strict=True):
        seen = frame < SATURATED
        made = (colour * shade + left)[seen].astype(np.float64)
        target = wanted[seen].astype(np.float64)
        factor = float(made @ target) / float(made @ made) if made.any() and target.any() else 1.0
        shade *= np.float32(factor)
        left *= np.float32(factor)
        errors.append(np.abs(factor * made - target))
        rest, total = rest + float(left[seen].sum(dtype=np.float64)), total + float(target.sum())
    joined = np.concatenate(errors)
    error = float(joined.mean()) if joined.size else None
    return shading, residual, error, rest / total if total > 0 else None
