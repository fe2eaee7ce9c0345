"""Optical flow by RAFT (torchvision), bit-identical to the authors' network."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from openuni.annotators._pairwise_flow import FlowOfClip, FlowWindows, PairFlow
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.weights import read_weights
from openuni.manifests.contracts.windows import run_at_once
from openuni.manifests.errors import OpenUniError, unknown_name

STRIDE_PX = 8  # of the feature maps
MIN_SIDE_PX = 128  # below this, the top of the correlation pyramid has fewer than two cells and gives NaN

# names in the authors' checkpoints -> names in torchvision, applied in order
RENAMES = (
    (r"^module\.", ""),  # from DataParallel
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.gru\.conv([zrq])\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)
# torchvision's weights, so that listing checkpoints need not import it: name -> end of the file's name
FILES = {
    "large": {
        "C_T_V1": "22a6c225",
        "C_T_V2": "1bb1363a",
        "C_T_SKHT_V1": "0b8c9e55",
        "C_T_SKHT_V2": "ff5fadd5",
        "C_T_SKHT_K_V1": "4a6a5039",
        "C_T_SKHT_K_V2": "b5c70766",
    },
    "small": {"C_T_V1": "ad48884c", "C_T_V2": "01064c6d"},
}
DEFAULTS = {"large": "C_T_SKHT_V2", "small": "C_T_V2"}
SIZES_MB = {"large": 21.1, "small": 4.0}
SHORTCUT_NORM = re.compile(r"layer\d\.\d\.norm[34]\.")  # a second name of the norm in `downsample`


@dataclass(frozen=True)
class Raft(Annotator):
    """Forward optical flow between adjacent frames, with a forward-backward check. The last frame repeats the flow.

    Frames are processed at their size, padded by border replication on both sides to a multiple of 8 and at least
    128 px; the flow is cropped accordingly. Memory per frame pair grows with the square of the area: about 0.8 GB at
    1280 x 720, 4.2 GB at 1920 x 1080.
    """

    size: Annotated[
        Literal["large", "small"], "model size; large: 5.3 M parameters; small: 1.0 M, faster, less accurate"
    ] = "large"
    checkpoint: Annotated[
        str, "torchvision weights name (C_T_SKHT_V2, ...), DEFAULT, or path of a .pth or .safetensors file"
    ] = "DEFAULT"
    iterations: Annotated[
        int, "number of flow updates; torchvision's evaluation uses 12, the authors' demo 20", Ge(1)
    ] = 12
    frames_per_batch: Annotated[int, "frame pairs per forward pass", Ge(1)] = 4
    precision: Annotated[
        Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast (correlation in fp32)"
    ] = "fp32"
    check: Annotated[
        bool, "run the forward-backward check, which marks unreliable pixels as invalid (doubles the time)"
    ] = True

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = "BSD-3-Clause"
    origin: ClassVar[str] = "Teed and Deng 2020 (arXiv:2003.12039); torchvision.models.optical_flow"

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The weights file: a path, or the file behind torchvision's weights name."""
        if Path(self.checkpoint).suffix in (".pth", ".pt", ".safetensors") or "/" in self.checkpoint:
            return (Checkpoint(self.checkpoint, "path", self.licence),)
        name = DEFAULTS[self.size] if self.checkpoint == "DEFAULT" else self.checkpoint
        known = FILES[self.size]
        if name not in known:
            what = f"weights of RAFT {self.size}"
            raise OpenUniError(f"{unknown_name(what, name, [*known, 'DEFAULT'])} Or pass the path of a file.")
        return (_published(self.size, name),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """Torchvision's weights for both sizes."""
        return tuple(_published(size, name) for size, names in FILES.items() for name in names)

    def load(self, device: str) -> Any:
        """Load the network on `device`. Raises `OpenUniError` if the weights do not match `size`."""
        from torchvision.models import optical_flow

        path = self.checkpoints()[0].resolve()
        weights = torchvision_names(read_weights(path))
        build = {"large": optical_flow.raft_large, "small": optical_flow.raft_small}[self.size]
        network = build(weights=None, corr_block=_correlation_in_fp32(radius=4 if self.size == "large" else 3))
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            text = str(error).splitlines()[:4]
            raise OpenUniError(
                f"{path} does not contain weights of RAFT {self.size}. Try the other size, or use weights of "
                f"torchvision or of the authors. PyTorch error: {' '.join(text)}"
            ) from error
        return network.eval().to(device)

    def run(self, model: Any, clip: DecodedClip) -> FlowOfClip:
        """Flow in pixels, at the size of the frames."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> FlowWindows:
        """See `Operator.start_windows`."""
        return FlowWindows(lambda frames: self._pair_flow(model, frames), self.check, self.frames_per_batch)

    def _pair_flow(self, model: Any, frames: np.ndarray) -> PairFlow:
        """A function that computes the flow between any two of the frames, batch by batch."""

        def pair_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            batches = [
                slice(start, start + self.frames_per_batch) for start in range(0, len(first), self.frames_per_batch)
            ]
            flows = [self._batch(model, frames[first[part]], frames[second[part]]) for part in batches]
            return np.concatenate(flows)

        return pair_flow

    def _batch(self, model: Any, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Flow float32 [B, H, W, 2] in pixels between two batches uint8 [B, H, W, 3]."""
        import torch

        device = next(model.parameters()).device
        height_px, width_px = before.shape[1:3]
        left, right = split_padding(width_px)
        top, bottom = split_padding(height_px)

        def as_input(frames: np.ndarray) -> torch.Tensor:
            images = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().contiguous()
            images = images.div(255).sub(0.5).div(0.5)  # -1..1, rounded in the same order as torchvision's transform
            return torch.nn.functional.pad(images, (left, right, top, bottom), mode="replicate")

        with inference(device.type, self.precision):
            flow = model(as_input(before), as_input(after), num_flow_updates=self.iterations)[-1].float()
        flow = flow[:, :, top : top + height_px, left : left + width_px]
        result: np.ndarray = flow.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return result


def split_padding(side_px: int) -> tuple[int, int]:
    """Padding before and after a side, to a multiple of 8 and at least 128 px; an odd pixel is added after."""
    padded_px = max(MIN_SIDE_PX, -(-side_px // STRIDE_PX) * STRIDE_PX)
    before = (padded_px - side_px) // 2
    return before, padded_px - side_px - before


def torchvision_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the weights of the authors' checkpoints to torchvision's names; others are returned unchanged."""
    if not any(re.match(r"(module\.)?[fc]net\.", name) for name in weights):
        return dict(weights)
    renamed = {}
    for name, value in weights.items():
        if SHORTCUT_NORM.search(name):
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _published(size: str, name: str) -> Checkpoint:
    file = f"raft_{size}_{name}-{FILES[size][name]}.pth"
    url = f"https://download.pytorch.org/models/{file}"
    return Checkpoint(file, "torchvision", Raft.licence, url, size_mb=SIZES_MB[size])


def _correlation_in_fp32(radius: int) -> Any:
    """Torchvision's correlation block, kept in float32 under autocast: 16-bit precision is not sufficient."""
    import torch
    from torchvision.models.optical_flow.raft import CorrBlock

    class Float32CorrBlock(CorrBlock):
        def build_pyramid(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
            with torch.autocast(fmap1.device.type, enabled=False):
                super().build_pyramid(fmap1.float(), fmap2.float())

    return Float32CorrBlock(num_levels=4, radius=radius)
