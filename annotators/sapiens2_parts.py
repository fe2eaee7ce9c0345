"""Body parts of persons by Sapiens2: which of 28 parts each pixel shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import guide_flow, warp
from openuni.annotators._sapiens2 import Sapiens2
from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.modalities.segmentation import Segmentation

PARTS = (  # the authors' classes, by id
    *("background", "apparel", "eyeglass", "face_neck", "hair", "left_foot", "left_hand", "left_lower_arm"),
    *("left_lower_leg", "left_shoe", "left_sock", "left_upper_arm", "left_upper_leg", "lower_clothing", "right_foot"),
    *("right_hand", "right_lower_arm", "right_lower_leg", "right_shoe", "right_sock", "right_upper_arm"),
    *("right_upper_leg", "torso", "upper_clothing", "lower_lip", "upper_lip", "lower_teeth", "upper_teeth", "tongue"),
)


class Part(NamedTuple):
    """One body part of a clip."""

    id: Annotated[int, "value in the map, from 1 to 28"]
    name: Annotated[str, "name of the part; left and right are the person's"]
    frames: Annotated[int, "number of frames that show the part"]
    area_share: Annotated[float, "mean fraction of the frame that it covers, over the frames that show it, 0 to 1"]


class PartsOfClip(NamedTuple):
    """Body parts of every frame, a table of them, and scores."""

    segmentation: Segmentation
    parts: Annotated[list[Part], "one entry per part that is shown, by id"]
    part_count: Annotated[int, "number of parts that are shown"]
    covered_share: Annotated[float, "fraction of all pixels that show a person, 0 to 1"]
    person_share: Annotated[float, "fraction of frames that show a person, 0 to 1"]
    confidence_mean: Annotated[
        float | None, "mean probability of the chosen part over the pixels that show a person, 0 to 1; null without"
    ]
    part_stability: Annotated[
        float | None,
        "fraction of body pixels with the same part in the next frame, along the optical flow, 0 to 1; null if no body "
        "pixel has valid flow",
    ]


@dataclass(frozen=True)
class Sapiens2Parts(Sapiens2):
    """Body part of every pixel by Sapiens2, at the size of the frames: 28 parts, 0 is background.

    Ids are the authors' classes (`PARTS`), the same for all persons and clips; left and right are the person's. Persons
    are not told apart. Frames are resized to the network's input (the aspect ratio is not preserved) and predicted
    independently; logits are resized back bilinearly before the most likely part is chosen. Results are those of the
    library's processor and network.
    """

    checkpoint: Annotated[
        str, "Sapiens2 segmentation checkpoint in transformers format: Hugging Face name or folder"
    ] = "facebook/sapiens2-seg-0.4b"

    origin: ClassVar[str] = "Khirodkar et al. 2026 (arXiv:2604.21681); transformers.Sapiens2ForSemanticSegmentation"
    task: ClassVar[str] = "seg"
    network_name: ClassVar[str] = "Sapiens2ForSemanticSegmentation"
    outputs: ClassVar[int | None] = len(PARTS)

    def run(self, model: Any, clip: DecodedClip) -> PartsOfClip:
        """Parts, uint16 [T, H, W, 1] at the size of the frames; 0 is background."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "PartWindows":
        """See `Operator.start_windows`."""
        return PartWindows(self, model)

    def window_step(self) -> int:
        """Windows hold whole batches."""
        return self.frames_per_batch

    def parts(self, model: Any, frames: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """Parts uint16 [T, H, W] of frames, uint8 [T, H, W, 3] RGB, and the summed probability of parts in each."""
        labels, sums = np.zeros(frames.shape[:3], np.uint16), []
        for start in range(0, len(frames), self.frames_per_batch):
            batch = frames[start : start + self.frames_per_batch]
            found = self.predict(model, batch)
            found.logits = found.logits.float()
            maps = model[1].post_process_semantic_segmentation(
                found, target_sizes=[tuple(batch.shape[1:3])] * len(batch), return_segmentation_scores=True
            )
            for place, one in enumerate(maps, start):
                chosen = one["segmentation"]
                likely = one["segmentation_scores"].softmax(dim=0).amax(dim=0)
                labels[place] = chosen.cpu().numpy()
                sums.append(float(likely[chosen > 0].double().sum()))
        return labels, sums


class PartWindows(WindowedRun[PartsOfClip]):
    """Parts of the new frames of each window, and what the scores need of them."""

    def __init__(self, operator: Sapiens2Parts, model: Any) -> None:
        self.operator, self.model = operator, model
        self.areas: list[np.ndarray] = []  # int64 [29] per frame
        self.likely: list[float] = []  # summed probability of the parts in each frame
        self.frame_px = 1
        self.last: np.ndarray | None = None  # parts of the last frame, [1, H, W]
        self.body = self.same = 0  # pixels of a body that have a successor, and those of the same part

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        labels, likely = self.operator.parts(self.model, window.new_frames)
        self.frame_px = labels[0].size
        self.areas += [np.bincount(frame.ravel(), minlength=len(PARTS)) for frame in labels]
        self.likely += likely
        joined = labels if self.last is None else np.concatenate([self.last, labels])
        self.last = labels[-1:].copy()
        if joined.any():  # else there is no body, and the flow is not needed
            self._follow(window, joined)
        return {"segmentation": Segmentation(labels[..., None])}

    def _follow(self, window: DecodedClip, labels: np.ndarray) -> None:
        flow = guide_flow(window)
        small = resize_nearest(labels[..., None], *flow.size_px)[..., 0]
        for now, after, forward, valid in zip(small, small[1:], flow.forward, flow.forward_valid, strict=False):
            then = warp(after, forward, nearest=True)
            either = valid & ((now > 0) | (then > 0))
            self.body += int(either.sum())
            self.same += int((either & (now == then)).sum())

    def result(self) -> PartsOfClip:
        """See `WindowedRun.result`."""
        areas = np.stack(self.areas)[:, 1:]
        shown = areas > 0
        body_px = int(areas.sum())
        parts = [
            Part(
                id=place + 1,
                name=PARTS[place + 1],
                frames=int(shown[:, place].sum()),
                area_share=float(areas[shown[:, place], place].mean() / self.frame_px),
            )
            for place in np.flatnonzero(shown.any(axis=0)).tolist()
        ]
        return PartsOfClip(
            None,  # type: ignore[arg-type]  # `add` has returned all maps
            parts=parts,
            part_count=len(parts),
            covered_share=body_px / (len(areas) * self.frame_px),
            person_share=float(shown.any(axis=1).mean()),
            confidence_mean=float(np.sum(self.likely)) / body_px if body_px else None,
            part_stability=self.same / self.body if self.body else None,
        )
