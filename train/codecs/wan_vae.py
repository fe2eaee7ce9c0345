"""Latent codec: the Wan video VAE from diffusers, any AutoencoderKLWan (Wan 2.1: 4 x 8 x 8; Wan 2.2: 4 x 16 x 16)."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.inference import float32_arithmetic
from openuni.manifests.contracts.options import Added, Execution
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.training.codec import LatentCodec
from openuni.training.codecs.dct import check_video

FULL_SIZE_PX = (480, 832)  # Wan's size; on a GPU, encoding 17 frames took 11 GB in float32 and 6 GB in bfloat16


@dataclass(frozen=True)
class WanVae(LatentCodec):
    """Posterior mean, normalized per channel by the checkpoint's `latents_mean` and `latents_std`.

    Convolutions of float32 are TF32 on GPUs, as PyTorch's default is (`tf32`); matrix products are 32-bit. Latents are
    stored in float16, whose rounding is about as large: see the how-to page on precision.

    Tiled latents differ from untiled ones near the seams, so `tiling` is an option and part of the version. The loaded
    model holds a feature cache during a call and is not reentrant: process one video at a time per model.
    """

    gpus: ClassVar[float] = 1.0
    origin: ClassVar[str] = (
        "Wan: Open and Advanced Large-Scale Video Generative Models (2025), diffusers AutoencoderKLWan"
    )

    checkpoint: Annotated[str, "hub name or folder of the VAE, or of a pipeline that contains `vae/`"] = (
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    )
    dtype: Annotated[Literal["float32", "bfloat16"], "dtype of weights and arithmetic"] = "float32"
    tiling: Annotated[bool, "tiled encoding and decoding, with blended tiles of 256 px at a stride of 192 px"] = False
    tf32: Annotated[bool, "float32 on GPUs: convolutions in TF32; false: 32-bit arithmetic, slower", Added()] = True
    batch_videos: Annotated[
        int,
        "videos of equal size encoded together; 0: 1 on CPUs, on GPUs as many as have 480 x 832 pixels together",
        Ge(0),
        Execution(),
    ] = 0

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Only the VAE's folder: other weights of a pipeline do not affect the version."""
        whole = published_or_path(self.checkpoint, self.published())
        try:
            folder = whole.resolve()
        except OpenUniError:
            return (whole,)
        return (Checkpoint(str(folder / "vae"), "path", whole.licence),) if (folder / "vae").is_dir() else (whole,)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The VAE of Wan 2.1, from the pipeline's repository."""
        return (Checkpoint("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "hub", "Apache-2.0", only=("vae/*",)),)

    def load(self, device: str) -> Any:
        """diffusers' AutoencoderKLWan on `device`, frozen."""
        import torch
        from diffusers import AutoencoderKLWan

        folder = self._folder()
        vae = AutoencoderKLWan.from_pretrained(str(folder), torch_dtype=getattr(torch, self.dtype))
        if self.tiling:
            vae.enable_tiling()
        return vae.to(device).eval().requires_grad_(False)

    def videos_per_batch(self, model: Any, height_px: int, width_px: int) -> int:
        """See `LatentCodec.videos_per_batch`. Batches on a CPU save no time, and oneDNN rounds them differently."""
        if self.batch_videos or model.device.type == "cpu":
            return self.batch_videos or 1
        return max(1, FULL_SIZE_PX[0] * FULL_SIZE_PX[1] // (height_px * width_px))

    def encode(self, model: Any, rgb: np.ndarray) -> np.ndarray:
        """float32 [T, H, W, 3] in 0..1, T = 4k + 1 -> float32 [C, (T - 1) / 4 + 1, H / s, W / s], s = 8 or 16."""
        return self.encode_batch(model, [rgb])[0]

    def encode_batch(self, model: Any, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `LatentCodec.encode_batch`."""
        import torch

        for rgb in videos:
            check_video(rgb, _stride(model.config))
        batch = torch.stack([torch.from_numpy(np.ascontiguousarray(rgb.transpose(3, 0, 1, 2))) for rgb in videos])
        with torch.no_grad(), self._arithmetic():
            posterior = model.encode((batch * 2.0 - 1.0).to(model.device, model.dtype)).latent_dist
        mean, std = _statistics(model.config)
        return [((one - mean) / std).astype(np.float32) for one in posterior.mode().float().cpu().numpy()]

    def decode(self, model: Any, latents: np.ndarray) -> np.ndarray:
        """float32 [C, T', H', W'] -> float32 [4 T' - 3, s H', s W', 3], clipped to 0..1."""
        import torch

        mean, std = _statistics(model.config)
        if latents.ndim != 4 or latents.shape[0] != len(mean):
            raise ClipError(f"wan_vae: latents must be [{len(mean)}, T, H, W], got {latents.shape}")
        raw = torch.from_numpy((latents * std + mean).astype(np.float32))[None]
        with torch.no_grad(), self._arithmetic():
            video = model.decode(raw.to(model.device, model.dtype)).sample[0]
        return ((video.float().cpu().numpy().transpose(1, 2, 3, 0) + 1.0) / 2.0).clip(0.0, 1.0)

    def _arithmetic(self) -> AbstractContextManager[None]:
        return float32_arithmetic("tf32" if self.tf32 else "ieee", "ieee")

    def _folder(self) -> Path:
        folder = self.checkpoints()[0].resolve()
        config = folder / "config.json"
        found = json.loads(config.read_text()).get("_class_name") if config.is_file() else None
        if found != "AutoencoderKLWan":
            raise OpenUniError(f'"{self.checkpoint}": expected an AutoencoderKLWan, got {found!r} (config.json)')
        return folder


def _stride(config: Any) -> tuple[int, int, int]:
    return (config["scale_factor_temporal"] or 4, config["scale_factor_spatial"], config["scale_factor_spatial"])


def _statistics(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """float32 [C, 1, 1, 1] each: mean and standard deviation of the raw latents, from the checkpoint."""
    mean, std = (np.array(config[key], dtype=np.float32) for key in ("latents_mean", "latents_std"))
    return mean[:, None, None, None], std[:, None, None, None]
