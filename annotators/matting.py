"""Alpha mattes and foreground colours, by ViTMatte from instance masks or by a user-supplied network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Interval

from openuni.annotators._matte import MatteOfClip, matte_of_clip
from openuni.annotators._scripted_matte import SUFFIXES, ScriptedMatte, estimate, load_scripted
from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.contracts.checkpoint import Checkpoint, published_or_path
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.options import UNIT_INTERVAL, Formerly
from openuni.manifests.errors import OpenUniError, Unavailable
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255  # trimap values of ViTMatte's training
BORDER_SHARE = 0.25  # an instance that covers more of the frame's border is considered background
BODY_POINTS = 17
SEEN = 0.3  # minimum confidence of a keypoint


@dataclass(frozen=True)
class Matting(Annotator):
    """Alpha and straight (not premultiplied) foreground colours of the subject in every frame.

    By default, ViTMatte refines the instance masks of another annotator. From the subject's mask a trimap is derived:
    foreground well inside, background well outside, and an unknown band in between, in which the network predicts
    alpha. Frames are processed independently, so the matte is as stable as the masks. A clip without a subject is
    unavailable.

    A checkpoint that ends in .torchscript, .ts, .jit, .pt or .pth is loaded as TorchScript, such as your own copy of
    RobustVideoMatting (GPL-3.0, therefore not part of this project). Supported are recurrent networks with states r1 to
    r4, which start empty in each clip, and single-frame networks; the source is RGB in 0..1, and no masks are required.
    TorchScript is executable: load only files from authors that you trust.

    Foreground colours are estimated such that image = alpha x foreground + (1 - alpha) x background, unless the
    supplied network returns them. The background is stored only if the clip shows all of it (static camera, and every
    pixel is uncovered in some frame). It is never inpainted.
    """

    checkpoint: Annotated[
        str, "ViTMatte in transformers format (Hugging Face name or folder), or path of a TorchScript file"
    ] = "hustvl/vitmatte-small-composition-1k"
    subject: Annotated[
        Literal["largest", "people", "all"],
        "subject for ViTMatte: the largest instance that covers at most a quarter of the frame's border, the instances "
        "that contain keypoints of people (requires a skeleton), or all instances",
    ] = "largest"
    ids: Annotated[
        tuple[int, ...],
        "instance ids of the subject for ViTMatte; empty: use `subject`",
        Interval(ge=1, le=65535),
    ] = ()
    masks: Annotated[
        str, 'instance masks to refine: "segmentation", or "ANNOTATOR.segmentation" if there are several'
    ] = "segmentation"
    points: Annotated[str, 'keypoints of people: "skeleton", or "ANNOTATOR.skeleton" if there are several'] = "skeleton"
    trimap_band_share: Annotated[
        float,
        "half the width of the trimap's unknown band, relative to the square root of the subject's area",
        Interval(gt=0, le=0.5),
        Formerly("band_share"),
    ] = 0.05
    downsample_ratio: Annotated[
        float,
        "scale of the coarse pass in recurrent networks; 0: 512 px on the longer side",
        UNIT_INTERVAL,
    ] = 0.0
    frames_per_batch: Annotated[int, "frames per forward pass; does not affect results", Ge(1)] = 4
    precision: Annotated[Precision, "numerical precision: fp32, tf32 (on CPUs fp32), bf16 or fp16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "Yao et al. 2023 (arXiv:2305.15272); transformers.VitMatteForImageMatting"

    @property
    def scripted(self) -> bool:
        """Whether the checkpoint is a user-supplied TorchScript file."""
        return Path(self.checkpoint).suffix.lower() in SUFFIXES

    def requires(self) -> Sequence[str]:
        """Instance masks, and keypoints for `subject = "people"`; nothing for a user-supplied network."""
        if self.scripted:
            return ()
        return (self.masks, self.points) if self.subject == "people" and not self.ids else (self.masks,)

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The network's checkpoint."""
        if self.scripted:
            return (Checkpoint(self.checkpoint, "path"),)
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' models with safetensors: Apache-2.0, trained on datasets shared for research."""
        sizes_mb = {"small-composition-1k": 103.3, "small-distinctions-646": 103.3, "base-distinctions-646": 386.9}
        return tuple(
            Checkpoint(
                f"hustvl/vitmatte-{name}", "hub", cls.licence, size_mb=size_mb, only=("*.json", "model.safetensors")
            )
            for name, size_mb in sizes_mb.items()
        )

    def load(self, device: str) -> Any:
        """Load the network on `device` and its image processor, or the user's TorchScript.

        Raises `OpenUniError` for other checkpoints.
        """
        path = self.checkpoints()[0].resolve()
        if self.scripted:
            return load_scripted(path, device)
        import torch
        from transformers import AutoImageProcessor, VitMatteForImageMatting

        # no downloads, no remote code
        only_data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoImageProcessor.from_pretrained(path, **only_data)
            network = VitMatteForImageMatting.from_pretrained(
                path, use_safetensors=True, dtype=torch.float32, **only_data
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise OpenUniError(
                f"{path} is not ViTMatte in transformers format: {error}. Use one such as "
                "hustvl/vitmatte-small-composition-1k."
            ) from error
        return network.eval().to(device), processor

    def run(self, model: Any, clip: DecodedClip) -> MatteOfClip:
        """Alpha and foreground at the size of the frames. Raises `Unavailable` for a clip without a subject."""
        given = None
        if isinstance(model, ScriptedMatte):
            alpha, given = estimate(model, clip.frames, self.frames_per_batch, self.downsample_ratio, self.precision)
        else:
            network, processor = model
            masks = subject_masks(clip, self.subject, self.ids)
            alpha = self._refined(network, processor, clip.frames, trimaps(masks, self.trimap_band_share))
        return matte_of_clip(clip, alpha, given)

    def _refined(self, network: Any, processor: Any, frames: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        """Alpha float32 [T, H, W]: the trimap's known values, and the network's prediction in the unknown band."""
        alpha = (trimap == FOREGROUND).astype(np.float32)
        unsure = np.flatnonzero((trimap == UNKNOWN).any(axis=(1, 2)))  # frames without the subject are skipped
        device = next(network.parameters()).device
        for start in range(0, len(unsure), self.frames_per_batch):
            rows = unsure[start : start + self.frames_per_batch]
            # copies protect the read-only clip; the explicit layout prevents the processor from guessing it
            inputs = processor(
                images=list(frames[rows]),
                trimaps=list(trimap[rows]),
                input_data_format="channels_last",
                return_tensors="pt",
            )
            with inference(device.type, self.precision):
                found = network(pixel_values=inputs["pixel_values"].to(device)).alphas.float()
            found = found[:, 0, : frames.shape[1], : frames.shape[2]].clamp(0, 1).cpu().numpy()
            alpha[rows] = np.where(trimap[rows] == UNKNOWN, found, alpha[rows])
        return alpha


def subject_masks(clip: DecodedClip, subject: str, ids: Sequence[int] = ()) -> np.ndarray:
    """Mask of the subject, bool [T, H, W] at the size of the frames. Raises `Unavailable` for a clip without one."""
    segmentation = clip.maps["segmentation"]
    assert isinstance(segmentation, Segmentation)
    labels = segmentation.array[..., 0]
    pixels = np.bincount(labels.ravel(), minlength=1)
    present = [int(one) for one in np.flatnonzero(pixels) if one]
    if ids:
        chosen, what = [one for one in ids if one in present], f"none of the instances {list(ids)}"
    elif subject == "all":
        chosen, what = present, "no instance"
    elif subject == "people":
        chosen, what = _people(labels, clip.maps["skeleton"]), "no instance with keypoints of a person"
    else:
        standing = [one for one in present if _border_share(labels, one) <= BORDER_SHARE]
        chosen = sorted(standing, key=lambda one: (-pixels[one], one))[:1]
        what = "no instance that covers at most a quarter of the frame's border"
    if not chosen:
        raise Unavailable(f"no subject: {what} found in this clip")
    masks = np.isin(labels, chosen)[..., None]
    return resize_nearest(masks, *clip.frames.shape[1:3])[..., 0]


def trimaps(masks: np.ndarray, trimap_band_share: float) -> np.ndarray:
    """Trimaps uint8 [T, H, W]: 255 well inside the masks, 0 well outside, 128 in a band around their edges.

    `masks`: bool [T, H, W]. The band extends to both sides by `trimap_band_share` times the subject's side length, at
    least 1 px. The side length is the square root of the mean area over the frames that contain the subject.
    """
    import cv2

    areas = masks.sum(axis=(1, 2))
    side_px = float(np.sqrt(areas[areas > 0].mean())) if areas.any() else 0.0
    reach_px = max(1, round(trimap_band_share * side_px))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1, 2 * reach_px + 1))
    out = np.full(masks.shape, UNKNOWN, np.uint8)
    for target, mask in zip(out, masks.astype(np.uint8), strict=True):
        target[cv2.erode(mask, disc) > 0] = FOREGROUND  # OpenCV does not erode at the image border
        target[cv2.dilate(mask, disc) == 0] = BACKGROUND
    return out


