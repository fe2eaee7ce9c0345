"""What a training would need and do, computed without weights, a GPU or a run folder: `openuni train --dry-run`."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import OpenUniError
from openuni.training.data.curriculum import Curriculum, all_collections, curriculum_stages
from openuni.training.data.index import Index, choose_family, open_index
from openuni.training.data.plan import Sample
from openuni.training.data.requirements import check_one_codec
from openuni.training.data.tokenizer import make_tokenizer
from openuni.training.estimate.footprint import GB, KNOWN_SIZES, Pass, Weights, fake_model, fake_pass, sized
from openuni.training.loop.context_checks import check_tokens, checked_context, possible_contexts
from openuni.training.loop.setup import check_fit
from openuni.training.model import Model
from openuni.training.optimizers.low_memory_adamw import state_bytes
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import TaskMix

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

STEPS_SEEN = 64  # of the plan
UMT5_VOCABULARY = 256_385  # of the published tokenizer with the mask token, if it is not on this machine
USABLE_SHARE = 0.92  # of a GPU's memory: the rest is the CUDA context and fragmentation
MOST_GPUS = 64


class Memory(NamedTuple):
    """Bytes on one rank."""

    weights: float
    gradients: float
    optimizer: float
    ema: float
    gathered: float  # weights of other ranks, while they are used
    activations: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return sum(self)


class Estimate(NamedTuple):
    """What a training needs. `needs`: memory for other settings is computed from the same parts."""

    recipe: TrainingRecipe
    gpus: int
    weights: Weights
    costliest: Callable[[int], Pass]  # sample that was seen, on one of this number of ranks that share its tokens
    contexts: tuple[int, ...]  # numbers of ranks that could share the tokens of a sample
    tokens_per_step: float
    flops_per_step: float
    bfloat16: bool
    text: str  # the data plan

    def memory(
        self,
        gpus: int | None = None,
        accumulation_steps: int | None = None,
        checkpointing: bool | str | None = None,
        context: int | None = None,
    ) -> Memory:
        """Memory of one rank, with these settings in place of those of the recipe."""
        context = context or self.recipe.context_parallel
        options, world = self.recipe.optimizer, gpus or self.gpus
        micro = options.batch_size // (accumulation_steps or options.gradient_accumulation_steps)
        parts = world // context  # of the samples of a step
        samples = min(micro, -(-options.batch_size // parts))
        passes = -(-options.batch_size // (parts * samples))
        recompute = self.recomputes if checkpointing is None else checkpointing
        per_sample = self.costliest(context).kept_bytes(recompute)
        trained = 4.0 * self.weights.trained
        is_kept_whole = world > 1 and passes > 1 and not options.reduce_every_micro_batch
        return Memory(
            weights=self.weights.stored_bytes / world,
            gradients=trained / world + (trained if is_kept_whole else 0.0),
            optimizer=state_bytes(options.kind == "adamw_8bit", options.offload_state) * self.weights.trained / world,
            ema=trained / world,
            # two blocks, as the next one is gathered early; their gradients before they are added up
            gathered=0.0 if world == 1 else 3.0 * self.weights.largest_block + self.weights.outside_blocks,
            activations=per_sample * samples,
        )

    @property
    def recomputes(self) -> bool | str:
        """Whether the recipe recomputes blocks in the backward pass: its `gradient_checkpointing`."""
        found: bool | str = self.recipe.model.get("gradient_checkpointing", False)
        return found


def estimate(recipe: TrainingRecipe, corpus: "Corpus", gpus: int) -> Estimate:
    """Estimate a training on `gpus` GPUs. Nothing is written and no weights are read. Raises `OpenUniError`."""
    base: Any = Model
    kind = find_component("models", base, recipe.model["name"], imports=True)
    families = corpus.families()
    latents = families[choose_family("latent", families, recipe.data.latents)]
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    modalities = tuple(options.get("modalities") or kind.supported_modalities or latents["modalities"])
    stages = curriculum_stages(recipe, modalities)
    data = recipe.data
    index = open_index(corpus, modalities, data.latents, data.text, data.validation_share, all_collections(stages))
    checked_context(recipe, gpus, "GPUs")
    index = _with_texts(index, kind)
    plan = Curriculum.build(index, stages, recipe.seed, recipe.optimizer.batch_size)
    check_one_codec(index, TaskMix.averaged([stage.mix for stage in stages]))
    seen = [sample for step in _steps(recipe, stages) for sample in plan.step(step)]
    model = _model(kind, options, modalities, index, recipe)
    mix = TaskMix.averaged([stage.mix for stage in stages])
    check_fit(model, index, mix, latents["codec"])
    check_tokens(recipe, model, index, mix)
    bfloat16 = recipe.precision != "float32"
    text_length = data.text_length or int(index.text.shape[:, 0].max(initial=1))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        module, weights = fake_model(model)

    @cache
    def cost(key: CostKey, context: int = 1) -> Pass:
        count, has_text, shape = key
        tokens = recipe.text.length if has_text else 0
        with warnings.catch_warnings(), fake:
            warnings.simplefilter("ignore")  # of kernels, which do not run
            names = module.streams[:count]
            return fake_pass(module, names, shape, text_length, tokens, bfloat16=bfloat16, context=context)

    keys = [_cost_key(sample, index, model) for sample in seen]
    by_sample = [cost(key) for key in keys]
    largest = max(keys, key=lambda key: cost(key).saved_bytes)
    steps = len(seen) / recipe.optimizer.batch_size
    recompute = recipe.model.get("gradient_checkpointing", False)
    return Estimate(
        recipe,
        gpus,
        weights,
        lambda context: cost(largest, context),
        possible_contexts(model),
        sum(one.tokens for one in by_sample) / steps,
        sum(one.computed_flops(recompute) for one in by_sample) / steps,
        bfloat16,
        _plan_text(index, plan, seen, recipe),
    )


def _steps(recipe: TrainingRecipe, stages: list[Any]) -> list[int]:
    """Steps that are looked at: the first ones of every stage."""
    ends = [*(stage.from_step for stage in stages[1:]), recipe.optimizer.steps]
    each = max(1, STEPS_SEEN // len(stages))
    return [
        step
        for stage, end in zip(stages, ends, strict=True)
        for step in range(stage.from_step, min(stage.from_step + each, max(end, stage.from_step + 1)))
    ]


def _with_texts(index: Index, kind: Any) -> Index:
    """The index of a model that generates text: every clip with a text embedding counts as one with a target text."""
    if not kind.generates_text:
        return index
    import pyarrow as pa

    from openuni.training.data.captions import Captions

    nothing = pa.nulls(len(index.clip_ids), pa.string())
    return dataclasses.replace(index, captions=Captions(nothing, nothing, index.text.present))


def _model(
    kind: Any, options: dict[str, Any], modalities: tuple[str, ...], index: Index, recipe: TrainingRecipe
) -> Model:
    """The model without files. Raises `OpenUniError` if its sizes cannot be known here."""
    known = {option.name for option in kind.options()}
    channels = int(index.shapes[index.shapes.any(axis=1)][0][0])
    corpus: dict[str, Any] = {"modalities": modalities}
    if not options.get("pretrained"):
        corpus |= {"channels": channels, "text_dim": int(index.text.shape[index.text.present][0][1])}
    if "vocabulary" in known and "vocabulary" not in options:
        corpus["vocabulary"] = _vocabulary(recipe)
    given = {key: value for key, value in corpus.items() if key in known} | options
    model: Model = parse_options(kind, given, kind.name())
    found = sized(model)
    if found is None:
        raise OpenUniError(
            f'the sizes of "{options["pretrained"]}" are not known here: its config.json is not on this machine, and '
            f"it is not one of {', '.join(KNOWN_SIZES)}. Download it, or pass a folder that holds the config.json."
        )
    expected = found.options_dict().get("channels", channels)
    if expected != channels:
        raise OpenUniError(
            f"the model has channels = {expected}, but the corpus's latents have {channels}. Encode the corpus with "
            "the VAE of the model."
        )
    return found


def _vocabulary(recipe: TrainingRecipe) -> int:
    try:
        return make_tokenizer(recipe.text).vocabulary
    except (OpenUniError, OSError):
        return UMT5_VOCABULARY


CostKey = tuple[int, bool, tuple[int, ...]]


def _cost_key(sample: Sample, index: Index, model: Model) -> CostKey:
    """What the cost of a sample depends on: number of latent streams, whether there is text, latent shape."""
    return len(sample.task.streams), model.has_text_stream(sample.task), _shape(index, sample)


def _shape(index: Index, sample: Sample) -> tuple[int, ...]:
    return tuple(int(size) for size in index.shapes[sample.clip])


def _plan_text(index: Index, plan: Curriculum, seen: list[Sample], recipe: TrainingRecipe) -> str:
    shapes = Counter(_shape(index, sample) for sample in seen)
    tasks = Counter(str(sample.task) for sample in seen)
    clips = sum(stage.clip_count for stage in plan.plans)
    passes = recipe.optimizer.steps * recipe.optimizer.batch_size / max(1, plan.plans[0].clip_count)
    count = int(index.held_out.sum())
    lines = [
        f"data        {clips:,} training clips in {len(plan.plans)} stage(s), {count:,} held out; "
        f"{recipe.optimizer.steps:,} steps of {recipe.optimizer.batch_size} samples ({passes:.2f} passes)",
        *(f"            latents {list(shape)}: {n / len(seen):.0%} of samples" for shape, n in shapes.most_common(4)),
        *(f"            task {task}: {n / len(seen):.0%}" for task, n in tasks.most_common(6)),
    ]
    return "\n".join(lines)


def fitting_changes(found: Estimate, limit_bytes: float) -> list[str]:
    """Single changes, and more GPUs, with which a training fits."""
    options = found.recipe.optimizer
    fitting = []
    if not found.recomputes and found.memory(checkpointing="selective").total <= limit_bytes:
        fitting.append("model.gradient_checkpointing=selective")
    elif found.recomputes is not True and found.memory(checkpointing=True).total <= limit_bytes:
        fitting.append("model.gradient_checkpointing=true")
    for steps in range(options.gradient_accumulation_steps + 1, options.batch_size + 1):
        if options.batch_size % steps == 0 and found.memory(accumulation_steps=steps).total <= limit_bytes:
            fitting.append(f"optimizer.gradient_accumulation_steps={steps}")
            break
    shared = found.recipe.context_parallel
    most = min(MOST_GPUS, options.batch_size * shared) // shared * shared
    for gpus in range(found.gpus + shared, most + 1, shared):
        if found.memory(gpus).total <= limit_bytes:
            fitting.append(f"{gpus} GPUs")
            break
    for context in found.contexts:
        gpus = -(-found.gpus // context) * context
        if context > shared and found.memory(gpus, context=context).total <= limit_bytes:
            fitting.append(f"context_parallel={context} on {gpus} GPUs")
            break
    smallest = found.memory(most, options.batch_size, checkpointing=True)
    if not fitting and smallest.total <= limit_bytes:
        fitting.append(
            f"{most} GPUs with model.gradient_checkpointing=true and "
            f"optimizer.gradient_accumulation_steps={options.batch_size}"
        )
    return fitting


def report(recipe: TrainingRecipe, corpus: "str | Path | Corpus", gpus: int | None, memory_gb: float | None) -> str:
    """The text of `openuni train --dry-run`.

    `gpus`, `memory_gb`: default: those of this machine. Raises `OpenUniError` if the training does not fit.
    """
    from openuni.manifests.corpus.corpus import Corpus

    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(str(corpus))
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = estimate(recipe, opened, gpus or there or 1)
    memory = found.memory()
    if memory_gb is None and there:
        memory_gb = torch.cuda.get_device_properties(0).total_memory / GB
    parts = ", ".join(f"{name} {value / GB:.2f}" for name, value in memory._asdict().items() if value)
    weights = found.weights
    lines = [
        f"weights     {weights.trained:,} trained, {weights.frozen:,} frozen",
        f"step        {found.tokens_per_step:,.0f} tokens, {found.flops_per_step / 1e12:,.3g} TFLOP "
        f"({'bfloat16' if found.bfloat16 else 'float32'}), {recipe.optimizer.batch_size} samples on "
        f"{found.gpus} GPU(s)",
        f"memory      {memory.total / GB:.2f} GB per GPU (GB: {parts}); activations are an estimate",
        found.text,
    ]
    if memory_gb is None:
        return "\n".join([*lines, "fit         not checked: no GPU here. Pass --gpu-memory-gb."])
    limit = memory_gb * GB * USABLE_SHARE
    if memory.total <= limit:
        return "\n".join([*lines, f"fit         yes: {memory.total / GB:.2f} of {limit / GB:.2f} usable GB per GPU"])
    fitting = fitting_changes(found, limit)
    raise OpenUniError(
        f"the training does not fit: it needs about {memory.total / GB:.2f} GB per GPU ({parts}), and "
        f"{limit / GB:.2f} of {memory_gb:g} GB are usable on {found.gpus} GPU(s). "
        + (f"It would fit with: {'; or '.join(fitting)}." if fitting else "No number of GPUs or setting would fit.")
    )
