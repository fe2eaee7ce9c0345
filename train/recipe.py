"""The training recipe: one TOML file, parsed strictly. Every default lives on its field."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from openuni.manifests.contracts.options import UNIT_INTERVAL, Added, Formerly, check_options, recorded
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.manifests.text_files import load_toml
from openuni.training.tasks import RELEASED_WEIGHTS

RECIPES_DIR = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class RecipeTable:
    """Base of a recipe's tables: options are checked against their bounds; errors name the table."""

    table: ClassVar[str]

    def __post_init__(self) -> None:
        check_options(self, f"recipe: {self.table}")


@dataclass(frozen=True)
class DataOptions(RecipeTable):
    """Training data: latents, texts and clips of the corpus to use."""

    table: ClassVar[str] = "data"
    latents: Annotated[str, "latent family, or its codec's name; empty: the only one of the corpus"] = ""
    text: Annotated[str, "text family, or its codec's name; empty: the only one of the corpus"] = ""
    subjects: Annotated[
        str,
        "text column, such as caption.brief, with short texts such as 'two persons' that follow the modality-type "
        "prompts of their clips; empty: none",
        Added(),
    ] = ""
    collections: Annotated[tuple[str, ...], "collections to train on (in the first stage); empty: all"] = ()
    collection_weights: Annotated[
        dict[str, float],
        "sampling weights of the collections (in the first stage), 1 if absent; empty: in proportion to their clips",
        Ge(0),
        Added(),
    ] = field(default_factory=dict)
    balanced_collections: Annotated[
        bool, "sample all collections (in the first stage) equally often, whatever their sizes", Added()
    ] = False
    text_length: Annotated[
        int, "text length per sample, in embeddings, zero-padded (Wan: 512); 0: length of the longest text", Ge(0)
    ] = 512
    caption_dropout: Annotated[float, "caption dropout probability, for classifier-free guidance", UNIT_INTERVAL] = 0.1
    condition_dropout: Annotated[
        float,
        "condition dropout probability: condition streams become noise and the caption empty",
        UNIT_INTERVAL,
        Formerly("given_dropout"),
    ] = 0.0
    verify_checksums: Annotated[
        bool, "compare every latent and text embedding with its checksum, and reject NaN and infinite values"
    ] = True
    max_skipped_samples: Annotated[
        int,
        "maximum number of damaged samples to skip, with other samples in their place; 0: stop at the first one",
        Ge(0),
        Added(),
    ] = 0
    validation_share: Annotated[
        float, "fraction of sources held out for validation, if clips have no split", UNIT_INTERVAL
    ] = 0.1


@dataclass(frozen=True)
class FlowMatchingOptions(RecipeTable):
    """Noise levels of flow matching."""

    table: ClassVar[str] = "flow_matching"
    density: Annotated[Literal["logit_normal", "uniform"], "sampling density of sigma before the shift"] = (
        "logit_normal"
    )
    shift: Annotated[float, "timestep shift (as in Wan) in training and sampling; 1: none", Gt(0)] = 5.0
    shared_sigma: Annotated[bool, "whether all target streams of a sample share one sigma"] = True
    weighting: Annotated[Literal["none", "gaussian"], "loss weighting by sigma; gaussian: highest in the middle"] = (
        "none"
    )
    stratified: Annotated[
        bool, "stratified sampling of sigma within a batch, which lowers the variance of the loss"
    ] = True


