"""Marigold pipelines (diffusers) over the frames of a clip, for `marigold_normals` and `marigold_intrinsics`."""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, MultipleOf

from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.options import Formerly
from openuni.manifests.errors import ClipError, OpenUniError

MIN_ENSEMBLE_FOR_SPREAD = 3  # minimum ensemble size for an uncertainty estimate
PARTS = {  # allowed components of a pipeline
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
NEEDED_FILES = (
    "model_index.json",
    "scheduler/*",
    "tokenizer/*",
    "*/config.json",
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


class Predicted(NamedTuple):
    """Output of a pipeline. `maps`: float32 [T, targets, H, W, 3]. `spread`: with 1 or 3 channels, or None."""

    maps: np.ndarray
    spread: np.ndarray | None


@dataclass(frozen=True)
class Marigold(Annotator):
    """Base of the Marigold annotators: checkpoint, denoising, noise."""

    checkpoint: Annotated[str, "pipeline in diffusers format (safetensors): Hugging Face name or folder"] = ""
    steps: Annotated[int, "number of denoising steps", Ge(1)] = 4
    processing_px: Annotated[
        int, "longer side of the network input, pixels; 0: size of the frames", Ge(0), MultipleOf(8)
    ] = 768
    ensemble_size: Annotated[
        int,
        "number of predictions from different noise that are combined; 3 or more also give the spread",
        Ge(1),
        Formerly("ensemble"),
    ] = 1
    shared_noise: Annotated[bool, "use the same initial noise for all frames (reduces flicker)"] = True
    seed: Annotated[int, "random seed of the noise", Ge(0)] = 0
    frames_per_batch: Annotated[int, "frames per forward pass", Ge(1)] = 1
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.5
    licence: ClassVar[str] = "Apache-2.0 AND OpenRAIL++-M"  # code AND weights; the latter with use restrictions

    @classmethod
    @abstractmethod
    def pipeline_name(cls) -> str:
        """Name of the diffusers pipeline class."""

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The pipeline's folder."""
        return (published_or_path(self.checkpoint, tuple(self.published())),)

    def load(self, device: str) -> Any:
        """Load the pipeline on `device`. Raises `OpenUniError` for another pipeline class or unexpected components."""
        import diffusers
        import torch

        folder = self.checkpoints()[0].resolve()
        check_pipeline_class(folder, self.pipeline_name())
        try:
            pipeline = getattr(diffusers, self.pipeline_name()).from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # True requires the package accelerate
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise OpenUniError(f"{folder} cannot be loaded as {self.pipeline_name()}: {error}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device, torch.float32)

    def window_step(self) -> int:
        """Windows hold whole batches."""
        return self.frames_per_batch

    def predict(self, pipeline: Any, frames: np.ndarray, first: int = 0) -> Predicted:
        """Predict maps for frames uint8 [T, H, W, 3] RGB, at their size. Independent of the batch size.

        `first`: number of the first frame in the clip.
        """
        step = self.frames_per_batch
        parts = [
            self._batch(pipeline, frames[i : i + step], range(first + i, first + min(i + step, len(frames))))
            for i in range(0, len(frames), step)
        ]
        maps, spreads = zip(*parts, strict=True)
        return Predicted(np.concatenate(maps), np.concatenate(spreads) if self.has_spread else None)

    @property
    def has_spread(self) -> bool:
        """Whether the ensemble is large enough to estimate its spread."""
        return self.ensemble_size >= MIN_ENSEMBLE_FOR_SPREAD

    def _batch(self, pipeline: Any, frames: np.ndarray, numbers: range) -> tuple[np.ndarray, np.ndarray | None]:
        """Maps float32 [B, targets, H, W, 3] and spread [B, targets, H, W, C] of frames with these numbers."""
        import torch

        device = pipeline.unet.device
        images = torch.from_numpy(frames.transpose(0, 3, 1, 2) / np.float32(255))
        noise = torch.cat([self._noise(pipeline, frames.shape[1:3], number) for number in numbers])
        with inference(device.type, self.precision):
            made = pipeline(
                images.to(device),
                num_inference_steps=self.steps,
                ensemble_size=self.ensemble_size,
                processing_resolution=self.processing_px,
                batch_size=len(numbers),
                latents=noise.to(device),
                output_uncertainty=self.has_spread,
            )

        def per_frame(values: Any) -> np.ndarray:
            found: np.ndarray = np.asarray(values, np.float32)
            return found.reshape(len(numbers), -1, *found.shape[1:])

        return per_frame(made.prediction), per_frame(made.uncertainty) if self.has_spread else None

    def _noise(self, pipeline: Any, size_px: tuple[int, int], number: int) -> Any:
        """Initial noise of a frame: float32 [ensemble_size, C, h, w], drawn on the CPU, so equal on all devices."""
        import torch

        height_px, width_px = size_px
        if self.processing_px:
            longer = max(size_px)
            height_px, width_px = (side * self.processing_px // longer for side in size_px)
            if min(height_px, width_px) < 1:
                raise ClipError(
                    f"{self.name()}: frames of {size_px[1]} x {size_px[0]} px are too narrow: at processing_px = "
                    f"{self.processing_px} the shorter side would be below 1 px. Use a larger processing_px, or 0."
                )
        scale = pipeline.vae_scale_factor
        shape = self.ensemble_size, pipeline.unet.config.out_channels, -(-height_px // scale), -(-width_px // scale)
        seed = self.seed if self.shared_noise else self.seed + number
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check_pipeline_class(folder: Path, name: str) -> None:
    """Raise `OpenUniError` unless model_index.json names this pipeline class and only allowed components."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        found = index["_class_name"]
        parts = {key: value for key, value in index.items() if isinstance(value, list)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OpenUniError(
            f"{folder} is not a pipeline in diffusers format: {type(error).__name__}: {error}. Use a {name}."
        ) from error
    if found != name:
        raise OpenUniError(f'{folder}: pipeline class is "{found}". Allowed: {name}.')
    for part, kind in parts.items():
        if kind != PARTS.get(part):
            raise OpenUniError(
                f"{folder}: component {part} is {kind}. Allowed: {PARTS.get(part, 'no such component')}. Other "
                "schedulers may draw noise during denoising, so results would not be reproducible; other components "
                "may execute code."
            )
