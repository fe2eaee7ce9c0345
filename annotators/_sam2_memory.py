"""Mask propagation between keyframes with SAM 2's memory, in bounded RAM."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from openuni.annotators._automatic_masks import fill_holes
from openuni.annotators._instances import FrameInstances, iou_of, joint
from openuni.manifests.contracts.inference import Precision, inference

FILLED_LOGIT = 0.1  # logit of a filled hole, as in the authors' code


class Sam2Prompted:
    """The image branch of the video network as a `PromptableNetwork`."""

    def __init__(self, network: Any, processor: Any, precision: Precision) -> None:
        self.network, self.processor, self.precision = network, processor, precision
        self.device = next(network.parameters()).device

    def pixels(self, image: np.ndarray) -> Any:
        """uint8 [h, w, 3] RGB -> network input float32 [1, 3, S, S]; the aspect ratio is not preserved."""
        prepared = self.processor.image_processor(
            images=np.array(image), input_data_format="channels_last", return_tensors="pt", device=self.device
        )
        return prepared["pixel_values"].to(self.device)

    def set_image(self, image: np.ndarray) -> None:
        """See `PromptableNetwork.set_image`."""
        self.size_px = image.shape[:2]
        pixels = self.pixels(image)
        self.side_px = pixels.shape[-1]
        with inference(self.device.type, self.precision):
            self.embeddings = self.network.get_image_embeddings(pixels)
            self.places = self.network.get_image_wide_positional_embeddings()

    def predict_points(self, points_px: np.ndarray) -> tuple[Any, Any]:
        """See `PromptableNetwork.predict_points`; three masks per point."""
        import torch

        scale = self.side_px / np.array(self.size_px[::-1])
        points = torch.from_numpy((points_px * scale).astype(np.float32)).to(self.device)[None, :, None]
        labels = torch.ones(points.shape[:3], dtype=torch.int, device=self.device)
        with inference(self.device.type, self.precision):
            sparse, dense = self.network.get_prompt_embeddings(input_points=points, input_labels=labels)
            logits, predicted, *_ = self.network.mask_decoder(
                image_embeddings=self.embeddings[-1],
                image_positional_embeddings=self.places,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                high_resolution_features=self.embeddings[:-1],
            )
        return logits[0].float(), predicted[0].float()

    def upscale(self, logits: Any) -> Any:
        """See `PromptableNetwork.upscale`; bilinear, in one step to the image size."""
        return enlarged(logits, self.size_px)


def enlarged(logits: Any, size_px: tuple[int, ...]) -> Any:
    """Bilinear upscaling, [K, s, s] -> [K, H, W]."""
    import torch

    return torch.nn.functional.interpolate(logits[:, None], size_px, mode="bilinear", align_corners=False)[:, 0]


class MemoryInterval:
    """Propagation from one keyframe to the next with SAM 2's memory; see `KeyframeInterval`.

    Instances that only the second keyframe has are propagated backward and fill pixels without an instance.
    """

    def __init__(
        self, seen: Sam2Prompted, frames: np.ndarray, labels: np.ndarray, span: tuple[int, int], fill_holes_px: int
    ) -> None:
        self.seen, self.frames, self.labels, self.span, self.fill_holes_px = seen, frames, labels, span, fill_holes_px
        self.there = self._follow(labels, range(span[0], span[1] + 1))
        self.carried = self.there[-1]

    def affinity(self, found: FrameInstances, known: int) -> np.ndarray:
        """IoU of the masks detected in the second keyframe with the masks propagated there."""
        return iou_of(joint(found.labels, self.carried, (found.total + 1, known + 1)))

    def between(self, last: np.ndarray) -> np.ndarray:
        """See `KeyframeInterval.between`."""
        fresh = np.where(np.isin(last, np.unique(self.labels)), 0, last).astype(np.uint16)
        back = self._follow(fresh, range(self.span[1], self.span[0], -1))[::-1]
        there = self.there[:-1]
        return np.where(there == 0, back, there)

    def _follow(self, labels: np.ndarray, order: Sequence[int]) -> np.ndarray:
        return propagate(self.seen, self.frames, labels, order, self.fill_holes_px)


def propagate(
    seen: Sam2Prompted, frames: np.ndarray, labels: np.ndarray, order: Sequence[int], fill_holes_px: int
) -> np.ndarray:
    """Propagate the instances of `labels`, uint16 [H, W], map of frame `order[0]`, to the other frames of `order`.

    Returns uint16 [len(order) - 1, H, W]. Where instances overlap, the highest logit wins. A separate session is
    initialized with the masks. Frames are passed one at a time, and state that no later frame needs is dropped.
    """
    import torch

    numbers = [int(number) for number in np.unique(labels) if number]
    found = np.zeros((len(order) - 1, *labels.shape), np.uint16)
    if not numbers or len(order) < 2:
        return found
    session = seen.processor.init_video_session(inference_device=seen.device, dtype=torch.float32)
    masks = [labels == number for number in numbers]
    seen.processor.add_inputs_to_inference_session(session, order[0], list(numbers), input_masks=masks)
    names = torch.tensor([0, *session.obj_ids], dtype=torch.int32)
    for row, index in enumerate(order):
        with inference(seen.device.type, seen.precision):
            given = {"frame": seen.pixels(frames[index])[0], "frame_idx": index, "reverse": order[-1] < order[0]}
            logits = seen.network(inference_session=session, **given).pred_masks[:, 0].float()
            prune_session(session, index, seen.network.config)
            if row:
                best, which = enlarged(filled(logits, fill_holes_px), labels.shape).max(dim=0)
                found[row - 1] = names[torch.where(best > 0, which + 1, 0).cpu()].numpy().astype(np.uint16)
    return found


def filled(logits: Any, fill_holes_px: int) -> Any:
    """Set holes of at most `fill_holes_px` low-resolution pixels to a logit just above 0; [K, s, s].

    Computed on the CPU for equal results on all devices. The authors' CUDA extension does the same, if compiled.
    """
    import torch

    if not fill_holes_px:
        return logits
    masks = (logits > 0).cpu().numpy()
    holes = np.stack([fill_holes(mask, fill_holes_px + 1) & ~mask for mask in masks])
    return torch.where(torch.from_numpy(holes).to(logits.device), FILLED_LOGIT, logits)


def prune_session(session: Any, index: int, config: Any) -> None:
    """Drop session state that no frame after `index` needs: images, full-size masks, memories out of range.

    The library keeps all of it, 4 MB per instance and frame at full size.
    """
    session.processed_frames.pop(index, None)
    for outputs in session.output_dict_per_obj.values():
        for entry in outputs["cond_frame_outputs"].values():
            entry.pop("high_res_masks", None)
        recent = outputs["non_cond_frame_outputs"]
        for at in list(recent):
            recent[at].pop("high_res_masks", None)
            recent[at].pop("pred_masks", None)
            if abs(index - at) >= config.num_maskmem:
                recent[at].pop("maskmem_features", None)
                recent[at].pop("maskmem_pos_enc", None)
            if abs(index - at) >= max(config.num_maskmem, config.max_object_pointers_in_encoder):
                del recent[at]
