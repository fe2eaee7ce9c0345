"""Alpha mattes of a subject by MatAnyone 2, propagated by its memory; it needs an environment of its own.

The authors publish their code as source only. The registry has it in `matanyone2-runtime`, a package of others:

    [annotators.matanyone2]
    requirements = "matanyone2.txt"     # matanyone2-runtime==0.2.0, torch==2.15.0 and torchvision==0.29.2
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval

from openuni.annotators._matte import MatteOfClip, matte_of_clip
from openuni.annotators.matting import subject_masks
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import MissingRequirement, OpenUniError

LICENCE = "LicenseRef-S-Lab-License-1.0"  # for non-commercial use, code and weights
STRIDE_PX = 16  # of the network's coarsest features
OBJECT = 1


@dataclass(frozen=True)
class Matanyone2(Annotator):
    """Alpha and straight (not premultiplied) foreground colours of the subject in every frame.

    The network gets the subject's mask in one frame, the first that shows it, from the instance masks of another
    annotator. It refines that frame and propagates the matte to the end of the clip by its memory, and backward to the
    beginning with a memory of its own. So the matte does not flicker with the masks of single frames. The mask is
    dilated, then eroded, and the frame is repeated `warmup_frames` times, as in the authors' code. A clip without a
    subject is unavailable.

    Foreground colours and the background are estimated as in `matting`. Code and weights are for non-commercial use.
    The operator needs an environment of its own: see the how-to page.
    """

    checkpoint: Annotated[str, "MatAnyone 2 checkpoint (config.json, model.safetensors): hub name or folder"] = (
        "PeiqingYang/MatAnyone2"
    )
    subject: Annotated[
        Literal["largest", "people", "all"],
        "subject: the largest instance that covers at most a quarter of the frame's border, the instances that contain "
        "keypoints of people (requires a skeleton), or all instances",
    ] = "largest"
    ids: Annotated[tuple[int, ...], "instance ids of the subject; empty: use `subject`", Interval(ge=1, le=65535)] = ()
    masks: Annotated[str, 'instance masks: "segmentation", or "ANNOTATOR.segmentation" if there are several'] = (
        "segmentation"
    )
    points: Annotated[str, 'keypoints of people: "skeleton", or "ANNOTATOR.skeleton" if there are several'] = "skeleton"
    dilate_px: Annotated[int, "size of the disc that dilates the mask, pixels; 0 disables", Ge(0)] = 10
    erode_px: Annotated[int, "size of the disc that then erodes it, pixels; 0 disables", Ge(0)] = 10
    warmup_frames: Annotated[
        int, "number of times that the frame with the mask is refined before the others", Ge(1)
    ] = 10
    max_short_side_px: Annotated[
        int, "shorter side above which frames are downscaled for the network, pixels; 0: never", Ge(0)
    ] = 0
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.5
    licence: ClassVar[str] = LICENCE
    origin: ClassVar[str] = "Yang et al. 2025 (arXiv:2512.11782); matanyone2.inference.inference_core.InferenceCore"

    def requires(self) -> Sequence[str]:
        """Instance masks, and keypoints for `subject = "people"`."""
        return (self.masks, self.points) if self.subject == "people" and not self.ids else (self.masks,)

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The MatAnyone 2 checkpoint."""
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' checkpoint, for non-commercial use."""
        return (Checkpoint("PeiqingYang/MatAnyone2", "hub", LICENCE, only=("config.json", "model.safetensors")),)

    def load(self, device: str) -> Any:
        """Load the network on `device`.

        Raises `MissingRequirement` without the package, `OpenUniError` if the folder is not a complete checkpoint.
        """
        try:
            from matanyone2.model import matanyone2 as package
            from matanyone2.utils.device import set_default_device
        except ImportError as error:
            raise MissingRequirement(
                f"matanyone2: the package matanyone2-runtime is not installed ({error}). Give the operator an "
                "environment: a file matanyone2.txt with the lines matanyone2-runtime==0.2.0, torch==2.15.0 and "
                'torchvision==0.29.2, and requirements = "matanyone2.txt" in its table of the recipe.'
            ) from error
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        folder = self.checkpoints()[0].resolve()
        try:
            config = json.loads((folder / "config.json").read_text())
            config["cfg"]["model"]["pretrained_resnet"] = False  # else the package downloads weights, to replace them
            options = package.OmegaConf.create(config["cfg"])
            network = package.MatAnyone2(options, single_object=bool(config.get("single_object", True)))
            lacking, _ = load_model(network, folder / "model.safetensors", strict=False)
            if lacking:
                raise ValueError(f"{len(lacking)} tensors are missing, such as {sorted(lacking)[0]}")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
            raise OpenUniError(
                f"{folder} is not a MatAnyone 2 checkpoint: {error}. Use one such as PeiqingYang/MatAnyone2."
            ) from error
        set_default_device(device)
        return network.float().eval().requires_grad_(False).to(device)

    def run(self, model: Any, clip: DecodedClip) -> MatteOfClip:
        """Alpha and foreground at the size of the frames. Raises `Unavailable` for a clip without a subject."""
        masks = subject_masks(clip, self.subject, self.ids)
        first = int(np.flatnonzero(masks.any(axis=(1, 2)))[0])
        alpha = np.empty(masks.shape, np.float32)
        alpha[first:] = self.propagate(model, clip.frames[first:], masks[first])
        if first:
            alpha[: first + 1] = self.propagate(model, clip.frames[first::-1], masks[first])[::-1]
        return matte_of_clip(clip, alpha, None)

    def propagate(self, network: Any, frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Alpha float32 [T, H, W] of frames, uint8 [T, H, W, 3] RGB, of which the first has `mask`, bool [H, W]."""
        import torch
        from matanyone2.inference.inference_core import InferenceCore

        device = next(network.parameters()).device
        core = InferenceCore(network, self._options(network, frames.shape[1:3]), device=device)
        alpha = np.empty(frames.shape[:3], np.float32)
        with inference(device.type, self.precision):
            for index, frame in enumerate(frames):
                image = torch.from_numpy(frame.copy()).permute(2, 0, 1).to(device).float() / 255
                if index:
                    found = core.step(image)
                else:
                    core.step(image, torch.from_numpy(self._smoothed(mask)).to(device), objects=[OBJECT])
                    for _ in range(self.warmup_frames + 1):
                        found = core.step(image, first_frame_pred=True)
                alpha[index] = core.output_prob_to_mask(found).float().clamp(0, 1).cpu().numpy()
        return alpha

    def _options(self, network: Any, size_px: tuple[int, ...]) -> Any:
        """The network's options, with a limit on the size, and no more matches than a small frame has features."""
        options = copy.deepcopy(network.cfg)
        options.max_internal_size = self.max_short_side_px or -1
        scale = min(1.0, (self.max_short_side_px or min(size_px)) / min(size_px))
        features = [-(-int(side * scale) // STRIDE_PX) for side in size_px]
        options.top_k = min(options.top_k, int(np.prod(features)))
        return options

    def _smoothed(self, mask: np.ndarray) -> np.ndarray:
        """Mask float32 [H, W], 0 or 255, dilated and eroded as in the authors' code; not eroded to nothing."""
        from matanyone2.utils.inference_utils import gen_dilate, gen_erosion

        found = mask.astype(np.float32) * 255
        if self.dilate_px:
            found = gen_dilate(found, self.dilate_px, self.dilate_px)
        if self.erode_px:
            eroded = gen_erosion(found, self.erode_px, self.erode_px)
            found = eroded if eroded.any() else found
        return found