@dataclass(frozen=True)
class TextStreamOptions(RecipeTable):
    """Captions as a token stream, for models that generate text."""

    table: ClassVar[str] = "text"
    tokenizer: Annotated[Literal["bytes", "umt5"], "tokenizer: UTF-8 bytes, or umT5's"] = "bytes"
    checkpoint: Annotated[str, "checkpoint of the umT5 tokenizer: hub name or folder"] = "google/umt5-xxl"
    length: Annotated[
        int,
        "number of tokens per text, end token included; clips with longer texts are not used as text targets",
        Ge(2),
    ] = 256
    stage: Annotated[
        Literal["recall", "refinement"],
        "training stage: the target is the prompt (recall), or a detailed caption of a brief prompt (refinement)",
    ] = "recall"
    detailed: Annotated[str, 'refinement: column of the target captions, such as "caption.detailed"'] = ""
    brief_tokens: Annotated[tuple[int, ...], "refinement: minimum and maximum number of prompt tokens", Ge(0)] = (
        0,
        128,
    )
    detailed_tokens: Annotated[tuple[int, ...], "refinement: minimum and maximum number of caption tokens", Ge(0)] = (
        128,
        256,
    )
    source: Annotated[Literal["uniform", "mask"], "token distribution at sigma 1: uniform, or mask tokens"] = "uniform"
    degree: Annotated[
        float, "exponent of the noise schedule: a token is clean with probability (1 - sigma)^degree", Gt(0)
    ] = 1.0
    loss: Annotated[Literal["cross_entropy", "generalised_kl"], "token loss"] = "cross_entropy"
    weight: Annotated[float, "weight of the text loss; 0: ratio of video to text tokens, as published", Ge(0)] = 0.0
    density: Annotated[Literal["logit_normal", "uniform"], "sampling density of the text sigma before the shift"] = (
        "uniform"
    )
    shift: Annotated[float, "timestep shift of the text sigma, also when text alone is sampled", Gt(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("brief_tokens", "detailed_tokens"):
            limits = getattr(self, name)
            if len(limits) != 2 or limits[0] > limits[1]:
                raise OpenUniError(f"recipe: text.{name} must be [least, most], got {list(limits)}")
        if self.stage == "refinement" and self.detailed_tokens[0] >= self.length:
            raise OpenUniError(
                f"recipe: no caption of at least {self.detailed_tokens[0]} tokens fits text.length = {self.length}"
            )


@dataclass(frozen=True)
class CurriculumStage(RecipeTable):
    """A stage: task mix and collections from a given step on. It inherits nothing from the previous stage."""

    table: ClassVar[str] = "curriculum"
    from_step: Annotated[int, "first step of the stage, from 0", Gt(0)] = 0
    tasks: Annotated[dict[str, float], "see the top level of the recipe"] = field(default_factory=dict)
    modality_weights: Annotated[dict[str, float], "see the top level of the recipe"] = field(default_factory=dict)
    collections: Annotated[tuple[str, ...], "collections to train on; empty: all"] = ()
    collection_weights: Annotated[dict[str, float], "see [data]", Ge(0), Added()] = field(default_factory=dict)
    balanced_collections: Annotated[bool, "see [data]", Added()] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise OpenUniError(f"recipe: curriculum: the stage from step {self.from_step} has no tasks")


@dataclass(frozen=True)
class OptimizerOptions(RecipeTable):
    """AdamW with linear warm-up, then a constant learning rate, with optional decay at the end."""

    table: ClassVar[str] = "optimizer"
    kind: Annotated[
        Literal["adamw", "adamw_8bit"],
        "optimizer; adamw_8bit: moments of matrices in 8 bits, in blocks of 256",
        Added(),
    ] = "adamw"
    offload_state: Annotated[bool, "keep the optimizer state in host memory; results are the same", Added()] = False
    steps: Annotated[int, "number of optimizer steps", Ge(1)] = 15000
    batch_size: Annotated[int, "batch size: samples per optimizer step", Ge(1)] = 8
    gradient_accumulation_steps: Annotated[
        int, "gradient accumulation steps: micro-batches per optimizer step", Ge(1), Formerly("accumulate")
    ] = 1
    learning_rate: Annotated[float, "learning rate of the base model's parameters", Ge(0)] = 1e-5
    new_parameter_lr_scale: Annotated[
        float,
        "learning rate multiplier of parameters that the base model does not have",
        Ge(0),
        Formerly("added_rate_factor"),
    ] = 10.0
    warmup_steps: Annotated[int, "number of warm-up steps", Ge(0)] = 200
    decay_steps: Annotated[int, "number of final steps over which the learning rate decays; 0: none", Ge(0)] = 0
    decay: Annotated[Literal["linear", "cosine"], "shape of the learning rate decay", Added()] = "linear"
    final_lr_scale: Annotated[
        float, "learning rate after the decay, as a multiple of learning_rate", UNIT_INTERVAL, Added()
    ] = 0.0
    weight_decay: Annotated[float, "weight decay, on matrices only", Ge(0)] = 0.01
    beta2: Annotated[float, "AdamW beta2; beta1 is 0.9", Ge(0), Lt(1)] = 0.95
    max_grad_norm: Annotated[
        float, "maximum gradient norm; larger gradients are clipped", Gt(0), Formerly("clip_norm")
    ] = 1.5
    reduce_every_micro_batch: Annotated[
        bool,
        "several GPUs: add gradients over ranks after every micro-batch: less memory, more communication",
        Added(),
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.gradient_accumulation_steps:
            raise OpenUniError(
                f"recipe: optimizer.batch_size ({self.batch_size}) must be a multiple of "
                f"optimizer.gradient_accumulation_steps ({self.gradient_accumulation_steps})"
            )


@dataclass(frozen=True)
class EmaOptions(RecipeTable):
    """Exponential moving average (EMA) of the weights, used by validation and sampling."""

    table: ClassVar[str] = "ema"
    decay: Annotated[float, "EMA decay per step, after a warm-up of (1 + step) / (10 + step)", Ge(0), Lt(1)] = 0.9999


@dataclass(frozen=True)
class ValidationOptions(RecipeTable):
    """Loss on held-out clips at fixed noise levels with fixed noise: comparable between steps and runs."""

    table: ClassVar[str] = "validation"
    every_steps: Annotated[int, "interval between validations, steps; 0: never", Ge(0)] = 500
    clips: Annotated[int, "maximum number of held-out clips", Ge(1)] = 16
    quantiles: Annotated[int, "number of noise levels per clip and task", Ge(1)] = 4


@dataclass(frozen=True)
class CheckpointOptions(RecipeTable):
    """When training checkpoints are saved (also at the end and on Ctrl-C)."""

    table: ClassVar[str] = "checkpoints"
    every_steps: Annotated[int, "interval between checkpoints, steps", Ge(1)] = 500
    keep: Annotated[int, "number of latest checkpoints to keep", Ge(1)] = 2
    keep_every_steps: Annotated[int, "also keep checkpoints at multiples of this step; 0: none", Ge(0), Added()] = 0
    asynchronous: Annotated[
        bool,
        "write in the background; takes host memory for a copy of weights, EMA weights and optimizer state",
        Added(),
    ] = True


@dataclass(frozen=True)
class SampleOptions(RecipeTable):
    """Videos sampled during training, from fixed prompts and held-out clips; the training does not change by them."""

    table: ClassVar[str] = "samples"
    every_steps: Annotated[int, "interval between samples, steps, and at the end; 0: never", Ge(0)] = 0
    prompts: Annotated[tuple[str, ...], "prompts, for every task without conditions"] = ()
    clips: Annotated[int, "maximum number of held-out clips per task", Ge(0)] = 2
    tasks: Annotated[tuple[str, ...], "tasks, such as `rgb->depth`; empty: all that generate video alone"] = ()
    solver_steps: Annotated[int, "number of solver steps", Ge(1)] = 20
    guidance_scale: Annotated[float, "guidance scale for the caption; 1 disables guidance"] = 1.0


@dataclass(frozen=True)
class TrainingRecipe:
    """A training recipe. `TrainingRecipe.load` reads one by name (`train/recipes/NAME.toml`) or path."""

    model: Annotated[dict[str, Any], "model name and its options"] = field(
        default_factory=lambda: {"name": "unityvideo"}
    )
    tasks: Annotated[
        dict[str, float], "sampling weights of joint, estimate and control, or of tasks such as `rgb->depth`"
    ] = field(default_factory=lambda: dict(RELEASED_WEIGHTS))
    modality_weights: Annotated[
        dict[str, float], "sampling weights of the modalities within a task group; 1 if absent"
    ] = field(default_factory=dict)
    curriculum: Annotated[
        tuple[CurriculumStage, ...], "curriculum stages: `[[curriculum]]` tables with from_step, tasks, ..."
    ] = ()
    seed: Annotated[int, "random seed"] = 0
    precision: Annotated[Literal["auto", "float32", "bfloat16"], "precision; auto: bfloat16 autocast on CUDA"] = "auto"
    init_from: Annotated[
        str, "training run whose weights initialize this one, such as an earlier stage", Formerly("start_from")
    ] = ""
    context_parallel: Annotated[
        int,
        "GPUs that share the tokens of each sample, for long sequences; divides the number of GPUs and of heads",
        Ge(1),
        Added(),
    ] = 1
    log_every_steps: Annotated[int, "interval between rows of the log, steps", Ge(1), Added()] = 1
    watchdog_s: Annotated[
        float, "print the stacks of all threads if a step takes longer, seconds; 0: never", Ge(0), Added()
    ] = 1800.0
    peak_tflops: Annotated[
        float, "peak bfloat16 TFLOP/s of a GPU, for the MFU in the log; 0: known from the GPU's name", Ge(0), Added()
    ] = 0.0
    data: DataOptions = field(default_factory=DataOptions)
    flow_matching: Annotated[FlowMatchingOptions, "noise levels", Formerly("flow")] = field(
        default_factory=FlowMatchingOptions
    )
    text: TextStreamOptions = field(default_factory=TextStreamOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    tracking: Annotated[dict[str, Any], "tracker of the log: name and its options", Added()] = field(
        default_factory=dict
    )
    samples: Annotated[SampleOptions, "samples during training", Added()] = field(default_factory=SampleOptions)

    def __post_init__(self) -> None:
        check_options(self, "recipe")
        if not isinstance(self.model.get("name"), str):
            raise OpenUniError('recipe: [model] needs a name, such as name = "unityvideo"')
        borders = [stage.from_step for stage in self.curriculum]
        if borders != sorted(set(borders)):
            raise OpenUniError(f"recipe: curriculum: each stage must begin after the one before; from_step: {borders}")

    @classmethod
    def load(cls, name_or_path: str | Path) -> "TrainingRecipe":
        """A recipe of ours by name, or a TOML file by path."""
        record, where = cls.read(name_or_path)
        return cls.from_dict(record, where)

    @staticmethod
    def read(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
        """The tables of a recipe of ours by name, or of a TOML file by path; and the path."""
        path = Path(name_or_path)
        if path.suffix != ".toml":
            path = RECIPES_DIR / f"{name_or_path}.toml"
            if not path.is_file():
                raise OpenUniError(
                    f'training recipe "{name_or_path}" is not known.{did_you_mean(str(name_or_path), recipe_names())} '
                    f"Known: {', '.join(recipe_names())}; or give a path that ends in .toml."
                )
        try:
            record = load_toml(path)
        except FileNotFoundError:
            raise OpenUniError(f"there is no recipe at {path}") from None
        return record, str(path)

    @classmethod
    def from_dict(cls, record: dict[str, Any], where: str = "recipe", *, quiet: bool = False) -> "TrainingRecipe":
        """Parse nested dicts, as TOML and JSON give them. `quiet`: no notes on former names, which records keep."""
        return parse_options(cls, record, where, quiet=quiet)

    def to_dict(self) -> dict[str, Any]:
        """Nested JSON-able dicts, every default spelled out."""
        return recorded(self)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.toml"))
