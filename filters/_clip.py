"""CLIP embeddings for filters: one network per worker, and each sampled frame is embedded once for all filters."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import xxhash
from annotated_types import Ge, Gt

from openuni.filters._samples import at_most
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Filter, sample_evenly
from openuni.manifests.errors import OpenUniError

OPENAI_L14 = "timm/vit_large_patch14_clip_224.openai"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OTHER_LIBRARIES = ("hf_model_name", "hf_tokenizer_name", "timm_model_name")  # towers that need further files
MAX_CONFIG_BYTES = 1024**2
CACHED_FRAMES = 512  # embeddings, 3 KB each

PUBLISHED = (
    Checkpoint(OPENAI_L14, "hub", "Apache-2.0", size_mb=1710.0, only=(CONFIG, WEIGHTS)),  # trained by OpenAI, not LAION
)


class Embedder:
    """A CLIP network with its image transform and tokenizer. Embeddings are float32, L2-normalized.

    Embeddings of recent frames are cached by content, so filters that sample the same frames of a clip share one
    forward pass.
    """

    def __init__(self, folder: Path, device: str, quick_gelu: bool) -> None:
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2
        from safetensors import SafetensorError

        _check_format(folder)
        try:
            network = open_clip.create_model(
                f"local-dir:{folder}", precision="fp32", force_quick_gelu=quick_gelu, require_pretrained=True
            )
            self.tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
        except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise OpenUniError(
                f"{folder} is not a CLIP model in open_clip format: {error}. Use a model such as {OPENAI_L14}"
            ) from error
        self.network = network.eval().requires_grad_(False).to(device)
        self.transform = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
        self.quick_gelu = _is_quick_gelu(network)
        self.width = int(network.visual.output_dim)  # embedding dimension
        self.device = device
        self.frame_cache: OrderedDict[tuple[str, Precision], np.ndarray] = OrderedDict()

    def pixels(self, frame: np.ndarray) -> Any:
        """uint8 [H, W, 3] -> float32 tensor [3, side, side]: PIL bicubic resize, centre crop, CLIP normalization."""
        from PIL import Image

        return self.transform(Image.fromarray(frame))

    def frames(self, frames: np.ndarray, precision: Precision, batch: int) -> np.ndarray:
        """uint8 [T, H, W, 3] RGB -> float32 [T, D], L2-normalized; cached frames are not embedded again."""
        keys = [(f"{frame.shape}{xxhash.xxh3_128_hexdigest(frame.tobytes())}", precision) for frame in frames]
        places = {key: place for place, key in enumerate(keys) if key not in self.frame_cache}
        known = {key: self.frame_cache[key] for key in keys if key in self.frame_cache}
        new = list(places)
        for start in range(0, len(new), batch):
            part = new[start : start + batch]
            known |= zip(part, self._embed(frames[[places[key] for key in part]], precision), strict=True)
        for key in keys:
            self.frame_cache[key] = known[key]
            self.frame_cache.move_to_end(key)
        while len(self.frame_cache) > CACHED_FRAMES:
            self.frame_cache.popitem(last=False)
        return np.stack([known[key] for key in keys])

    def text(self, text: str, precision: Precision) -> np.ndarray:
        """Text embedding float32 [D], L2-normalized; text beyond the network's context length is truncated."""
        with inference(self.device, precision):
            return _unit(self.network.encode_text(self.tokenizer([text]).to(self.device)))[0]

    def fits(self, text: str) -> bool:
        """Whether the text with start and end tokens fits into the network's context length."""
        return len(self.tokenizer.encode(text)) + 2 <= int(self.network.context_length)

    def _embed(self, frames: np.ndarray, precision: Precision) -> np.ndarray:
        import torch

        pixels = torch.stack([self.pixels(frame) for frame in frames]).to(self.device)
        with inference(self.device, precision):
            return _unit(self.network.encode_image(pixels))


_alive: "WeakValueDictionary[tuple[str, int, str, bool], Embedder]" = WeakValueDictionary()


def shared_embedder(checkpoint: Checkpoint, device: str) -> Embedder:
    """The network of a checkpoint on a device, shared within the process while any filter holds a reference."""
    folder, openai = checkpoint.resolve(), checkpoint in PUBLISHED
    weights = folder / WEIGHTS
    changed_ns = weights.stat().st_mtime_ns if weights.exists() else 0
    key = (str(folder), changed_ns, device, openai)
    found = _alive.get(key)
    if found is None:
        # OpenAI trained with QuickGELU, which the configuration next to the weights may not state
        found = _alive[key] = Embedder(folder, device, quick_gelu=openai)
    return found


@dataclass(frozen=True)
class ClipFilter(Filter):
    """Base of the filters over CLIP embeddings: checkpoint, sampling, batching."""

    checkpoint: Annotated[str, "CLIP model in open_clip format (safetensors): Hugging Face name or folder"] = OPENAI_L14
    frames_per_s: Annotated[float, "sampled frames per second of the clip", Gt(0)] = 1.0
    max_frames: Annotated[int, "maximum number of sampled frames per clip, evenly spaced", Ge(1)] = 32
    frames_per_batch: Annotated[int, "frames per forward pass", Ge(1)] = 16
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.25

    @classmethod
    def published(cls) -> Sequence[Checkpoint]:
        """OpenAI's ViT-L/14 at 224 px, which LAION's aesthetic predictor was trained on."""
        return PUBLISHED

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The CLIP model."""
        return (published_or_path(self.checkpoint, PUBLISHED),)

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Frames nearest to an even grid in time; equal for all filters with equal options."""
        return at_most(sample_evenly(times_s, self.frames_per_s), self.max_frames)

    def load(self, device: str) -> Any:
        """The network, shared with other filters in this process."""
        return shared_embedder(ClipFilter.checkpoints(self)[0], device)

    def embed(self, embedder: Embedder, frames: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] -> float32 [T, D], L2-normalized."""
        return embedder.frames(frames, self.precision, self.frames_per_batch)


def _unit(embeddings: Any) -> np.ndarray:
    """Tensor [N, D] of any float type -> float32 [N, D], L2-normalized."""
    import torch

    unit: np.ndarray = torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()
    return unit


def _check_format(folder: Path) -> None:
    """Raise `OpenUniError` unless the folder has safetensors and a configuration without towers of other libraries.

    open_clip would also unpickle .bin and .pth files, and download such towers.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise OpenUniError(
                f"{name} not found in {folder}. Use a CLIP model in open_clip format with safetensors, such as "
                f"{OPENAI_L14}"
            )
    try:
        if (folder / CONFIG).stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("larger than 1 MiB")
        network = json.loads((folder / CONFIG).read_text())["model_cfg"]
        towers = [network.get("vision_cfg", {}), network.get("text_cfg", {})]
        foreign = sorted(key for tower in towers for key in OTHER_LIBRARIES if key in tower)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise OpenUniError(
            f"{folder / CONFIG} is not an open_clip configuration: {error!r}. Use a model such as {OPENAI_L14}"
        ) from error
    if foreign:
        raise OpenUniError(
            f"{folder / CONFIG} requires models of other libraries ({', '.join(foreign)}), which are not supported. "
            f"Use a model with open_clip's own towers, such as {OPENAI_L14}"
        )


def _is_quick_gelu(network: Any) -> bool:
    from open_clip.transformer import QuickGELU

    return any(isinstance(module, QuickGELU) for module in network.visual.modules())
