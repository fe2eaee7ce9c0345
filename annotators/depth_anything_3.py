"""Depth by Depth Anything 3, consistent over the frames of a clip; it needs an environment of its own.

The authors' package `depth-anything-3` is not compatible with the packages of OpenUni (NumPy below 2, among others):

    [annotators.depth_anything_3]
    requirements = "depth_anything_3.txt"      # depth-anything-3==0.1.1 and addict==2.4.0, which it forgets
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Interval, MultipleOf

from openuni.annotators._temporal_consistency import depth_change_share
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from openuni.manifests.modalities.depth import Depth

PATCH_PX = 14
METRIC_FOCAL_PX = 300.0  # at this focal length, the metric network's numbers are metres
METRIC, MONOCULAR, NESTED = "da3metric-large", "da3mono-large", "da3nested-giant-large"
LICENCES = {
    **dict.fromkeys(("DA3-SMALL", "DA3-BASE", "DA3METRIC-LARGE", "DA3MONO-LARGE"), "Apache-2.0"),
    **dict.fromkeys(("DA3-LARGE-1.1", "DA3-GIANT-1.1", "DA3NESTED-GIANT-LARGE-1.1"), "CC-BY-NC-4.0"),
}
MIN_DEPTH = 1e-6


class ConsistentDepthOfClip(NamedTuple):
    """Depth of every frame, the camera, and temporal consistency scores."""

    depth: Depth
    fov_deg: Annotated[
        float | None,
        "horizontal field of view, degrees: median over the frames; null for monocular networks without `fov_deg`",
    ]
    confidence_mean: Annotated[
        float | None, "mean confidence of the network, from 1; null for monocular networks, which have none"
    ]
    pass_change_share: Annotated[
        float | None,
        "difference of two passes on the frames that they share, after alignment, relative to the depth: median; 0 is "
        "fully consistent; null for a clip of one pass",
    ]
    flow_change_share: Annotated[
        float | None,
        "change of the disparity (1 / metres for metric depth) along the optical flow: median over pixels with valid "
        "flow, mean over adjacent frames, as a fraction of the clip's range (5th to 95th percentile); 0 is fully "
        "consistent; null without valid flow",
    ]


class Pass(NamedTuple):
    """The network's results for some consecutive frames."""

    depth: np.ndarray  # float32 [n, h, w], above 0
    confidence: np.ndarray | None  # float32 [n, h, w], from 1
    fov_deg: np.ndarray | None  # float64 [n]


