"""A model trained by this project as an annotator: what it has learnt to estimate from RGB extends the corpus.

In a recipe it stands under its dotted name: [annotators."openuni.unified"].
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
from openuni.manifests.errors import OpenUniError, unknown_name
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
    """What the model made of the clip; None for what was not asked for."""

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
        "mean absolute difference of the renderings of overlapping windows, 0 to 1, all modalities together: how far "
        "the model contradicts itself; null where one window covers the clip",
    ]


@dataclass(frozen=True)
class Unified(Annotator):
    """Estimates modalities from a clip's RGB with a trained run, in the mode `rgb->MODALITY`.

    The model sees windows of as many frames as it was trained with (of shorter clips all, the last one repeated up to
    4k + 1), at the number of pixels it was trained with and the clip's own shape, and the clip's caption. Windows
    overlap; their renderings are blended linearly there (those of coded colours, segmentation and densepose, switch in
    the middle; ids are renamed to those of the window before). Depth of a window is first fitted to the one before by
    scale and shift. Maps are read back from the renderings by the modality's default constants, as every generated
    rendering is: depth is disparity in 0..1. They have the size at which the model works, at most that of the frames.
    """

    run_dir: Annotated[str, "folder of the training run; its latest checkpoint, averaged weights"] = ""
    modalities: Annotated[tuple[str, ...], "what to estimate; the run must have been trained for it"] = ("depth",)
    steps: Annotated[int, "steps of the sampler", Ge(1)] = 30
    guidance: Annotated[float, "classifier-free guidance on the caption; 1: none"] = 1.0
    seed: Annotated[int, "of the noise, the same for all clips and windows"] = 0
    overlap_frames: Annotated[int, "frames that neighbouring windows share", Ge(1)] = 8

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
        """What it is to estimate."""
        return self.modalities

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The run's record and averaged weights, and what its codecs need."""
        from openuni.training.data.fixed_texts import open_latent_codec, open_text_codec

        run = self._run("cpu")
        files = [run.folder / "run.json", run.checkpoint.path / "ema.safetensors"]
        codecs = [open_latent_codec(run.record["latents"]), open_text_codec(run.record["text"])]
        own = [Checkpoint(str(path), "path", self.licence) for path in files]
        return [*own, *(checkpoint for codec in codecs for checkpoint in codec.checkpoints())]

    def load(self, device: str) -> "Estimator":
        """The run's model and codecs. Raises `OpenUniError` for what the run was not trained to estimate."""
        estimator = Estimator(self._run(device), self)
        _ = estimator.tasks, estimator.run.model, estimator.run.latent_codec, estimator.run.text_codec
        return estimator

    def run(self, model: "Estimator", clip: DecodedClip) -> EstimatedMaps:
        """One map per frame for each of `modalities`."""
        size_px = model.size_px(*clip.frames.shape[1:3])
        frames = resize_smooth(clip.frames.astype(np.float32) / 255, *size_px)
        missing = max(0, min(model.frames, -(-(len(frames) - 1) // 4) * 4 + 1) - len(frames))
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        windows = window_spans(len(frames), min(model.frames, len(frames)), self.overlap_frames)
        made = [model.estimate(frames[start:stop], clip.clip.caption or "") for start, stop in windows]
        joined = {name: stitch(name, [one[name] for one in made], windows) for name in self.modalities}
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
        from openuni.training.run import Run

        if not self.run_dir:
            raise OpenUniError('openuni.unified: run_dir is empty. Give the folder of a training run: run_dir = "run/"')
        return Run.open(Path(self.run_dir).expanduser(), device)


class Estimator:
    """A loaded run, and how it is asked."""

    def __init__(self, run: "Run", options: Unified) -> None:
        self.run, self.options = run, options
        self.frames: int = run.record["latents"]["frames"]

    @cached_property
    def tasks(self) -> "list[Task]":
        """The fewest tasks of the run, from RGB alone, that make all that is asked for."""
        known = [task for task in self.run.tasks if task.conditions == ("rgb",)]
        chosen: list[Task] = []
        for name in self.options.modalities:
            if any(name in task.targets for task in chosen):
                continue
            fit = [task for task in known if name in task.targets]
            if not fit:
                trained = ", ".join(str(task) for task in self.run.tasks)
                wanted = f'{self.run.folder} was not trained for "rgb->{name}"'
                raise OpenUniError(f"openuni.unified: {wanted}; it was trained for: {trained}")
            asked = set(self.options.modalities)
            chosen.append(max(fit, key=lambda task: (len(asked & set(task.targets)), -len(task.targets))))
        return chosen

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Height and width near the frames' shape with the training's number of pixels, in whole tokens."""
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
        """float32 [T, H, W, 3] RGB in 0..1 -> by modality its rendering, of the same shape and range."""
        from openuni.training.sampler import SamplingOptions

        options = self.options
        sampling = SamplingOptions(options.steps, self.run.recipe.flow.shift, options.guidance, options.seed)
        size = frames.shape[0], frames.shape[1], frames.shape[2]
        found: dict[str, np.ndarray] = {}
        for task in self.tasks:
            found |= self.run.render(caption, list(task.targets), {"rgb": frames}, size, sampling)
        return found