def _border_share(labels: np.ndarray, one: int) -> float:
    """Mean fraction of the border covered by an instance, over the frames that contain it; `labels`: [T, H, W]."""
    labels = labels[(labels == one).any(axis=(1, 2))]
    sides = (labels[:, 0], labels[:, -1], labels[:, 1:-1, 0], labels[:, 1:-1, -1])
    return float(np.mean(np.concatenate(sides, axis=1) == one))


def _people(labels: np.ndarray, skeleton: object) -> list[int]:
    """Instances that contain at least half of a person's visible body points over the clip; `labels`: [T, H, W]."""
    assert isinstance(skeleton, Skeleton)
    found = set()
    height, width = labels.shape[1:]
    scale = np.array([width / skeleton.width_px, height / skeleton.height_px])
    for person in np.moveaxis(skeleton.array[:, :, :BODY_POINTS], 1, 0):
        column, row = np.moveaxis(np.floor(person[..., :2] * scale).astype(np.int64), -1, 0)
        seen = (person[..., 2] >= SEEN) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        under = labels[np.nonzero(seen)[0], row[seen], column[seen]]
        counts = np.bincount(under, minlength=1)
        if len(under) and counts.argmax() and 2 * counts.max() >= len(under):
            found.add(int(counts.argmax()))
    return sorted(found)
