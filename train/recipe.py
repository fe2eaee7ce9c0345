"""The training recipe: one TOML file, parsed strictly. Every default lives on its field."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from openuni.manifests.contracts.options import UNIT_INTERVAL, Formerly, check_options, recorded
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.training.tasks import RELEASED_WEIGHTS

RECIPES_DIR = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class RecipeTable:
    """Base of a recipe's tables: options are held against their bounds, in errors by the name of the table."""

    table: ClassVar[str]

    def __post_init__(self) -> None:
        check_options(self, f"recipe: {self.table}")


@dataclass(frozen=True)
class DataOptions(RecipeTable):
    """What of the corpus to train on."""

    table: ClassVar[str] = "data"
    latents: Annotated[str, "latent family, or its codec's name; empty: the corpus has only one"] = ""
    text: Annotated[str, "text family, or its codec's name; empty: the corpus has only one"] = ""
    collections: Annotated[tuple[str, ...], "only clips of these collections (of the first stage); empty: all"] = ()
    text_length: Annotated[int, "rows of text per sample, zeros added (Wan: 512); 0: as the longest text", Ge(0)] = 512
    caption_dropout: Annotated[float, "share of samples whose caption is replaced by the empty one", UNIT_INTERVAL] = (
        0.1
    )
    condition_dropout: Annotated[
        float,
        "condition dropout probability: condition streams become noise and the caption empty",
        UNIT_INTERVAL,
        Formerly("given_dropout"),
    ] = 0.0
    validation_share: Annotated[
        float, "share of sources held out, where clips name no split themselves", UNIT_INTERVAL
    ] = 0.1


@dataclass(frozen=True)
class FlowMatchingOptions(RecipeTable):
    """Which noise levels are drawn in training."""

    table: ClassVar[str] = "flow_matching"
    density: Annotated[Literal["logit_normal", "uniform"], "density of sigma before the shift"] = "logit_normal"
    shift: Annotated[float, "Wan's timestep shift, of training and sampling; 1 is none", Gt(0)] = 5.0
    shared_sigma: Annotated[bool, "all made streams of a sample get one sigma, else each its own"] = True
    weighting: Annotated[Literal["none", "gaussian"], "of the loss by sigma: gaussian counts the middle most"] = "none"
    stratified: Annotated[bool, "spread the sigmas of a batch evenly over the density: less noise in the loss"] = True


