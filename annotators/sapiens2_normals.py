"""Surface normals of persons by Sapiens2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np

from openuni.annotators._sapiens2 import Sapiens2
from openuni.annotators._temporal_consistency import WarpedChange, normal_angle_deg
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.normal import Normal
from openuni.manifests.modalities.segmentation import Segmentation

MIN_LENGTH = 1e-6  # shorter averages have no direction


class PersonNormalsOfClip(NamedTuple):
    """Normals of every frame, and what they say about the network's axes and consistency."""

    normal: Normal
    facing_share: Annotated[
        float | None,
        "fraction of the pixels with a surface whose normal faces the viewer, 0 to 1; near 1, since a visible surface "
        "faces the viewer; near 0 if `axes` is wrong; null without a surface",
    ]
    surface_share: Annotated[float, "fraction of the pixels with a surface, 0 to 1; 1 without `foreground`"]
    flow_change_deg: Annotated[
        float | None,
        "change of the direction along the optical flow, degrees: median over pixels with valid flow, mean over "
        "adjacent frames; null without valid flow",
    ]


@dataclass(frozen=True)
class Sapiens2Normals(Sapiens2):
    """Normals by Sapiens2, at the size of the frames; camera space: +x right, +y up, +z to the viewer.

    The network was trained on persons: what it says of the background is arbitrary. With `foreground`, pixels outside
    of that segmentation have no surface; its authors do the same with their body parts (`sapiens2_parts`).

    Frames are resized to the network's input with their aspect ratio, padded, and predicted independently. Normals are
    resized back bilinearly and normalized to unit length. Results are those of the library's processor and network.

    The authors give the axes as those of the camera, without their signs. `axes` says how the network's numbers are
    read; `facing_share` says whether that is right: look at it before a long run.
    """

    checkpoint: Annotated[str, "Sapiens2 normal checkpoint in transformers format: Hugging Face name or folder"] = (
        "facebook/sapiens2-normal-0.4b"
    )
    axes: Annotated[
        Literal["opengl", "opencv"],
        "axes of the network's output: opengl, y up and z to the viewer; opencv, y down and z away from the viewer",
    ] = "opengl"
    foreground: Annotated[
        str,
        'segmentation whose background has no surface: "sapiens2_parts.segmentation", or another; empty: all pixels '
        "have one",
    ] = ""

    origin: ClassVar[str] = "Khirodkar et al. 2026 (arXiv:2604.21681); transformers.Sapiens2ForNormalEstimation"
    task: ClassVar[str] = "normal"
    network_name: ClassVar[str] = "Sapiens2ForNormalEstimation"
    outputs: ClassVar[int | None] = 3

    def requires(self) -> Sequence[str]:
        """The segmentation, if any."""
        return (self.foreground,) if self.foreground else ()

    def run(self, model: Any, clip: DecodedClip) -> PersonNormalsOfClip:
        """Normals float32 [T, H, W, 3], unit length, or zero outside of the foreground."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "PersonNormalWindows":
        """See `Operator.start_windows`."""
        return PersonNormalWindows(self, model)

    def window_step(self) -> int:
        """Windows hold whole batches."""
        return self.frames_per_batch

    def normals(self, model: Any, frames: np.ndarray) -> np.ndarray:
        """Normals float32 [T, H, W, 3] of frames, uint8 [T, H, W, 3] RGB, of unit length."""
        import torch

        processor, parts = model[1], []
        for start in range(0, len(frames), self.frames_per_batch):
            batch = frames[start : start + self.frames_per_batch]
            found = self.predict(model, batch)
            found.normals = found.normals.float()
            sides = processor.size["height"], processor.size["width"]
            if found.normals.shape[2:] != sides and processor.do_pad:  # else padding is cut off at the wrong place
                raise OpenUniError(
                    f"sapiens2_normals: {self.checkpoint} gives maps of {tuple(found.normals.shape[2:])} px for inputs "
                    f"of {sides}, expected equal sizes. Use a checkpoint whose preprocessor_config.json fits it."
                )
            maps = processor.post_process_normal_estimation(
                found, source_sizes=[tuple(batch.shape[1:3])] * len(batch), do_remove_padding=bool(processor.do_pad)
            )
            parts.append(torch.stack([one["normals"] for one in maps]).permute(0, 2, 3, 1).cpu().numpy())
        vectors = np.concatenate(parts)
        if self.axes == "opencv":
            vectors = vectors * np.array([1, -1, -1], np.float32)
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        found_unit: np.ndarray = np.where(
            length > MIN_LENGTH, vectors / np.maximum(length, MIN_LENGTH), np.array([0, 0, 1], np.float32)
        )
        return found_unit


class PersonNormalWindows(WindowedRun[PersonNormalsOfClip]):
    """Normals of the new frames of each window, and what the scores need of them."""

    def __init__(self, operator: Sapiens2Normals, model: Any) -> None:
        self.operator, self.model = operator, model
        self.change = WarpedChange(normal_angle_deg)
        self.pixels = self.surface = self.facing = 0

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        vectors = self.operator.normals(self.model, window.new_frames)
        surface = np.ones(vectors.shape[:3], bool)
        if self.operator.foreground:
            given = window.maps[Segmentation.name].resize(*vectors.shape[1:3])
            surface = given.array[window.overlap_frames :, ..., 0] > 0
            vectors = vectors * surface[..., None]
        self.pixels += surface.size
        self.surface += int(np.count_nonzero(surface))
        self.facing += int(np.count_nonzero(vectors[..., 2] > 0))
        normal = Normal(vectors)
        self.change.add(window, normal)
        return {"normal": normal}

    def result(self) -> PersonNormalsOfClip:
        """See `WindowedRun.result`."""
        return PersonNormalsOfClip(
            None,  # type: ignore[arg-type]  # `add` has returned all maps
            facing_share=self.facing / self.surface if self.surface else None,
            surface_share=self.surface / self.pixels,
            flow_change_deg=self.change.mean(),
        )
