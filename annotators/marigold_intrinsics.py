"""Albedo and irradiance by Marigold, a single-image diffusion model."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import guide_flow_in_background
from openuni.annotators._marigold import NEEDED_FILES, Marigold
from openuni.annotators._temporal_consistency import mean_change, warped_change
from openuni.manifests.arrays.srgb import srgb_to_linear
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.irradiance import Irradiance

LIGHTING, APPEARANCE = "prs-eth/marigold-iid-lighting-v1-1", "prs-eth/marigold-iid-appearance-v1-1"
SATURATED = 250  # 8-bit values from here on may be clipped


class Intrinsics(NamedTuple):
    """Albedo and (lighting model only) irradiance of every frame, and quality scores."""

    albedo: Albedo
    irradiance: Irradiance | None
    product_error: Annotated[
        float | None,
        "mean absolute difference between the image and albedo x irradiance + residual in linear light, 0 to 1, "
        "saturated pixels excluded; null without irradiance",
    ]
    residual_share: Annotated[
        float | None,
        "fraction of the image's light in the residual (specular highlights, light sources), which is not stored; null "
        "without irradiance",
    ]
    flow_change: Annotated[
        float | None,
        "change of the albedo along the optical flow, 0 to 1: mean over channels, median over pixels with valid flow, "
        "mean over adjacent frames; 0 is fully consistent; null without valid flow",
    ]
    spread: Annotated[
        float | None,
        "spread of the ensemble: median distance of the albedos from their median, 0 to 1; null for fewer than 3 "
        "predictions",
    ]


@dataclass(frozen=True)
class MarigoldIntrinsics(Marigold):
    """Intrinsic decomposition of every frame by Marigold, at the size of the frames, in linear light.

    Checkpoints: `prs-eth/marigold-iid-lighting-v1-1` predicts albedo and irradiance (linear RGB = albedo x irradiance +
    residual); `prs-eth/marigold-iid-appearance-v1-1` predicts the albedo of physically based materials (its roughness
    and metallicity are not stored) and no irradiance. The checkpoint states whether an output is linear or sRGB; sRGB
    outputs are converted to linear light.

    The network predicts shading and residual with an arbitrary scale per frame. Irradiance is shading times the factor
    that minimizes the squared error of albedo x shading + residual to the frame's linear light, over unsaturated
    pixels. Network input: sRGB, longer side resized to `processing_px`.

    Frames are processed independently. Shared initial noise removes the flicker caused by noise, but not by the image.
    Deterministic: noise is drawn on the CPU and does not depend on the batch size.
    """

    checkpoint: Annotated[str, "MarigoldIntrinsicsPipeline (safetensors): Hugging Face name or folder"] = LIGHTING

    origin: ClassVar[str] = "Ke et al. 2025 (arXiv:2505.09358); diffusers.MarigoldIntrinsicsPipeline"

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' models."""
        return tuple(Checkpoint(name, "hub", "OpenRAIL++-M", only=NEEDED_FILES) for name in (LIGHTING, APPEARANCE))

    @classmethod
    def pipeline_name(cls) -> str:
        """See `Marigold.pipeline_name`."""
        return "MarigoldIntrinsicsPipeline"

    def load(self, device: str) -> Any:
        """Load the pipeline on `device`. Raises `OpenUniError` if it does not declare an albedo target."""
        pipeline = super().load(device)
        names = target_names(pipeline)
        known = {name: _space(pipeline, name) for name in ("albedo", "shading", "residual") if name in names}
        for name, space in known.items():
            if space not in ("linear", "srgb"):
                raise OpenUniError(
                    f'{self.checkpoint}: prediction_space of {name} is "{space}". Allowed: linear, srgb.'
                )
        if "albedo" not in names or len(names) != pipeline.n_targets:
            raise OpenUniError(
                f"{self.checkpoint} predicts {pipeline.n_targets} maps with names: {', '.join(names) or 'none'}. "
                f"Allowed: a model with an albedo, such as {LIGHTING} or {APPEARANCE}."
            )
        return pipeline

    def run(self, model: Any, clip: DecodedClip) -> Intrinsics:
        """Predict albedo and irradiance, float32 [T, H, W, 3] each, linear."""
        with guide_flow_in_background(clip):  # for the scores
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
    """Names of the pipeline's targets, in order."""
    return list((pipeline.target_properties or {}).get("target_names", []))


def _space(pipeline: Any, name: str) -> str:
    return str(pipeline.target_properties.get(name, {}).get("prediction_space", "srgb"))


def scaled_to(
    frames: np.ndarray, albedo: np.ndarray, shading: np.ndarray, residual: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float | None, float | None]:
    """Shading and residual, scaled per frame; the remaining error; and the residual's fraction of the light.

    `frames`: uint8 [T, H, W, 3] sRGB; the others float32 of that shape, linear. The factor minimizes the squared error
    of frame - factor (albedo shading + residual) over unsaturated channels; it is 1 if it is undetermined. Error and
    fraction are None if all values are saturated or black.
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
