"""Batches of samples: latents, noise, sigmas and texts, from named random draws."""

import dataclasses
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from openuni.manifests.corpus.payload_reader import PayloadReader
from openuni.training.data.division import Group, StreamSet, divided
from openuni.training.data.fixed_texts import FixedTexts
from openuni.training.data.index import DamagedTensor, Index, TensorError
from openuni.training.data.plan import Sample, StepSchedule
from openuni.training.data.skipping import check_limit
from openuni.training.data.tokenizer import Tokenizer
from openuni.training.model import Model, Streams
from openuni.training.objectives.flow_matching import add_noise, sigma_at
from openuni.training.objectives.text_flow_matching import TextBatch, TextSampler
from openuni.training.randomness import named_seed, normal, permuted, uniform
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import TEXT, Task

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Samples with the same streams and shape: one forward pass. B samples; tensors by stream."""

    clips: list[int]
    tasks: list[Task]
    clean: Streams  # [B, C, T, H, W]: float32, or as stored before `to` moves them to a GPU
    noise: Streams  # the same
    sigmas: dict[str, torch.Tensor]  # float32 [B]; exactly the model's `condition_sigma` for conditions, 1 if dropped
    targets: dict[str, torch.Tensor]  # bool [B]
    text: dict[str, torch.Tensor]  # float32 [B, L, D]
    text_stream: TextBatch | None = None  # the text stream, if the model has one
    slots: tuple[int, ...] = ()  # of its samples in the step; empty: padding, whose loss does not count
    skipped: Mapping[str, str] = field(default_factory=dict)  # damaged samples, by id, that others replace; the reasons

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: {key: tensor.to(device, non_blocking=True) for key, tensor in getattr(self, name).items()}
            for name in ("clean", "noise", "sigmas", "targets", "text")
        }
        moved["clean"] = {name: latents.float() for name, latents in moved["clean"].items()}
        text_stream = self.text_stream.to(device) if self.text_stream is not None else None
        return dataclasses.replace(self, text_stream=text_stream, **moved)

    def noisy(self) -> Streams:
        """Model inputs: condition streams at `condition_sigma` (usually 0, clean), target streams at their sigma."""
        return {name: add_noise(clean, self.noise[name], self.sigmas[name]) for name, clean in self.clean.items()}


class Staging(threading.local):
    """Memory that a thread uses again for every read: new memory costs as much as reading into it."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)

    def bytes(self, count: int) -> torch.Tensor:
        """The first bytes, uint8; the next call gives the same."""
        if len(self.memory) < count:
            self.memory = torch.empty(count, dtype=torch.uint8)
        return self.memory[:count]


def pinned_bytes(count: int) -> torch.Tensor:
    """Memory from which a GPU copies asynchronously."""
    return torch.empty(count, dtype=torch.uint8, pin_memory=True)


