"""Mask propagation between keyframes with SAM 2's memory, in bounded RAM."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from openuni.annotators._automatic_masks import fill_holes, packed_bits, unpacked_bits
from openuni.annotators._instances import FrameInstances, iou_of, joint
from openuni.annotators._sam2_tracking import TrackedInstances, Vision, enlarged, prompt_masks, vision_of
from openuni.annotators._threads import in_threads
from openuni.manifests.contracts.inference import Precision, decoder_precision, inference

FILLED_LOGIT = 0.1  # logit of a filled hole, as in the authors' code


class EmbeddedImage(NamedTuple):
    """An image that the encoder has seen."""

    features: list[Any]  # float32 [1, C, h, w] per level, the finest first
    size_px: tuple[int, int]  # height and width of the image


class Sam2Prompted:
    """The image branch of the video network as a `PromptableNetwork`, and the sizes of its batches.

    With 16-bit `precision`, the mask decoder of point prompts keeps 32 bits: masks are selected by thresholds.
    """

    def __init__(
        self,
        network: Any,
        processor: Any,
        precision: Precision,
        frames_per_batch: int = 4,
        tracked_per_batch: int = 16,
    ) -> None:
        self.network, self.processor, self.precision = network, processor, precision
        self.frames_per_batch, self.tracked_per_batch = frames_per_batch, tracked_per_batch
        self.decoder_precision = decoder_precision(precision)
        self.device = next(network.parameters()).device

    def pixels(self, images: Sequence[np.ndarray]) -> Any:
        """uint8 [h, w, 3] RGB, of any sizes -> network input float32 [N, 3, S, S]; aspect ratios are not preserved."""
        import torch

        if len({image.shape for image in images}) == 1:  # one copy to the device
            given = list(torch.from_numpy(np.stack(images)).to(self.device))
        else:
            given = [torch.from_numpy(np.array(image)).to(self.device) for image in images]
        prepared = self.processor.image_processor(
            images=given, input_data_format="channels_last", return_tensors="pt", device=self.device
        )
        return prepared["pixel_values"].to(self.device)

    def embed(self, images: Sequence[np.ndarray]) -> list[EmbeddedImage]:
        """See `PromptableNetwork.embed`."""
        pixels = self.pixels(images)
        self.side_px = pixels.shape[-1]
        with inference(self.device.type, self.precision):
            levels = [level.float() for level in self.network.get_image_embeddings(pixels)]
        return [
            EmbeddedImage([level[row : row + 1] for level in levels], (image.shape[0], image.shape[1]))
            for row, image in enumerate(images)
        ]

    def use(self, embedding: EmbeddedImage) -> None:
        """See `PromptableNetwork.use`."""
        self.image = embedding
        with inference(self.device.type, self.decoder_precision):
            self.places = self.network.get_image_wide_positional_embeddings()

    def predict_points(self, points_px: Any) -> tuple[Any, Any]:
        """See `PromptableNetwork.predict_points`; three masks per point."""
        import torch

        given = torch.as_tensor(points_px, device=self.device)
        height_px, width_px = self.image.size_px
        scales = self.side_px / width_px, self.side_px / height_px
        points = torch.stack([given[:, axis] * scale for axis, scale in enumerate(scales)], dim=1)
        points = points.float()[None, :, None]
        labels = torch.ones(points.shape[:3], dtype=torch.int, device=self.device)
        with inference(self.device.type, self.decoder_precision):
            sparse, dense = self.network.get_prompt_embeddings(input_points=points, input_labels=labels)
            logits, predicted, *_ = self.network.mask_decoder(
                image_embeddings=self.image.features[-1],
                image_positional_embeddings=self.places,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                high_resolution_features=self.image.features[:-1],
            )
        return logits[0].float(), predicted[0].float()

    def upscale(self, logits: Any) -> Any:
        """See `PromptableNetwork.upscale`; bilinear, in one step to the image size."""
        return enlarged(logits, self.image.size_px)


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

    Returns uint16 [len(order) - 1, H, W]. Where instances overlap, the highest logit wins. Frames are passed a few at a
    time to the image encoder, and instances to the memory; state that no later frame needs is dropped.
    """
    import torch

    numbers = [int(number) for number in np.unique(labels) if number]
    found = np.zeros((len(order) - 1, *labels.shape), np.uint16)
    if not numbers or len(order) < 2:
        return found
    with inference(seen.device.type, seen.precision):
        row, waiting = 0, []  # logits of frames whose maps are not computed yet
        for logits in _followed(seen, frames, labels, numbers, order):
            waiting.append(logits)
            if len(waiting) == seen.frames_per_batch or row + len(waiting) == len(found):
                places = label_maps(filled(torch.stack(waiting), fill_holes_px), labels.shape)
                found[row : row + len(waiting)] = np.array([0, *numbers], np.uint16)[places.cpu().numpy()]
                row, waiting = row + len(waiting), []
    return found