@dataclass(frozen=True)
class DepthAnything3(Annotator):
    """Depth by Depth Anything 3, at the size of the frames.

    The main networks (DA3-SMALL to DA3-GIANT) look at many frames together, so that their depth has one scale and is
    consistent; the nested network adds metres. A clip of more than `frames_per_pass` frames is processed in passes that
    share `shared_frames` frames: each is scaled to the one before by the median ratio on the shared frames, and
    blended. The monocular networks look at single frames: DA3METRIC gives metres for a camera of known `fov_deg`,
    DA3MONO relative depth.

    Metric networks give metres; all others give disparity, the inverse of their depth, of unknown scale. For the sky,
    the networks with a sky output use the far end of what they see. The preparation of frames is the package's.

    The operator needs an environment of its own: see the how-to page. The package is the authors' code; they publish it
    as source.
    """

    checkpoint: Annotated[str, "Depth Anything 3 checkpoint (config.json, model.safetensors): hub name or folder"] = (
        "depth-anything/DA3-BASE"
    )
    input_size: Annotated[int, "longer side of the network input, pixels", Ge(PATCH_PX), MultipleOf(PATCH_PX)] = 504
    frames_per_pass: Annotated[int, "frames that the network looks at together", Ge(2)] = 48
    shared_frames: Annotated[int, "frames that two passes share", Ge(1)] = 8
    fov_deg: Annotated[
        float, "horizontal field of view of the whole frame, degrees; for DA3METRIC; 0: unknown", Interval(ge=0, lt=180)
    ] = 0.0
    precision: Annotated[
        Precision, "numerical precision of the backbone: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"
    ] = "fp32"

    gpus: ClassVar[float] = 0.5
    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "Lin et al. 2025 (arXiv:2511.10647); depth_anything_3.api.DepthAnything3"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared_frames >= self.frames_per_pass:
            raise OpenUniError(
                f"depth_anything_3: shared_frames = {self.shared_frames}, frames_per_pass = {self.frames_per_pass}. "
                "Allowed: fewer shared frames than a pass has."
            )

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The Depth Anything 3 checkpoint."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' checkpoints. The large ones are for non-commercial use, but for the monocular ones."""
        needed = ("config.json", "model.safetensors")
        return tuple(
            Checkpoint(f"depth-anything/{name}", "hub", licence, only=needed) for name, licence in LICENCES.items()
        )

    def load(self, device: str) -> Any:
        """Load the network on `device`.

        Raises `MissingRequirement` without the package, `OpenUniError` if the folder is not a complete checkpoint.
        """
        try:
            from depth_anything_3 import api
        except ImportError as error:
            raise MissingRequirement(
                f"depth_anything_3: the package depth-anything-3 is not installed ({error}). Give the operator an "
                "environment: a file depth_anything_3.txt with the lines depth-anything-3==0.1.1 and addict==2.4.0, "
                'and requirements = "depth_anything_3.txt" in its table of the recipe.'
            ) from error
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        folder = self.checkpoints()[0].resolve()
        try:
            name = json.loads((folder / "config.json").read_text())["model_name"]
            if name not in api.MODEL_REGISTRY:
                raise ValueError(f'model_name in config.json is "{name}", must be one of {sorted(api.MODEL_REGISTRY)}')
            network = api.DepthAnything3(model_name=name)
            lacking, _ = load_model(network, folder / "model.safetensors", strict=False)  # knows tensors of two names
            if lacking:
                raise ValueError(f"{len(lacking)} tensors are missing, such as {sorted(lacking)[0]}")
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise OpenUniError(
                f"{folder} is not a Depth Anything 3 checkpoint: {error}. Use one such as depth-anything/DA3-BASE."
            ) from error
        if name == METRIC and not self.fov_deg:
            raise OpenUniError(
                f"depth_anything_3: {self.checkpoint} gives metres for a camera whose field of view is known. Set "
                "fov_deg, or use depth_pro, which estimates it."
            )
        return network.float().eval().requires_grad_(False).to(device), name

    def run(self, model: Any, clip: DecodedClip) -> ConsistentDepthOfClip:
        """Depth, float32 [T, H, W, 1] at the size of the frames; see the class for the unit."""
        network, name = model
        size_px = clip.frames.shape[1], clip.frames.shape[2]
        is_joint = name not in (METRIC, MONOCULAR)
        spans = passes(len(clip.frames), self.frames_per_pass, self.shared_frames) if is_joint else singles(clip)
        found = [self._pass(network, clip.frames[span]) for span in spans]
        depth, differences = joined([one.depth for one in found], spans, align=name != NESTED and is_joint)
        if name == METRIC:
            depth = depth * np.float32(0.5 * depth.shape[2] / np.tan(np.radians(self.fov_deg) / 2) / METRIC_FOCAL_PX)
        depth = enlarged(np.maximum(depth, np.float32(MIN_DEPTH)), size_px)
        is_metric = name in (METRIC, NESTED)
        result = Depth(depth[..., None], unit="metres") if is_metric else Depth(1 / depth[..., None])
        fov_deg = [one.fov_deg for one in found if one.fov_deg is not None]
        confidence = [one.confidence.mean(dtype=np.float64) for one in found if one.confidence is not None]
        return ConsistentDepthOfClip(
            result,
            fov_deg=float(np.median(np.concatenate(fov_deg))) if fov_deg else self.fov_deg or None,
            confidence_mean=float(np.mean(confidence)) if confidence else None,
            pass_change_share=float(np.median(differences)) if differences else None,
            flow_change_share=depth_change_share(clip, result),
        )

    def _pass(self, network: Any, frames: np.ndarray) -> Pass:
        """Run the network on frames, uint8 [n, H, W, 3] RGB, together."""
        import torch

        device = next(network.parameters()).device
        prepared, _, _ = network.input_processor(list(frames.copy()), process_res=self.input_size, sequential=True)
        devices = [device] if device.type == "cuda" else []
        # for the sky, the network takes the far end of a random sample: seeded, so that results are repeatable
        with inference(device.type, self.precision), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            given = network.model(prepared[None].to(device))
        depth = given["depth"][0].float().cpu().numpy()
        if not np.isfinite(depth).all():
            raise ClipError("depth_anything_3: the network predicts depth that is not finite. Try precision fp32.")
        confidence, intrinsics = given.get("depth_conf"), given.get("intrinsics")
        fov_deg = None
        if intrinsics is not None:
            focal_px = intrinsics[0, :, 0, 0].double().cpu().numpy()
            fov_deg = np.degrees(2 * np.arctan(depth.shape[2] / 2 / focal_px))
        return Pass(depth, None if confidence is None else confidence[0].float().cpu().numpy(), fov_deg)


def passes(count: int, length: int, shared: int) -> list[slice]:
    """Spans of at most `length` frames that cover `count` frames; each shares `shared` frames with the one before.

    The last span ends with the clip and has the full length if the clip allows, so it may share more.
    """
    starts = [*range(0, max(1, count - length), length - shared), max(0, count - length)]
    return [slice(start, min(start + length, count)) for start in dict.fromkeys(starts)]


def singles(clip: DecodedClip) -> list[slice]:
    """Spans of one frame."""
    return [slice(index, index + 1) for index in range(len(clip.frames))]


def joined(parts: Sequence[np.ndarray], spans: Sequence[slice], *, align: bool) -> tuple[np.ndarray, list[float]]:
    """Depth of all frames, float32 [T, h, w], from passes over spans of them, float32 [n, h, w], above 0.

    `align`: scale each pass to those before by the median ratio on the frames that both have. There, the passes are
    blended linearly. Also returns the differences of the shared frames after alignment, relative to the depth.
    """
    depth = np.empty((spans[-1].stop, *parts[0].shape[1:]), np.float32)
    known, differences = 0, []
    for part, span in zip(parts, spans, strict=True):
        shared = known - span.start
        if shared > 0:
            before = depth[span.start : known]
            if align:
                part = part * np.float32(np.median(before / np.maximum(part[:shared], MIN_DEPTH)))
            differences.append(float(np.median(np.abs(part[:shared] - before) / np.maximum(before, MIN_DEPTH))))
            share = (np.arange(1, shared + 1, dtype=np.float32) / (shared + 1))[:, None, None]
            depth[span.start : known] = before * (1 - share) + part[:shared] * share
        depth[max(known, span.start) : span.stop] = part[max(0, shared) :]
        known = span.stop
    return depth, differences


def enlarged(depth: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing, float32 [T, h, w] -> [T, H, W]."""
    import torch

    def each() -> Iterator[np.ndarray]:
        for image in depth:
            given = torch.from_numpy(np.ascontiguousarray(image))[None, None]
            yield torch.nn.functional.interpolate(given, size_px, mode="bilinear", align_corners=False)[0, 0].numpy()

    return np.stack(list(each()))
