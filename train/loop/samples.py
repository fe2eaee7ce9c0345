"""Samples during training: videos of fixed prompts and held-out clips, from the EMA weights.

All draws are functions of the seed and of names of their own, so the training gives the same with and without samples.
Every rank computes the same samples, as the weights of FSDP2 are gathered by all; rank 0 decodes and writes them.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import Store
from openuni.manifests.video.encode import write_video
from openuni.training import sampler
from openuni.training.data.batches import Loader
from openuni.training.data.fixed_texts import EMPTY, embedded_texts, open_latent_codec
from openuni.training.data.plan import Sample, usable_clips
from openuni.training.finite import NonFiniteError
from openuni.training.loop.ranks import Ranks
from openuni.training.loop.setup import Setup
from openuni.training.loop.weights import Ema
from openuni.training.randomness import named_seed
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import autocast
from openuni.training.run_files import SAMPLES_FOLDER, checkpoint_name
from openuni.training.tasks import Task

DEFAULT_FPS = 16.0
logger = logging.getLogger(__name__)


class Subject(NamedTuple):
    """What one sample is made of."""

    task: Task
    name: str  # part of the file name
    conditions: dict[str, torch.Tensor]  # clean latents [1, C, T, H, W]
    text: dict[str, torch.Tensor]  # [1, L, D] by stream
    shape: tuple[int, ...]  # latents [C, T, H, W]


class Samples:
    """The samples of a run; nothing if `[samples] every_steps` is 0."""

    def __init__(self, setup: Setup, loader: Loader, ranks: Ranks, folder: Path) -> None:
        """Read the latents of held-out clips and embed the prompts.

        Raises `OpenUniError` for tasks that the run does not train, and prompts that none of them uses.
        """
        self.setup, self.loader, self.ranks = setup, loader, ranks
        self.folder = folder / SAMPLES_FOLDER
        self.recipe: TrainingRecipe = setup.recipe
        self.options = self.recipe.samples
        self.subjects: list[Subject] = []
        if self.options.every_steps:
            self.tasks = ranks.together(self._tasks)
            ranks.first(self._prompts)  # which stores the embeddings for the others
            self.subjects = ranks.together(lambda: [*self._of_prompts(), *self._of_clips()])

    def is_due(self, step: int) -> bool:
        """Whether samples are made after this step."""
        every = self.options.every_steps
        return bool(self.subjects) and (step % every == 0 or step == self.recipe.optimizer.steps)

    def write(self, step: int, ema: Ema, device: torch.device, log: Any) -> None:
        """Sample all subjects, write them to `samples/step-.../`, and show them in TensorBoard (`log`)."""
        with ema.applied() as model, autocast(self.recipe, device):
            made = [(subject, self._sampled(model, subject, device)) for subject in self.subjects]
        self.ranks.first(lambda: self._write(step, device, log, made))

    def _sampled(self, model: Any, subject: Subject, device: torch.device) -> dict[str, np.ndarray]:
        """Latents of the targets [C, T, H, W]; empty, with a warning, if they are not finite."""
        inputs = sampler.SamplerInputs(
            conditions={name: latents.to(device) for name, latents in subject.conditions.items()},
            text={name: rows.to(device) for name, rows in subject.text.items()},
            unconditional=self.setup.texts.empty,
            caption_streams=_captioned(self.setup, subject.task),
        )
        options = sampler.SamplingOptions(
            steps=self.options.solver_steps,
            shift=self.recipe.flow_matching.shift,
            guidance_scale=self.options.guidance_scale if inputs.caption_streams else 1.0,
            seed=named_seed(self.recipe.seed, "samples", subject.name),
        )
        try:
            found = sampler.sample(model, subject.task, inputs, (1, *subject.shape), options)
        except NonFiniteError as error:  # on all ranks: their inputs and weights are the same
            logger.warning("no sample of %s: %s", subject.name, error)
            return {}
        return {name: latents[0].float().cpu().numpy() for name, latents in found.items()}

    def _write(
        self, step: int, device: torch.device, log: Any, made: Sequence[tuple[Subject, dict[str, np.ndarray]]]
    ) -> None:
        codec = open_latent_codec(self.setup.record["latents"])
        decoder = codec.load(str(device))  # for as long as it is needed: its memory is the training's
        place = self.folder / checkpoint_name(step)
        place.mkdir(parents=True, exist_ok=True)
        for subject, latents in made:
            for modality, array in latents.items():
                rendering = codec.decode(decoder, array)
                frames = (np.clip(np.nan_to_num(rendering), 0, 1) * 255).round().astype(np.uint8)
                self._video(place / f"{_file_name(subject)}.{modality}.mp4", modality, frames)
                log.video(f"samples/{subject.name}/{modality}", frames, step)

    def _video(self, path: Path, modality: str, frames: np.ndarray) -> None:
        even = frames.shape[1] % 2 == frames.shape[2] % 2 == 0
        fps = self.setup.record["data"].get("fps") or DEFAULT_FPS
        is_picture = find_modality(modality).is_picture and even
        write_video(path, frames, fps, pixels="yuv420p" if is_picture else "yuv444p", threads=1)

    def _tasks(self) -> list[Task]:
        trained = [task for task in self.setup.mix.tasks if task.targets and not task.generates_text]
        if not self.options.tasks:
            return trained
        wanted = [Task.parse(text) for text in self.options.tasks]
        for task in wanted:
            if task not in trained:
                raise OpenUniError(
                    f'[samples] tasks: "{task}" is not among the tasks of this run that generate video alone: '
                    f"{', '.join(map(str, trained))}"
                )
        return wanted

    def _prompts(self) -> dict[str, torch.Tensor]:
        """Embeddings of the prompts, by text: from the run folder, else with the text codec, on the CPU."""
        texts = {text: text for text in self.options.prompts}
        if not texts:
            return {}
        Store(str(self.folder.parent)).local(SAMPLES_FOLDER).mkdir(exist_ok=True)
        return embedded_texts(self.setup.record["text"], texts, self.folder / "prompts.safetensors")

    def _of_prompts(self) -> Iterator[Subject]:
        rows = self._prompts()
        tasks = [task for task in self.tasks if not task.conditions and _captioned(self.setup, task)]
        if rows and not tasks:
            raise OpenUniError(
                "[samples] prompts: no task of this run makes video from a prompt alone. Leave the prompts out."
            )
        for task in tasks:
            for number, text in enumerate(self.options.prompts):
                by_stream = {name: self._text(task, name, rows[text])[None] for name in task.streams}
                shape = tuple(self.setup.record["latent_shape"])
                yield Subject(task, f"{task}/prompt-{number}", {}, by_stream, shape)

    def _text(self, task: Task, stream: str, caption: torch.Tensor) -> torch.Tensor:
        # a prompt may be longer than all captions of the corpus
        texts = replace(self.setup.texts, length=max(self.setup.texts.length, len(caption)))
        condition = self.setup.model.text_condition(task, stream)
        if condition == "caption":
            return texts.padded(caption)
        return texts.prompt(stream) if condition == "prompt" else texts.padded(texts.rows[EMPTY])

    def _of_clips(self) -> Iterator[Subject]:
        """The first held-out clips (by clip_id) that have all streams of a task."""
        index = self.setup.index
        usable = usable_clips(index, self.setup.mix) & index.held_out
        if index.window is not None:
            usable &= index.window == 0
        for task in self.tasks:
            clips = [int(clip) for clip in np.flatnonzero(usable) if self._has_streams(int(clip), task)]
            for clip in clips[: self.options.clips]:
                clip_id = index.clip_ids[clip]
                batch = self.loader.batch([Sample(clip, task)], [{}], [("validation", clip_id)])
                conditions = {name: batch.clean[name].float() for name in task.conditions}
                shape = tuple(batch.clean[task.targets[0]].shape[1:])
                yield Subject(task, f"{task}/{clip_id}", conditions, batch.text, shape)

    def _has_streams(self, clip: int, task: Task) -> bool:
        return set(task.streams) <= set(self.setup.index.streams(int(self.setup.index.present[clip])))


def _captioned(setup: Setup, task: Task) -> tuple[str, ...]:
    """Streams that are conditioned on the caption."""
    return tuple(name for name in task.streams if setup.model.text_condition(task, name) == "caption")


def _file_name(subject: Subject) -> str:
    """A name without characters that file systems treat in their own way."""
    return subject.name.replace("->", "-to-").replace("/", "_")
