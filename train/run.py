"""A training run: opening its folder, sampling and generating from it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openuni.manifests.contracts.modality import Modality, read_rendering
from openuni.manifests.errors import OpenUniError
from openuni.training import sampler
from openuni.training.data.curriculum import trained_tasks
from openuni.training.data.fixed_texts import EMPTY, FixedTexts, fixed_rows, open_latent_codec, open_text_codec
from openuni.training.data.subjects import check_run_subjects
from openuni.training.data.tokenizer import Tokenizer, make_tokenizer, tokenizer_identity
from openuni.training.export.exporting import Exportable
from openuni.training.finite import NonFiniteError
from openuni.training.guidance import caption_streams, check_guidance, check_prompt, guided_streams
from openuni.training.loop.log import read_log
from openuni.training.loop.training_checkpoint import TrainingCheckpoint, list_checkpoints, load_model
from openuni.training.model import Model, Streams
from openuni.training.objectives.text_flow_matching import TextSampler
from openuni.training.recipe import TrainingRecipe
from openuni.training.run_files import RUN_FILE, TEXTS_FILE
from openuni.training.run_record import empty_model, read_record
from openuni.training.tasks import TEXT, Task

logger = logging.getLogger(__name__)
NON_FINITE_ADVICE = (
    "Use guidance scales nearer to 1, precision float32 in training, or an earlier checkpoint of the run."
)
OVERSHOOT = 1e-3  # tolerated excess of a condition rendering over 0..1, as interpolation and video codecs cause it


class Run(Exportable):
    """A training run. `Run.open(folder)` opens one, `train` creates one. Weights and codecs are loaded lazily."""

    def __init__(self, folder: Path, record: dict[str, Any], device: str = "auto") -> None:
        self.folder = folder
        self.record = record  # run.json
        self.device = torch.device(pick_device(device))

    @classmethod
    def open(cls, folder: str | Path, device: str = "auto") -> "Run":
        """Open the run in a folder. Raises `OpenUniError` if there is none."""
        return cls(Path(folder), read_record(Path(folder)), device)

    @cached_property
    def recipe(self) -> TrainingRecipe:
        """The recipe at the start of the run, with all defaults filled in."""
        return TrainingRecipe.from_dict(self.record["recipe"], str(self.folder / RUN_FILE), quiet=True)

    @property
    def tasks(self) -> list[Task]:
        """Tasks the model was trained for: those of all stages begun so far that had clips to train on."""
        done = [checkpoint.step for checkpoint in list_checkpoints(self.folder)[-1:]]
        tasks = trained_tasks(self.recipe, self.record["model"]["options"]["modalities"], *done)
        return [task for task in tasks if self.record["data"]["clips_by_task"].get(str(task))]

    @property
    def checkpoint(self) -> TrainingCheckpoint:
        """The latest training checkpoint. Raises `OpenUniError` if none was saved."""
        found = list_checkpoints(self.folder)
        if not found:
            raise OpenUniError(f"{self.folder}: no checkpoint found. Train it with: openuni train")
        return found[-1]

    @property
    def log(self) -> list[dict[str, Any]]:
        """Log rows: one per training step and one per validation."""
        return read_log(self.folder)

    @cached_property
    def architecture(self) -> Model:
        """The model component that run.json records, without weights."""
        return empty_model(self.record)

    @cached_property
    def model(self) -> Any:
        """The model with the EMA weights of the latest checkpoint, on the device, frozen."""
        last = self.log[-1:]
        if last and "error" in last[0]:
            reason, step = last[0]["error"], self.checkpoint.step
            logger.warning(
                "%s: the training stopped: %s. The checkpoint of step %d is used.", self.folder, reason, step
            )
        model = self.architecture.load("cpu")
        load_model(model, self.checkpoint.tensors("ema"), self.checkpoint.path)
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def latent_codec(self) -> tuple[Any, Any]:
        """The latent codec and its loaded model."""
        codec = open_latent_codec(self.record["latents"])
        return codec, codec.load(str(self.device))

    @cached_property
    def text_codec(self) -> tuple[Any, Any]:
        """The text codec and its loaded model."""
        codec = open_text_codec(self.record["text"])
        return codec, codec.load(str(self.device))

    @cached_property
    def texts(self) -> FixedTexts:
        """Embeddings of the empty caption and the modality-type prompts."""
        modalities = tuple(self.record["model"]["options"]["modalities"])
        rows = fixed_rows(self.record["text"], modalities, self.folder / TEXTS_FILE)
        return FixedTexts(rows, self.record["text_length"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of generated text. Raises `OpenUniError` if there is none or it differs from the training's."""
        tokens = self.record.get("tokens")
        if tokens is None:
            raise OpenUniError(f"the model of {self.folder} does not generate text")
        tokenizer = make_tokenizer(self.recipe.text)
        if tokens != tokenizer_identity(tokenizer):
            raise OpenUniError(
                f"{self.folder} was trained with a different tokenizer ({tokens['vocabulary']} values) than "
                f"{self.recipe.text.checkpoint} ({tokenizer.vocabulary} values). Restore the original tokenizer there."
            )
        return tokenizer

    def sample(
        self,
        task: str | Task,
        given: Streams,
        captions: Sequence[str],
        shape: Sequence[int] | None = None,
        sampling: sampler.SamplingOptions | None = None,
        subjects: Sequence[str] = (),
    ) -> Streams:
        """Latents of the target streams, float32 [B, C, T, H, W] on the CPU, one sample per caption.

        A target text is returned as "text", token values int64 [B, L]; see `tokenizer`. `given`: clean latents of the
        condition streams, [B, C, T, H, W]. `shape`: [C, T, H, W]; default: that of the conditions, else of the training
        data. `sampling`: default 50 steps at the shift of the training. `subjects`: one per caption, in runs trained
        with `data.subjects`; default: none. Raises `OpenUniError` for invalid inputs.
        """
        task = self.require_trained_task(task)
        sampling = sampling or sampler.SamplingOptions(shift=self.shift(task))
        check_guidance(self.architecture, self.recipe, self.tasks, task, sampling)
        _check_captions(captions)
        _check_captions([sampling.negative_prompt, *subjects])
        check_run_subjects(self.recipe, subjects, len(captions))
        first = next(iter(given.values()), None)
        one = tuple(shape or (first.shape[1:] if first is not None else self.record["latent_shape"]))
        self._check_latents(task, one)
        if any(tuple(latents.shape) != (len(captions), *one) for latents in given.values()):
            shapes = {name: list(latents.shape) for name, latents in given.items()}
            raise OpenUniError(
                f"condition latents must be {[len(captions), *one]} for {len(captions)} captions, got {shapes}"
            )
        text, unconditional = self._text(task, captions, sampling.negative_prompt, subjects)
        inputs = sampler.SamplerInputs(
            conditions={name: latents.to(self.device, torch.float32) for name, latents in given.items()},
            text={name: rows.to(self.device) for name, rows in text.items()},
            unconditional=unconditional,
            caption_streams=guided_streams(self.architecture, task, sampling.negative_prompt),
            text_state=self._text_stream(task, captions, sampling),
        )
        try:
            with autocast(self.recipe, self.device):
                targets = sampler.sample(self.model, task, inputs, (len(captions), *one), sampling)
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.folder}: {error}. {NON_FINITE_ADVICE}") from error
        return {name: latents.cpu() for name, latents in targets.items()}

    def generate(
        self,
        prompt: str,
        make: Sequence[str],
        given: dict[str, Modality | np.ndarray] | None = None,
        size: tuple[int, int, int] | None = None,
        sampling: sampler.SamplingOptions | None = None,
        subject: str = "",
    ) -> dict[str, Any]:
        """Generate the targets in `make` from a prompt and conditions: a `Modality` each, and a `str` for "text".

        `given`: condition modalities by name, as a `Modality` or an RGB rendering, float32 [T, H, W, 3] in 0..1 or
        uint8. They are trimmed and resized to `size`: frames, height_px, width_px; default: that of the training data.
        `subject`: follows the modality-type prompts, in runs trained with `data.subjects`. A target whose rendering
        cannot be converted back (skeleton) is returned as an `RGB`. Raises `OpenUniError` for a task that the run was
        not trained for and for invalid inputs.
        """
        targets, text = self._make(prompt, make, given, size, sampling, subject)
        found: dict[str, Any] = {name: read_rendering(name, rendering) for name, rendering in targets.items()}
        return found if text is None else found | {TEXT: text}

    def render(
        self,
        prompt: str,
        make: Sequence[str],
        given: dict[str, Modality | np.ndarray] | None = None,
        size: tuple[int, int, int] | None = None,
        sampling: sampler.SamplingOptions | None = None,
    ) -> dict[str, np.ndarray]:
        """As `generate`, but return the decoded renderings, float32 [T, H, W, 3] in 0..1."""
        return self._make(prompt, make, given, size, sampling)[0]

    def _make(
        self,
        prompt: str,
        make: Sequence[str],
        given: dict[str, Modality | np.ndarray] | None,
        size: tuple[int, int, int] | None,
        sampling: sampler.SamplingOptions | None,
        subject: str = "",
    ) -> tuple[dict[str, np.ndarray], str | None]:
        """Renderings of the targets, and the generated text or None."""
        given = given or {}
        task = self.task_of(make, tuple(given))
        check_prompt(self.architecture, self.recipe, task, prompt)
        size = size or (self.record["latents"]["frames"], *self.record["latents"]["size_px"])
        shape = self._latent_shape(task, size)
        codec, model = self.latent_codec
        latents = {name: codec.encode(model, self._rendering(name, value, size)) for name, value in given.items()}
        tensors = {name: torch.from_numpy(array)[None] for name, array in latents.items()}
        targets = self.sample(task, tensors, [prompt], shape, sampling, [subject] if subject else ())
        renderings = {name: codec.decode(model, targets[name][0].numpy()) for name in task.targets}
        for name, rendering in renderings.items():
            if not np.isfinite(rendering).all():
                raise NonFiniteError(
                    f"{self.folder}: {codec.name()} decoded {name} to NaN or infinite values. {NON_FINITE_ADVICE}"
                )
        return renderings, self.tokenizer.decode(targets[TEXT][0]) if task.generates_text else None

    def task_of(self, make: Sequence[str], given: Sequence[str]) -> Task:
        """The task with these targets (modalities or "text") and conditions. Raises `OpenUniError` if not trained."""
        return self.require_trained_task(Task(tuple(given), tuple(name for name in make if name != TEXT), TEXT in make))

    def shift(self, task: Task) -> float:
        """Timestep shift of the training: that of video, or that of text if text is the only target."""
        return self.recipe.flow_matching.shift if task.targets else self.recipe.text.shift

    def require_trained_task(self, task: str | Task) -> Task:
        """Return the task. Raises `OpenUniError` with the trained tasks if the model was not trained for it."""
        task = Task.parse(task) if isinstance(task, str) else task
        if task not in self.tasks:
            trained = ", ".join(str(known) for known in self.tasks)
            raise OpenUniError(
                f'the run was not trained for "{task}"; it was trained for: {trained}. All names: openuni tasks '
                f"{self.folder}"
            )
        return task

    def caption_streams(self, task: Task) -> tuple[str, ...]:
        """Streams of the task that are conditioned on the caption."""
        return caption_streams(self.architecture, task)

    def _text_stream(
        self, task: Task, captions: Sequence[str], sampling: sampler.SamplingOptions
    ) -> sampler.TextState | None:
        """The text stream, or None: the captions as a condition, or the initial noise of a target text."""
        model = self.architecture
        if not model.has_text_stream(task):
            return None
        text, tokenizer = self.recipe.text, self.tokenizer
        empty = tokenizer.encode(sampling.negative_prompt, text.length)
        if not task.generates_text:
            given = torch.stack([tokenizer.encode(caption, text.length) for caption in captions])
            return sampler.TextState(given.to(self.device), empty.to(self.device), text.degree)
        draws = TextSampler(tokenizer, text, model.text_width, sampling.seed)
        start = torch.stack([draws.start("sample", item) for item in range(len(captions))])
        return sampler.TextState(start.to(self.device), empty.to(self.device), text.degree)

    def _text(
        self, task: Task, captions: Sequence[str], negative_prompt: str, subjects: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Text embeddings of every stream, float32 [B, L, D], and of the negative prompt (default: empty) [L, D].

        L is that of the training, or that of the longest text if it has more rows, so that none is truncated.
        """
        rows = self._embedded(captions) if self.caption_streams(task) else []
        (negative,) = self._embedded([negative_prompt])
        own = [row if subject else None for subject, row in zip(subjects, self._embedded(subjects), strict=True)]
        prompted = max(map(len, self.texts.rows.values())) + max([0, *(len(row) for row in own if row is not None)])
        texts = replace(self.texts, length=max([self.texts.length, prompted, *map(len, [*rows, negative])]))

        def embeddings(stream: str) -> torch.Tensor:
            kind = self.architecture.text_condition(task, stream)
            if kind == "caption":
                return torch.stack([texts.padded(row) for row in rows])
            if kind == "prompt" and own:
                return torch.stack([texts.prompt(stream, subject) for subject in own])
            fixed = texts.prompt(stream) if kind == "prompt" else texts.empty
            return fixed.expand(len(captions), -1, -1)

        return {name: embeddings(name) for name in task.streams}, texts.padded(negative)

    def _embedded(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """Embeddings float32 [L, D] of each caption; the empty caption needs no codec."""
        empty = self.texts.rows[EMPTY]
        return [torch.from_numpy(self.text_codec[0].encode(self.text_codec[1], c)) if c else empty for c in captions]

    def _rendering(self, name: str, value: Modality | np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
        """Rendering of a condition, float32 [T, H, W, 3] in 0..1, with that size."""
        frames, height_px, width_px = size
        if not isinstance(value, Modality):
            value = read_rendering(name, _as_rendering(name, value))
        if len(value.array) < frames:
            raise OpenUniError(f"condition {name} has {len(value.array)} frames; at least {frames} are required")
        return value.take(0, frames).fit(height_px, width_px).to_rgb()

    def _latent_shape(self, task: Task, size: tuple[int, int, int]) -> tuple[int, ...]:
        """Latent shape [C, T, H, W] of a video of `size`, with the strides of the training data."""
        strides = self._strides_px
        whole = len(size) == 3 and all(isinstance(part, Integral) and part > 0 for part in size)
        if not whole or size[0] % 4 != 1 or size[1] % strides[0] or size[2] % strides[1]:
            raise OpenUniError(
                f"size {size}: frames must be 4k + 1, height and width multiples of {list(strides)}, all positive "
                "integers"
            )
        channels = self.record["latent_shape"][0]
        shape = (channels, (size[0] - 1) // 4 + 1, size[1] // strides[0], size[2] // strides[1])
        self._check_latents(task, shape)
        return shape

    @property
    def _strides_px(self) -> tuple[int, int]:
        """Pixels per row and column of latents."""
        _, _, rows, columns = self.record["latent_shape"]
        height_px, width_px = self.record["latents"]["size_px"]
        return height_px // rows, width_px // columns

    def _check_latents(self, task: Task, shape: Sequence[int]) -> None:
        """Raise `OpenUniError` unless [C, T, H, W] is a valid latent shape for the task."""
        if len(shape) != 4 or not all(isinstance(part, Integral) and part > 0 for part in shape):
            raise OpenUniError(f"latents must be [C, T, H, W], positive integers, got {list(shape)}")
        largest = self.architecture.max_latent_shape(len(task.streams))
        if largest is not None and any(part > most for part, most in zip(shape[1:], largest, strict=True)):
            high, wide = self._strides_px
            asked, most = (f"{(t - 1) * 4 + 1}x{h * high}x{w * wide}" for t, h, w in (shape[1:], largest))
            raise OpenUniError(
                f"size {asked} (latents {list(shape)}) exceeds the positions of the model. Maximum for "
                f'"{task}": {most} (frames, height, width).'
            )


def _check_captions(captions: Sequence[str]) -> None:
    if isinstance(captions, str) or not len(captions) or not all(isinstance(text, str) for text in captions):
        raise OpenUniError(f"captions must be a non-empty list of strings, one per sample, got {captions!r}")
    for text in captions:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise OpenUniError(
                f"caption {text!r} is not valid Unicode from character {error.start} on. Encode it as UTF-8."
            ) from error


def _as_rendering(name: str, value: Any) -> np.ndarray:
    """A condition array as float32 [T, H, W, 3] in 0..1."""
    allowed = f"condition {name} must be a Modality, or an array [T, H, W, 3], uint8 or float in 0..1"
    if not isinstance(value, np.ndarray):
        raise OpenUniError(f"{allowed}, got {type(value).__name__}")
    whole = value.dtype == np.uint8
    if value.ndim != 4 or value.shape[-1] != 3 or not value.size or not (whole or value.dtype.kind == "f"):
        raise OpenUniError(f"{allowed}, got {value.dtype} {list(value.shape)}")
    if whole:
        return value.astype(np.float32) / 255.0
    lo, hi = float(value.min()), float(value.max())
    if not (lo >= -OVERSHOOT and hi <= 1 + OVERSHOOT):  # also rejects NaN
        raise OpenUniError(f"{allowed}, got values from {lo:g} to {hi:g}. Rescale them, or pass uint8.")
    return np.clip(value.astype(np.float32), 0, 1)


def pick_device(device: str) -> str:
    """Resolve "auto" to the GPU if available, else the CPU. Raises `OpenUniError` for an unknown or missing device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # "meta" tensors have no values
    except (RuntimeError, AssertionError, ImportError) as error:  # depends on the device type
        place = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        there = [f"{place.type}:{number}" for number in range(torch.accelerator.device_count())] if place else []
        raise OpenUniError(
            f'device "{device}" is not available. Available: {", ".join(["auto", "cpu", *there])}. '
            f"PyTorch error: {str(error).splitlines()[0][:200]}"
        ) from error
    return device


def autocast(recipe: TrainingRecipe, device: torch.device) -> torch.autocast:
    """Autocast context of the recipe's precision: weights stay float32, matrix products may be bfloat16."""
    wanted = recipe.precision == "bfloat16" or (recipe.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