def _followed(
    seen: Sam2Prompted, frames: np.ndarray, labels: np.ndarray, numbers: list[int], order: Sequence[int]
) -> Iterator[Any]:
    """Low-resolution logits of each frame after the first: float32 [N, s, s], in order of `numbers`."""
    import torch

    given = torch.from_numpy(labels.astype(np.int32)).to(seen.device)
    groups = [
        numbers[start : start + seen.tracked_per_batch] for start in range(0, len(numbers), seen.tracked_per_batch)
    ]
    tracked: list[TrackedInstances] = []
    for step, vision in enumerate(_visions(seen, frames, order)):
        if not step:
            for group in groups:
                masks = torch.stack([given == number for number in group])
                tracked.append(
                    TrackedInstances(seen.network, vision, prompt_masks(masks, seen.network.config.image_size))
                )
        else:
            yield torch.cat([one.follow(vision, is_last=step + 1 == len(order)) for one in tracked])


def _visions(seen: Sam2Prompted, frames: np.ndarray, order: Sequence[int]) -> Iterator[Vision]:
    for start in range(0, len(order), seen.frames_per_batch):
        part = order[start : start + seen.frames_per_batch]
        yield from vision_of(seen.network, seen.pixels([frames[index] for index in part]))


def label_maps(logits: Any, size_px: tuple[int, ...]) -> Any:
    """Which instance has the highest logit at each pixel, from 1; 0 where none is above 0.

    `logits`: float32 [T, N, s, s] -> int32 [T, H, W]. One instance of a frame at a time is enlarged.
    """
    import torch

    maps = torch.zeros((len(logits), *size_px), dtype=torch.int32, device=logits.device)
    highest = torch.zeros(maps.shape, dtype=logits.dtype, device=logits.device)
    for number in range(1, logits.shape[1] + 1):
        full = enlarged(logits[:, number - 1], size_px)
        higher = full > highest
        maps = torch.where(higher, number, maps)
        highest = torch.where(higher, full, highest)
    return maps


def filled(logits: Any, fill_holes_px: int) -> Any:
    """Set holes of at most `fill_holes_px` low-resolution pixels to a logit just above 0; float32 [..., s, s].

    Holes are found on the CPU, for equal results on all devices, in threads: masks leave the device together, one bit
    per pixel, and the holes come back so. The authors' CUDA extension does the same, if compiled.
    """
    import torch

    if not fill_holes_px:
        return logits
    side = logits.shape[-1]
    masks = unpacked_bits(packed_bits(logits.reshape(-1, logits.shape[-2], side) > 0).cpu().numpy(), logits.shape[-2:])
    holes = np.stack(in_threads(lambda mask: fill_holes(mask, fill_holes_px + 1) & ~mask, masks))
    bits = torch.from_numpy(np.packbits(holes.reshape(len(holes), -1), axis=1)).to(logits.device)
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=logits.device)
    flat = (bits[..., None] >> places & 1).flatten(1)[:, : side * logits.shape[-2]]
    return torch.where(flat.view(logits.shape).bool(), FILLED_LOGIT, logits)