@dataclass(frozen=True, eq=False)
class Loader:
    """Collator from samples to batches. Pure: equal arguments give equal batches, in any thread and order."""

    corpus: "Corpus"
    index: Index
    texts: FixedTexts
    recipe: TrainingRecipe
    model: Model
    tokenizer: Tokenizer | None = None  # for models that generate text
    pinned: bool = False  # latents as stored, in pinned memory: for training on a GPU
    rank: int = 0  # of `world` ranks, among which the samples of a step are divided
    world: int = 1

    @cached_property
    def reader(self) -> PayloadReader:
        """Reads the corpus, also from several threads."""
        return PayloadReader(self.corpus, verify=self.recipe.data.verify_checksums)

    def step(self, plan: StepSchedule, step: int) -> list[list[TrainingBatch]]:
        """The batches of one optimizer step of this rank, by gradient accumulation step."""
        samples = plan.step(step)
        micro_batch = len(samples) // self.recipe.optimizer.gradient_accumulation_steps
        parts = divided([self._streams(sample.task) for sample in samples], micro_batch, self.world)[self.rank]
        return [[self._batch(plan, samples, step, group) for group in part] for part in parts]

    def step_order(self, samples: list[Sample]) -> list[int]:
        """Slots in the order in which one rank alone would train on them: losses are logged in this order."""
        micro_batch = len(samples) // self.recipe.optimizer.gradient_accumulation_steps
        (parts,) = divided([self._streams(sample.task) for sample in samples], micro_batch, 1)
        return [slot for part in parts for group in part for slot in group.slots]

    def _streams(self, task: Task) -> StreamSet:
        return self.model.has_text_stream(task), task.streams

    def batch(
        self,
        samples: list[Sample],
        sigmas: list[dict[str, float]],
        names: list[tuple[int | str, ...]],
        slots: tuple[int, ...] = (),
    ) -> TrainingBatch:
        """One batch of samples that share their streams.

        `sigmas`: per sample, the sigma of every target stream (including text) and of dropped condition streams.
        `names`: per sample, the name of its random draws.
        """
        streams = samples[0].task.streams
        clips = [sample.clip for sample in samples]
        clean = {stream: self._latents(stream, clips) for stream in streams}
        shape = clean[streams[0]].shape[1:]
        return TrainingBatch(
            clips=clips,
            tasks=[sample.task for sample in samples],
            clean=clean,
            noise={stream: self._noise(shape, names, stream) for stream in streams},
            sigmas={
                stream: torch.tensor([sigma.get(stream, self.model.condition_sigma) for sigma in sigmas])
                for stream in streams
            },
            targets={stream: torch.tensor([stream in sample.task.targets for sample in samples]) for stream in streams},
            text={stream: self._texts(stream, samples, names) for stream in streams},
            text_stream=self._text_stream(samples, sigmas, names),
            slots=slots,
        )

    def _latents(self, stream: str, clips: list[int]) -> torch.Tensor:
        if self.pinned:  # PyTorch keeps pinned memory for the next batches
            return self.index.read_latents(self.reader, stream, clips, pinned_bytes)
        # float32 in this thread rather than in that of the training step, from memory that it uses again
        stored = self.index.read_latents(self.reader, stream, clips, self.staging.bytes)
        return stored.to(torch.float32, copy=True)

    @cached_property
    def staging(self) -> "Staging":
        """Memory of this loader's threads."""
        return Staging()

    def _noise(self, shape: torch.Size, names: Sequence[tuple[int | str, ...]], stream: str) -> torch.Tensor:
        noise = torch.empty(len(names), *shape, pin_memory=self.pinned)
        for place, name in zip(noise, names, strict=True):
            normal(shape, self.recipe.seed, "noise", *name, stream, out=place)
        return noise

    def _texts(self, stream: str, samples: Sequence[Sample], names: Sequence[tuple[int | str, ...]]) -> torch.Tensor:
        texts = torch.stack([self._text(stream, sample, name) for sample, name in zip(samples, names, strict=True)])
        return texts.pin_memory() if self.pinned else texts

    def _batch(self, plan: StepSchedule, samples: list[Sample], step: int, group: Group) -> TrainingBatch:
        """One batch. Up to `data.max_skipped_samples` damaged samples are replaced by others of the same task.

        The first readable sample of the slot's sequence counts, so results depend on neither ranks nor earlier steps.
        """
        slots = group.slots
        sigmas = [self._sigmas(samples[slot].task, step, slot) for slot in slots]
        names: list[tuple[int | str, ...]] = [(step, slot) for slot in slots]
        chosen, attempts, skipped = [samples[slot] for slot in slots], [0] * len(slots), dict[str, str]()
        while True:
            try:
                batch = self.batch(chosen, sigmas, names, () if group.is_padding else slots)
            except DamagedTensor as error:
                self.skip(error, skipped)
                for place, slot in enumerate(slots):
                    if chosen[place].clip == error.clip:
                        other = plan.replacement(step, slot, samples[slot], attempts[place])
                        if other is None:
                            raise TensorError(f"no other sample can replace a damaged one: {error}") from error
                        chosen[place], attempts[place] = other, attempts[place] + 1
            else:
                return dataclasses.replace(batch, skipped=skipped)

    def skip(self, error: DamagedTensor, skipped: dict[str, str]) -> None:
        """Add the sample of an error to `skipped`; raises it if nothing is skipped, `TensorError` above the limit."""
        limit = self.recipe.data.max_skipped_samples
        if not limit:
            raise error
        skipped[self.index.sample_ids[error.clip]] = str(error)
        check_limit(skipped, limit)

    def _sigmas(self, task: Task, step: int, slot: int) -> dict[str, float]:
        """One sigma per target stream, or a shared one."""
        flow, text = self.recipe.flow_matching, self.recipe.text
        drawn = {}
        for stream in task.targets:
            quantile = self._quantile(step, slot, "all" if flow.shared_sigma else stream)
            sigma = float(sigma_at(torch.tensor(quantile), flow.density, flow.shift))
            drawn[stream] = max(sigma, self.min_target_sigma)
        if task.generates_text and drawn and flow.shared_sigma:
            drawn[TEXT] = drawn[task.targets[0]]
        elif task.generates_text:
            drawn[TEXT] = float(sigma_at(torch.tensor(self._quantile(step, slot, TEXT)), text.density, text.shift))
        if self._conditions_dropped(task, (step, slot)):
            drawn |= dict.fromkeys(task.conditions, 1.0)
        return drawn

    def _quantile(self, step: int, slot: int, name: str) -> float:
        """Quantile in [0, 1) of a slot; if stratified, each of `batch_size` equal intervals gets one draw per step."""
        seed, size = self.recipe.seed, self.recipe.optimizer.batch_size
        quantile = uniform(seed, "sigma", step, slot, name)
        if not self.recipe.flow_matching.stratified:
            return quantile
        order = named_seed(seed, "strata", step, name)
        return (int(permuted(np.array([slot]), size, order)[0]) + quantile) / size

    def _conditions_dropped(self, task: Task, name: tuple[int | str, ...]) -> bool:
        """Whether condition dropout applies to the sample with this name; see `data.condition_dropout`.

        The caption is dropped with the conditions: guidance never evaluates the caption alone.
        """
        if not task.conditions or name[0] == "validation":
            return False
        return uniform(self.recipe.seed, "given", *name) < self.recipe.data.condition_dropout

    @cached_property
    def min_target_sigma(self) -> float:
        """Minimum sigma of target streams, above `condition_sigma`: models distinguish targets by it."""
        return float(np.nextafter(np.float32(self.model.condition_sigma), np.float32(1.0)))

    def _text(self, stream: str, sample: Sample, name: tuple[int | str, ...]) -> torch.Tensor:
        condition = self.model.text_condition(sample.task, stream)
        if condition == "prompt":
            return self.texts.prompt(stream, self._subject(sample.clip, name))
        if condition == "nothing":
            return self.texts.empty
        if self._caption_dropped(sample.task, name) or not self.index.text.present[sample.clip]:
            return self.texts.empty
        return self.texts.padded(self.index.read_text(self.reader, sample.clip))

    def _subject(self, clip: int, name: tuple[int | str, ...]) -> torch.Tensor | None:
        """Embedding of the clip's subject; None without one, or if it is dropped: as often as captions, but apart.

        Condition dropout leaves it, as it leaves the modality-type prompt.
        """
        if self.index.subjects is None:
            return None
        dropped = uniform(self.recipe.seed, "subject", *name) < self.recipe.data.caption_dropout
        return None if dropped and name[0] != "validation" else self.index.subjects.embedding(clip)

    def _caption_dropped(self, task: Task, name: tuple[int | str, ...]) -> bool:
        """Whether caption dropout or condition dropout applies to a sample."""
        validating = name[0] == "validation"
        dropped = uniform(self.recipe.seed, "caption", *name) < self.recipe.data.caption_dropout and not validating
        return dropped or self._conditions_dropped(task, name)

    def _text_stream(
        self, samples: list[Sample], sigmas: list[dict[str, float]], names: list[tuple[int | str, ...]]
    ) -> TextBatch | None:
        """The text stream: the target text, or the prompt as a condition (empty if the caption is dropped)."""
        captions, draws = self.index.captions, self._text_sampler
        if captions is None or draws is None or not self.model.has_text_stream(samples[0].task):
            return None

        def stream_text(sample: Sample, name: tuple[int | str, ...]) -> str:
            if sample.task.generates_text:
                return captions.target(sample.clip)
            return "" if self._caption_dropped(sample.task, name) else captions.prompt(sample.clip)

        texts = [stream_text(sample, name) for sample, name in zip(samples, names, strict=True)]
        targets = [sample.task.generates_text for sample in samples]
        return draws.draw_batch(texts, [sigma.get(TEXT, 0.0) for sigma in sigmas], targets, names)

    @cached_property
    def _text_sampler(self) -> TextSampler | None:
        if self.tokenizer is None:
            return None
        return TextSampler(self.tokenizer, self.recipe.text, self.model.text_width, self.recipe.seed)


def prefetched(
    loader: Loader, plan: StepSchedule, steps: range, ahead: int = 2
) -> Generator[list[list[TrainingBatch]], None, None]:
    """`loader.step` for each step in order, computed up to `ahead` steps early in threads.

    Reads release the interpreter lock, so threads suffice. There is no state: batches prepared beyond the last executed
    step are discarded.
    """
    with ThreadPoolExecutor(max_workers=ahead) as pool:
        waiting: list[Future[list[list[TrainingBatch]]]] = []
        for step in steps:
            while len(waiting) <= ahead and step + len(waiting) < steps.stop:
                waiting.append(pool.submit(loader.step, plan, step + len(waiting)))
            yield waiting.pop(0).result()
