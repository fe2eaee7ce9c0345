"""Annotator that estimates modalities with a model trained by OpenUni.

A recipe refers to it by its dotted name: [annotators."openuni.unified"].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.inference.windows import stitch, window_spans
from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.options import Formerly
from openuni.manifests.errors import ClipError, OpenUniError, unknown_name
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.foreground import Foreground
from openuni.manifests.modalities.irradiance import Irradiance
from openuni.manifests.modalities.normal import Normal
from openuni.manifests.modalities.segmentation import Segmentation

if TYPE_CHECKING:
    from openuni.training.run import Run
    from openuni.training.tasks import Task


class EstimatedMaps(NamedTuple):
    """The estimated maps; None for modalities that are not among the option `modalities`."""

    depth: Depth | None
    flow: Flow | None
    segmentation: Segmentation | None
    densepose: DensePose | None
    normal: Normal | None
    albedo: Albedo | None
    irradiance: Irradiance | None
    alpha: Alpha | None
    foreground: Foreground | None
    background: Background | None
    seam_error: Annotated[
        float | None,
        "mean absolute difference of the renderings of overlapping windows, 0 to 1, mean over all modalities: "
        "measures how consistent the estimates are; null if one window covers the clip",
    ]


@dataclass(frozen=True)
class Unified(Annotator):
    """Estimates modalities from a clip's RGB with a training run: its tasks `rgb->MODALITY`.

    The inputs are the clip's caption and windows of as many frames as the model was trained with. A shorter clip is one
    window; its last frame is repeated up to 4k + 1 frames. Frames are resized to the number of pixels of the training
    data, with the clip's aspect ratio. Overlapping windows are stitched as described in `openuni.inference.windows`.
    Maps are read from the renderings with the modality's default constants, as for every generated rendering; so depth
    is disparity in 0..1. They have the size at which the model works, at most that of the frames.
    """

    run_dir: Annotated[str, "training run, whose latest EMA weights are used, or exported model (folder)"] = ""
    modalities: Annotated[tuple[str, ...], "modalities to estimate; the run must have been trained for them"] = (
        "depth",
    )
    steps: Annotated[int, "number of solver steps", Ge(1)] = 30
    guidance_scale: Annotated[
        float, "classifier-free guidance scale for the caption; 1 disables guidance", Formerly("guidance")
    ] = 1.0
    seed: Annotated[int, "random seed of the noise, the same for all clips and windows"] = 0
    overlap_frames: Annotated[int, "number of frames that adjacent windows share", Ge(1)] = 8

    gpus: ClassVar[float] = 1.0
    origin: ClassVar[str] = "a model trained by this project, see train/"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "modalities", tuple(self.modalities))
        known = [name for name in EstimatedMaps._fields[:-1] if find_modality(name).invertible]
        for name in self.modalities:
            if name not in known:
                raise OpenUniError(unknown_name("openuni.unified: modality", name, known))

    def produces(self) -> Sequence[str]:
        """The option `modalities`."""
        return self.modalities

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The run's record, its EMA weights, and the checkpoints of its codecs."""
        from openuni.training.data.fixed_texts import open_latent_codec, open_text_codec

        run = self._run("cpu")
        codecs = [open_latent_codec(run.record["latents"]), open_text_codec(run.record["text"])]
        own = [Checkpoint(str(path), "path", self.licence) for path in run.defining_files]
        return [*own, *(checkpoint for codec in codecs for checkpoint in codec.checkpoints())]

    def load(self, device: str) -> "Estimator":
        """Load the run's model and codecs.

        Raises `OpenUniError` if the run was not trained to estimate one of the modalities.
        """
        estimator = Estimator(self._run(device), self)
        _ = estimator.tasks, estimator.run.model, estimator.run.latent_codec, estimator.run.text_codec
        return estimator

    def run(self, model: "Estimator", clip: DecodedClip) -> EstimatedMaps:
        """Estimate the maps of all modalities for every frame of the clip."""
        size_px = model.size_px(*clip.frames.shape[1:3])
        frames = resize_smooth(clip.frames.astype(np.float32) / 255, *size_px)
        missing = max(0, min(model.frames, -(-(len(frames) - 1) // 4) * 4 + 1) - len(frames))
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        windows = window_spans(len(frames), min(model.frames, len(frames)), self.overlap_frames)
        windowed = [model.estimate(frames[start:stop], clip.clip.caption or "") for start, stop in windows]
        joined = {name: stitch(name, [one[name] for one in windowed], windows) for name in self.modalities}
        scale = min(1.0, math.sqrt(size_px[0] * size_px[1] / (clip.frames.shape[1] * clip.frames.shape[2])))
        target = max(1, round(clip.frames.shape[1] * scale)), max(1, round(clip.frames.shape[2] * scale))
        maps: dict[str, Any] = dict.fromkeys(EstimatedMaps._fields)
        for name, whole in joined.items():
            signal = find_modality(name).from_rgb(whole.rendering[: len(clip.frames)])
            maps[name] = signal if signal.size_px == target else signal.resize(*target)
        seams = [whole.seam_error for whole in joined.values() if whole.seam_error is not None]
        maps["seam_error"] = float(np.mean(seams)) if seams else None
        return EstimatedMaps(**maps)

    def _run(self, device: str) -> "Run":
        from openuni.training.export.exported_model import open_trained

        if not self.run_dir:
            raise OpenUniError('openuni.unified: run_dir is empty. Set it to a training run: run_dir = "run/"')
        return open_trained(Path(self.run_dir).expanduser(), device)


class Estimator:
    """A loaded run and the options to sample from it."""

    def __init__(self, run: "Run", options: Unified) -> None:
        self.run, self.options = run, options
        self.frames: int = run.record["latents"]["frames"]

    @cached_property
    def tasks(self) -> "list[Task]":
        """The tasks, as few as possible, that estimate all modalities from RGB alone. Raises `OpenUniError`."""
        known = [task for task in self.run.tasks if task.conditions == ("rgb",)]
        chosen: list[Task] = []
        for name in self.options.modalities:
            if any(name in task.targets for task in chosen):
                continue
            fit = [task for task in known if name in task.targets]
            if not fit:
                trained = ", ".join(str(task) for task in self.run.tasks)
                missing = f'{self.run.folder} was not trained for "rgb->{name}"'
                raise OpenUniError(f"openuni.unified: {missing}; it was trained for: {trained}")
            asked = set(self.options.modalities)
            chosen.append(max(fit, key=lambda task: (len(asked & set(task.targets)), -len(task.targets))))
        return chosen

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Height and width with about the training data's number of pixels and the frames' aspect ratio, in tokens."""
        trained = self.run.record["latents"]["size_px"]
        rows, columns = self.run.record["latent_shape"][2:]
        patch = self.run.model.patch[1:]
        step = trained[0] // rows * patch[0], trained[1] // columns * patch[1]
        if height_px * trained[1] == width_px * trained[0]:
            return trained[0], trained[1]
        scale = math.sqrt(trained[0] * trained[1] / (height_px * width_px))
        return (
            max(1, round(height_px * scale / step[0])) * step[0],
            max(1, round(width_px * scale / step[1])) * step[1],
        )

    def estimate(self, frames: np.ndarray, caption: str) -> dict[str, np.ndarray]:
        """RGB float32 [T, H, W, 3] in 0..1 -> renderings by modality, of the same shape and range.

        Raises `ClipError` if they are NaN or infinite.
        """
        from openuni.training.finite import NonFiniteError
        from openuni.training.sampler import SamplingOptions

        options = self.options
        sampling = SamplingOptions(
            options.steps, self.run.recipe.flow_matching.shift, options.guidance_scale, options.seed
        )
        size = frames.shape[0], frames.shape[1], frames.shape[2]
        found: dict[str, np.ndarray] = {}
        for task in self.tasks:
            try:
                found |= self.run.render(caption, list(task.targets), {"rgb": frames}, size, sampling)
            except NonFiniteError as error:
                raise ClipError(f"openuni.unified: {error}") from error
        return found
