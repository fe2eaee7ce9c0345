"""Alpha mattes and foreground colours: ViTMatte around instance masks, or a network that the user supplies."""

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
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.errors import OpenUniError, Unavailable
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255  # of a trimap, as ViTMatte was trained
BORDER_SHARE = 0.25  # an instance on more of the frame's border than this is what things stand before
BODY_POINTS = 17
SEEN = 0.3  # confidence of a key point that counts


@dataclass(frozen=True)
class Matting(Annotator):
    """Alpha and straight (not premultiplied) foreground colours of the subject, for every frame.

    By default ViTMatte refines instance masks, which an annotator before it must have made: what is well inside the
    subject's mask is foreground, what is well outside background, and the network decides in the band between. Each
    frame is done on its own, so the matte is as steady as the masks are. A clip without such an instance is
    unavailable.

    A file that ends in .torchscript, .ts, .jit, .pt or .pth is taken as a TorchScript program instead, such as the
    user's copy of RobustVideoMatting (GPL-3.0, so not part of this project): recurrent networks with states r1 to r4,
    which begin empty in each clip, or networks of single frames; source RGB in 0..1, no masks needed. Loading such a
    file runs the program in it: use files of people you trust.

    Colours of the foreground are estimated so that picture = alpha x foreground + (1 - alpha) x background can hold,
    unless the supplied network gives its own. The background is given where the clip shows it: the camera is at rest
    and the subject leaves every pixel at some time; else there is none, for what no frame shows would be made up.
    """

    checkpoint: Annotated[
        str, "Hugging Face name or folder of ViTMatte in transformers' format, or a TorchScript program"
    ] = "hustvl/vitmatte-small-composition-1k"
    subject: Annotated[
        Literal["largest", "people", "all"],
        "with ViTMatte: the largest instance that does not fill over a quarter of the frame's border; instances that "
        "people's key points lie in (needs a skeleton); or all instances together",
    ] = "largest"
    ids: Annotated[
        tuple[int, ...],
        "with ViTMatte: these instances instead of `subject`; empty: by `subject`",
        Interval(ge=1, le=65535),
    ] = ()
    masks: Annotated[str, 'the masks to start from: "segmentation", or "sam2.segmentation" where there are several'] = (
        "segmentation"
    )
    points: Annotated[str, 'people\'s key points: "skeleton", or "ANNOTATOR.skeleton" where there are several'] = (
        "skeleton"
    )
    band_share: Annotated[
        float,
        "half the width of the band that the network decides, in side lengths of the subject (root of its area)",
        Interval(gt=0, le=0.5),
    ] = 0.05
    downsample_ratio: Annotated[
        float,
        "of recurrent networks: scale at which they look at the whole picture; 0: 512 px on the longer side",
        UNIT_INTERVAL,
    ] = 0.0
    frames_per_batch: Annotated[int, "frames in one forward pass; results do not depend on it", Ge(1)] = 4
    precision: Annotated[Precision, "fp32, or bf16 autocast"] = "fp32"

    gpus: ClassVar[float] = 0.25
    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "Yao et al. 2023 (arXiv:2305.15272); transformers.VitMatteForImageMatting"

    @property
    def scripted(self) -> bool:
        """Whether the checkpoint is a program of the user's."""
        return Path(self.checkpoint).suffix.lower() in SUFFIXES

    def requires(self) -> Sequence[str]:
        """Instance masks; key points too where they say which instances are people. Nothing with a supplied network."""
        if self.scripted:
            return ()
        return (self.masks, self.points) if self.subject == "people" and not self.ids else (self.masks,)

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The one checkpoint."""
        if self.scripted:
            return (Checkpoint(self.checkpoint, "path"),)
        return (published_or_path(self.checkpoint, self.published()),)

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' models that are there as safetensors: Apache-2.0, trained on sets shared for research."""
        sizes_mb = {"small-composition-1k": 103.3, "small-distinctions-646": 103.3, "base-distinctions-646": 386.9}
        return tuple(
            Checkpoint(
                f"hustvl/vitmatte-{name}", "hub", cls.licence, size_mb=size_mb, only=("*.json", "model.safetensors")
            )
            for name, size_mb in sizes_mb.items()
        )

    def load(self, device: str) -> Any:
        """Network on `device` and its image processor, or the user's program. `OpenUniError` for other checkpoints."""
        path = self.checkpoints()[0].resolve()
        if self.scripted:
            return load_scripted(path, device)
        from transformers import AutoImageProcessor, VitMatteForImageMatting

        only_data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # no download, no code
        try:
            processor = AutoImageProcessor.from_pretrained(path, **only_data)
            network = VitMatteForImageMatting.from_pretrained(path, use_safetensors=True, **only_data)
        except (OSError, ValueError, RuntimeError) as error:
            raise OpenUniError(
                f"{path} is not ViTMatte in transformers' format: {error}. Give one such as "
                "hustvl/vitmatte-small-composition-1k."
            ) from error
        return network.eval().to(device), processor

    def run(self, model: Any, clip: DecodedClip) -> MatteOfClip:
        """Alpha and foreground at the size of the frames. `Unavailable` when no instance is the subject."""
        given = None
        if isinstance(model, ScriptedMatte):
            alpha, given = estimate(model, clip.frames, self.frames_per_batch, self.downsample_ratio, self.precision)
        else:
            network, processor = model
            masks = subject_masks(clip, self.subject, self.ids)
            alpha = self._refined(network, processor, clip.frames, trimaps(masks, self.band_share))
        return matte_of_clip(clip, alpha, given)

    def _refined(self, network: Any, processor: Any, frames: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        """float32 [T, H, W]: what the trimap is sure of, and between it the network's alpha."""
        alpha = (trimap == FOREGROUND).astype(np.float32)
        unsure = np.flatnonzero((trimap == UNKNOWN).any(axis=(1, 2)))  # frames without the subject need no network
        device = next(network.parameters()).device
        for start in range(0, len(unsure), self.frames_per_batch):
            rows = unsure[start : start + self.frames_per_batch]
            # copies, channels last: the processor may not write to the clip, nor guess the layout
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
    """bool [T, H, W] at the size of the frames: where the subject is. `Unavailable` when no instance is it."""
    segmentation = clip.maps["segmentation"]
    assert isinstance(segmentation, Segmentation)
    labels = segmentation.array[..., 0]
    pixels = np.bincount(labels.ravel(), minlength=1)
    present = [int(one) for one in np.flatnonzero(pixels) if one]
    if ids:
        chosen, what = [one for one in ids if one in present], f"none of the instances {list(ids)} is"
    elif subject == "all":
        chosen, what = present, "no instance is"
    elif subject == "people":
        chosen, what = _people(labels, clip.maps["skeleton"]), "no instance with a person's key points is"
    else:
        standing = [one for one in present if _border_share(labels, one) <= BORDER_SHARE]
        chosen = sorted(standing, key=lambda one: (-pixels[one], one))[:1]
        what = "no instance that leaves three quarters of the border free is"
    if not chosen:
        raise Unavailable(f"{what} in this clip: there is no subject to cut out")
    masks = np.isin(labels, chosen)[..., None]
    return resize_nearest(masks, *clip.frames.shape[1:3])[..., 0]


def trimaps(masks: np.ndarray, band_share: float) -> np.ndarray:
    """uint8 [T, H, W]: 255 well inside the masks, 0 well outside, 128 in a band around their edge.

    `masks`: bool [T, H, W]. The band reaches `band_share` times the subject's side length to both sides, at least a
    pixel; its side length is the root of its mean area over the frames where it is.
    """
    import cv2

    areas = masks.sum(axis=(1, 2))
    side_px = float(np.sqrt(areas[areas > 0].mean())) if areas.any() else 0.0
    reach_px = max(1, round(band_share * side_px))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1, 2 * reach_px + 1))
    out = np.full(masks.shape, UNKNOWN, np.uint8)
    for target, mask in zip(out, masks.astype(np.uint8), strict=True):
        target[cv2.erode(mask, disc) > 0] = FOREGROUND  # OpenCV's border does not erode what the frame cuts
        target[cv2.dilate(mask, disc) == 0] = BACKGROUND
    return out


def _border_share(labels: np.ndarray, one: int) -> float:
    """Mean share of the frame's border that an instance covers, in the frames where it is; `labels`: [T, H, W]."""
    labels = labels[(labels == one).any(axis=(1, 2))]
    sides = (labels[:, 0], labels[:, -1], labels[:, 1:-1, 0], labels[:, 1:-1, -1])
    return float(np.mean(np.concatenate(sides, axis=1) == one))


def _people(labels: np.ndarray, skeleton: object) -> list[int]:
    """Instances in which at least half of a person's seen body points lie, over the clip; `labels`: [T, H, W]."""
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