@dataclass(frozen=True)
class TextStreamOptions(RecipeTable):
    """The caption as a stream of tokens, for models that make text."""

    table: ClassVar[str] = "text"
    tokenizer: Annotated[Literal["bytes", "umt5"], "what a token is: a byte of UTF-8, or a piece of umT5's"] = "bytes"
    checkpoint: Annotated[str, "of umt5's tokenizer: hub name or folder"] = "google/umt5-xxl"
    length: Annotated[int, "tokens of every text, the end included; clips with longer texts make none", Ge(2)] = 256
    stage: Annotated[
        Literal["recall", "refinement"], "the text to make is the prompt; or a detailed caption, from a brief prompt"
    ] = "recall"
    detailed: Annotated[str, 'of refinement: the captions to make, a column such as "caption.detailed"'] = ""
    brief_tokens: Annotated[tuple[int, ...], "of refinement: least and most of a prompt", Ge(0)] = (0, 128)
    detailed_tokens: Annotated[tuple[int, ...], "of refinement: least and most of a caption", Ge(0)] = (128, 256)
    source: Annotated[Literal["uniform", "mask"], "tokens at sigma 1: any, or the mask"] = "uniform"
    degree: Annotated[float, "a token is clean with probability (1 - sigma)^degree", Gt(0)] = 1.0
    loss: Annotated[Literal["cross_entropy", "generalised_kl"], "of tokens, per token"] = "cross_entropy"
    weight: Annotated[float, "of the text's loss; 0: video tokens over text tokens, as published", Ge(0)] = 0.0
    density: Annotated[Literal["logit_normal", "uniform"], "density of the text's sigma before the shift"] = "uniform"
    shift: Annotated[float, "shift of the text's sigma, and of sampling text alone", Gt(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("brief_tokens", "detailed_tokens"):
            limits = getattr(self, name)
            if len(limits) != 2 or limits[0] > limits[1]:
                raise OpenUniError(f"recipe: text.{name} must be [least, most], got {list(limits)}")
        if self.stage == "refinement" and self.detailed_tokens[0] >= self.length:
            raise OpenUniError(
                f"recipe: no caption of {self.detailed_tokens[0]} tokens and more fits text.length = {self.length}"
            )


@dataclass(frozen=True)
class CurriculumStage(RecipeTable):
    """From one step on other tasks, on other clips. A stage takes nothing over from the one before."""

    table: ClassVar[str] = "curriculum"
    from_step: Annotated[int, "its first step, counted from 0; the recipe's own tasks hold before", Gt(0)] = 0
    tasks: Annotated[dict[str, float], "as the recipe's"] = field(default_factory=dict)
    modality_weights: Annotated[dict[str, float], "as the recipe's"] = field(default_factory=dict)
    collections: Annotated[tuple[str, ...], "only clips of these collections; empty: all"] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise OpenUniError(f"recipe: curriculum: the stage from step {self.from_step} says no tasks")


@dataclass(frozen=True)
class OptimizerOptions(RecipeTable):
    """AdamW with a linear warm-up, then a constant rate."""

    table: ClassVar[str] = "optimizer"
    steps: Annotated[int, "optimiser steps of the whole run", Ge(1)] = 15000
    batch_size: Annotated[int, "samples per step", Ge(1)] = 8
    gradient_accumulation_steps: Annotated[
        int, "gradient accumulation steps: micro-batches per optimizer step", Ge(1), Formerly("accumulate")
    ] = 1
    learning_rate: Annotated[float, "of the base model's parameters", Ge(0)] = 1e-5
    new_parameter_lr_scale: Annotated[
        float,
        "learning rate multiplier of parameters that the base model does not have",
        Ge(0),
        Formerly("added_rate_factor"),
    ] = 10.0
    warmup_steps: Annotated[int, "steps over which the rate grows from 0", Ge(0)] = 200
    decay_steps: Annotated[int, "last steps, over which the rate falls linearly to 0; 0: none", Ge(0)] = 0
    weight_decay: Annotated[float, "AdamW's, on matrices only", Ge(0)] = 0.01
    beta2: Annotated[float, "AdamW's second moment; the first is 0.9", Ge(0), Lt(1)] = 0.95
    max_grad_norm: Annotated[
        float, "maximum gradient norm; larger gradients are clipped", Gt(0), Formerly("clip_norm")
    ] = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.gradient_accumulation_steps:
            raise OpenUniError(
                f"recipe: optimizer.batch_size ({self.batch_size}) must be a multiple of "
                f"optimizer.gradient_accumulation_steps ({self.gradient_accumulation_steps})"
            )


@dataclass(frozen=True)
class EmaOptions(RecipeTable):
    """The averaged weights, which validation and sampling use."""

    table: ClassVar[str] = "ema"
    decay: Annotated[float, "per step, after a warm-up of (1 + step) / (10 + step)", Ge(0), Lt(1)] = 0.9999


@dataclass(frozen=True)
class ValidationOptions(RecipeTable):
    """Loss on held-out clips at fixed noise levels with fixed noise: comparable between steps and runs."""

    table: ClassVar[str] = "validation"
    every_steps: Annotated[int, "0: never", Ge(0)] = 500
    clips: Annotated[int, "at most this many held-out clips", Ge(1)] = 16
    quantiles: Annotated[int, "noise levels per clip and task", Ge(1)] = 4


@dataclass(frozen=True)
class CheckpointOptions(RecipeTable):
    """When the run is saved (also at the end and on Ctrl-C)."""

    table: ClassVar[str] = "checkpoints"
    every_steps: Annotated[int, "steps between two checkpoints", Ge(1)] = 500
    keep: Annotated[int, "how many of the latest stay", Ge(1)] = 2


@dataclass(frozen=True)
class TrainingRecipe:
    """A whole run. `Recipe.load` reads one by name (`train/recipes/NAME.toml`) or path."""

    model: Annotated[dict[str, Any], "`name` of the model and its options"] = field(
        default_factory=lambda: {"name": "unityvideo"}
    )
    tasks: Annotated[dict[str, float], "weights of joint, estimate, control, or of tasks such as `rgb->depth`"] = field(
        default_factory=lambda: dict(RELEASED_WEIGHTS)
    )
    modality_weights: Annotated[dict[str, float], "shares of the modalities within a word of `tasks`; 1 if absent"] = (
        field(default_factory=dict)
    )
    curriculum: Annotated[tuple[CurriculumStage, ...], "later stages: `[[curriculum]]` with from_step, tasks, ..."] = ()
    seed: Annotated[int, "of everything drawn"] = 0
    precision: Annotated[Literal["auto", "float32", "bfloat16"], "auto: bfloat16 autocast on CUDA"] = "auto"
    init_from: Annotated[
        str, "training run whose weights initialize this one, such as an earlier stage", Formerly("start_from")
    ] = ""
    data: DataOptions = field(default_factory=DataOptions)
    flow_matching: Annotated[FlowMatchingOptions, "noise levels", Formerly("flow")] = field(
        default_factory=FlowMatchingOptions
    )
    text: TextStreamOptions = field(default_factory=TextStreamOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)

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
        path = Path(name_or_path)
        if path.suffix != ".toml":
            path = RECIPES_DIR / f"{name_or_path}.toml"
            if not path.is_file():
                raise OpenUniError(
                    f'training recipe "{name_or_path}" is not known.{did_you_mean(str(name_or_path), recipe_names())} '
                    f"Known: {', '.join(recipe_names())}; or give a path that ends in .toml."
                )
        try:
            record = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise OpenUniError(f"there is no recipe at {path}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise OpenUniError(f"{path} is not valid TOML: {error}") from error
        return cls.from_dict(record, str(path))

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
