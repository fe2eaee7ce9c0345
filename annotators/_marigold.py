"""Marigold pipelines (diffusers) over the frames of a clip, for `marigold_normals` and `marigold_intrinsics`.

A frame at 768 px and four steps is 3,900 operators, 328 of them convolutions. In float32 a GPU launched 72,000 kernels
for it, many of them of Fourier transforms, so most must come from within cuDNN's convolutions: hence `on_device`.
The larger the batch, the fewer launches per frame. Not measured on a GPU since.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, MultipleOf

from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.device_batches import each_batch, on_device
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
                torch_dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # True requires the package accelerate
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise OpenUniError(f"{folder} cannot be loaded as {self.pipeline_name()}: {error}") from error
        pipeline.set_progress_bar_config(disable=True)
        # frames are within the range; to check it, the host would wait for the device
        pipeline.image_processor.register_to_config(do_range_check=False)
        pipeline.to(device, torch.float32)
        for network in (pipeline.unet, pipeline.vae):
            on_device(network, device)
        return pipeline

    def window_step(self) -> int:
        """Windows hold whole batches."""
        return self.frames_per_batch

    def predict(self, pipeline: Any, frames: np.ndarray, first: int = 0) -> Predicted:
        """Predict maps for frames uint8 [T, H, W, 3] RGB, at their size. Independent of the batch size.

        `first`: number of the first frame in the clip.
        """
        import torch

        device, step, count = pipeline.unet.device, self.frames_per_batch, len(frames)
        size_px, parts = frames.shape[1:3], [range(i, min(i + step, count)) for i in range(0, count, step)]

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for part in parts:
                noise = torch.cat([self._noise(pipeline, size_px, first + number) for number in part])
                yield frames[part.start : part.stop], noise.numpy()

        def compute(given: Any, noise: Any) -> Any:
            with inference(device.type, self.precision):
                return self._batch(pipeline, given, noise)

        results: list[np.ndarray] = []  # maps, and the spread if it is estimated
        for part, found in zip(parts, each_batch(device, batches(), compute), strict=True):
            results = results or [np.empty((count, *array.shape[1:]), np.float32) for array in found]
            for result, array in zip(results, found, strict=True):
                result[part.start : part.stop] = array
        return Predicted(results[0], results[1] if self.has_spread else None)

    @property
    def has_spread(self) -> bool:
        """Whether the ensemble is large enough to estimate its spread."""
        return self.ensemble_size >= MIN_ENSEMBLE_FOR_SPREAD

    def _batch(self, pipeline: Any, frames: Any, noise: Any) -> tuple[Any, ...]:
        """Maps float32 [B, targets, H, W, 3] and, if it is estimated, spread [B, targets, H, W, C], on the device.

        `frames`: uint8 [B, H, W, 3]; `noise`: float32 [B x ensemble_size, C, h, w]; both on the device.
        """
        import torch

        # divided by a tensor: by a number, a GPU would multiply with the reciprocal, which rounds otherwise
        images = frames.permute(0, 3, 1, 2).float() / torch.full((), 255.0, device=frames.device)
        made = pipeline(
            images,
            num_inference_steps=self.steps,
            ensemble_size=self.ensemble_size,
            processing_resolution=self.processing_px,
            batch_size=len(frames),
            latents=noise,
            output_uncertainty=self.has_spread,
            output_type="pt",
        )

        def per_frame(values: Any) -> Any:
            values = values.float().permute(0, 2, 3, 1)
            return values.reshape(len(frames), -1, *values.shape[1:])

        return (per_frame(made.prediction), *([per_frame(made.uncertainty)] if self.has_spread else []))

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
