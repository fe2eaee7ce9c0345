"""CLIP for the filters: one network per worker, each sampled frame embedded once, whichever filters ask for it."""

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
OTHER_LIBRARIES = ("hf_model_name", "hf_tokenizer_name", "timm_model_name")  # such towers come with files of their own
MAX_CONFIG_BYTES = 1024**2
CACHED_FRAMES = 512  # embeddings, 3 KB each

PUBLISHED = (
    Checkpoint(OPENAI_L14, "hub", "Apache-2.0", size_mb=1710.0, only=(CONFIG, WEIGHTS)),  # OpenAI's own, not LAION's
)


class Embedder:
    """A CLIP network with its image transform and its tokenizer. Embeddings are float32 of length 1.

    It remembers the last frames it has seen by their content, so that filters that look at the same frames of a clip,
    one after the other, share one pass through the network.
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
            raise OpenUniError(f"{folder} is not a CLIP model in open_clip's format: {error}") from error
        self.network = network.eval().requires_grad_(False).to(device)
        self.transform = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
        self.quick_gelu = _is_quick_gelu(network)
        self.width = int(network.visual.output_dim)  # numbers per embedding
        self.device = device
        self.frame_cache: OrderedDict[tuple[str, Precision], np.ndarray] = OrderedDict()

    def pixels(self, frame: np.ndarray) -> Any:
        """uint8 [H, W, 3] -> float32 tensor [3, side, side]: bicubic by PIL, centre crop, CLIP's normalisation."""
        from PIL import Image

        return self.transform(Image.fromarray(frame))

    def frames(self, frames: np.ndarray, precision: Precision, batch: int) -> np.ndarray:
        """uint8 [T, H, W, 3] RGB -> float32 [T, D] of length 1; frames that are remembered are not embedded again."""
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
        """float32 [D] of length 1; what exceeds the network's context is cut off."""
        with inference(self.device, precision):
            return _unit(self.network.encode_text(self.tokenizer([text]).to(self.device)))[0]

    def fits(self, text: str) -> bool:
        """Whether the text fits into the network's context with its start and end marks."""
        return len(self.tokenizer.encode(text)) + 2 <= int(self.network.context_length)

    def _embed(self, frames: np.ndarray, precision: Precision) -> np.ndarray:
        import torch

        pixels = torch.stack([self.pixels(frame) for frame in frames]).to(self.device)
        with inference(self.device, precision):
            return _unit(self.network.encode_image(pixels))


_alive: "WeakValueDictionary[tuple[str, int, str, bool], Embedder]" = WeakValueDictionary()


def shared_embedder(checkpoint: Checkpoint, device: str) -> Embedder:
    """The network of that checkpoint on that device: one per process for as long as any filter holds it."""
    folder, openai = checkpoint.resolve(), checkpoint in PUBLISHED
    weights = folder / WEIGHTS
    changed_ns = weights.stat().st_mtime_ns if weights.exists() else 0
    key = (str(folder), changed_ns, device, openai)
    found = _alive.get(key)
    if found is None:
        # OpenAI trained with QuickGELU; whoever wrote the configuration beside the weights may not have said so
        found = _alive[key] = Embedder(folder, device, quick_gelu=openai)
    return found


@dataclass(frozen=True)
class ClipFilter(Filter):
    """What the filters over CLIP embeddings share: checkpoint, samples, batches."""

    checkpoint: Annotated[str, "Hugging Face name or folder of a CLIP model in open_clip's format (safetensors)"] = (
        OPENAI_L14
    )
    frames_per_s: Annotated[float, "frames looked at per second of the clip", Gt(0)] = 1.0
    max_frames: Annotated[int, "most frames looked at per clip, spread over its whole length", Ge(1)] = 32
    frames_per_batch: Annotated[int, "frames in one forward pass", Ge(1)] = 16
    precision: Annotated[Precision, "fp32, or bf16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.25

    @classmethod
    def published(cls) -> Sequence[Checkpoint]:
        """OpenAI's ViT-L/14 with 224 px, from which the published thresholds are."""
        return PUBLISHED

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The CLIP model."""
        return (published_or_path(self.checkpoint, PUBLISHED),)

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Frames nearest to an even grid in time: the same for all filters with the same options."""
        return at_most(sample_evenly(times_s, self.frames_per_s), self.max_frames)

    def load(self, device: str) -> Any:
        """The network, shared with the other filters of this process that use it."""
        return shared_embedder(ClipFilter.checkpoints(self)[0], device)

    def embed(self, embedder: Embedder, frames: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] -> float32 [T, D] of length 1."""
        return embedder.frames(frames, self.precision, self.frames_per_batch)


def _unit(embeddings: Any) -> np.ndarray:
    """Tensor [N, D] of any float type -> float32 [N, D] of length 1."""
    import torch

    unit: np.ndarray = torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()
    return unit


def _check_format(folder: Path) -> None:
    """Raise `OpenUniError` unless the folder has safetensors and a configuration that asks for nothing from elsewhere.

    open_clip would also unpickle .bin and .pth, and fetch the towers of other libraries.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise OpenUniError(
                f"{folder} has no {name}. Give a CLIP model in open_clip's format with safetensors, such as "
                f"{OPENAI_L14}"
            )
    try:
        if (folder / CONFIG).stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 1 MiB")
        network = json.loads((folder / CONFIG).read_text())["model_cfg"]
        towers = [network.get("vision_cfg", {}), network.get("text_cfg", {})]
        foreign = sorted(key for tower in towers for key in OTHER_LIBRARIES if key in tower)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise OpenUniError(f"{folder / CONFIG} cannot be read as open_clip's configuration: {error!r}") from error
    if foreign:
        raise OpenUniError(
            f"{folder / CONFIG} asks for parts of other libraries ({', '.join(foreign)}), which are not loaded here. "
            f"Give a model with open_clip's own towers, such as {OPENAI_L14}"
        )


def _is_quick_gelu(network: Any) -> bool:
    from open_clip.transformer import QuickGELU

    return any(isinstance(module, QuickGELU) for module in network.visual.modules())
