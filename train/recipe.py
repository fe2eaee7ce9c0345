"""The training recipe: one TOML file, parsed strictly. Every default lives on its field."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt

from manifests.bounds import SHARE, check_options
from manifests.errors import OpenUniError, did_you_mean
from train.options import strict
from train.tasks import RELEASED_WEIGHTS

RECIPES_DIR = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Data:
    """What of the corpus to train on."""

    latents: Annotated[str, "latent family, or its codec's name; empty: the corpus has only one"] = ""
    text: Annotated[str, "text family, or its codec's name; empty: the corpus has only one"] = ""
    collections: Annotated[tuple[str, ...], "only clips of these collections (of the first stage); empty: all"] = ()
    text_length: Annotated[int, "rows of text per sample, zeros added (Wan: 512); 0: as the longest text"] = 512
    caption_dropout: Annotated[float, "share of samples whose caption is replaced by the empty one", SHARE] = 0.1
    given_dropout: Annotated[float, "share of samples told nothing: given streams noise, caption empty", SHARE] = 0.0
    validation_share: Annotated[float, "share of sources held out, where clips name no split themselves", SHARE] = 0.1

    def __post_init__(self) -> None:
        check_options(self, "recipe: data")


@dataclass(frozen=True)
class Flow:
    """Which noise levels are drawn in training."""

    density: Annotated[Literal["logit_normal", "uniform"], "density of sigma before the shift"] = "logit_normal"
    shift: Annotated[float, "Wan's timestep shift, of training and sampling; 1 is none"] = 5.0
    shared_sigma: Annotated[bool, "all made streams of a sample get one sigma, else each its own"] = True
    weighting: Annotated[Literal["none", "gaussian"], "of the loss by sigma: gaussian counts the middle most"] = "none"
    stratified: Annotated[bool, "spread the sigmas of a batch evenly over the density: less noise in the loss"] = True


@dataclass(frozen=True)
class TextStream:
    """The caption as a stream of tokens, for models that make text."""

    tokenizer: Annotated[Literal["bytes", "umt5"], "what a token is: a byte of UTF-8, or a piece of umT5's"] = "bytes"
    checkpoint: Annotated[str, "of umt5's tokenizer: hub name or folder"] = "google/umt5-xxl"
    length: Annotated[int, "tokens of every text, the end included; clips with longer texts make none"] = 256
    stage: Annotated[
        Literal["recall", "refinement"], "the text to make is the prompt; or a detailed caption, from a brief prompt"
    ] = "recall"
    detailed: Annotated[str, 'of refinement: the captions to make, a column such as "caption.detailed"'] = ""
    brief_tokens: Annotated[tuple[int, ...], "of refinement: least and most tokens of a prompt"] = (0, 128)
    detailed_tokens: Annotated[tuple[int, ...], "of refinement: least and most tokens of the caption"] = (128, 256)
    source: Annotated[Literal["uniform", "mask"], "tokens at sigma 1: any, or the mask"] = "uniform"
    degree: Annotated[float, "a token is clean with probability (1 - sigma)^degree"] = 1.0
    loss: Annotated[Literal["cross_entropy", "generalised_kl"], "of tokens, per token"] = "cross_entropy"
    weight: Annotated[float, "of the text's loss; 0: video tokens over text tokens, as published"] = 0.0
    density: Annotated[Literal["logit_normal", "uniform"], "density of the text's sigma before the shift"] = "uniform"
    shift: Annotated[float, "shift of the text's sigma, and of sampling text alone"] = 1.0

    def __post_init__(self) -> None:
        if self.length < 2 or self.degree <= 0 or self.shift <= 0 or self.weight < 0:
            raise OpenUniError(
                "recipe: text.length must be at least 2, text.degree and text.shift above 0, text.weight 0 or more; "
                f"got {self.length}, {self.degree:g}, {self.shift:g}, {self.weight:g}"
            )
        for name in ("brief_tokens", "detailed_tokens"):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 <= limits[0] <= limits[1]:
                raise OpenUniError(f"recipe: text.{name} must be [least, most], got {list(limits)}")
        if self.stage == "refinement" and self.detailed_tokens[0] >= self.length:
            raise OpenUniError(
                f"recipe: no caption of {self.detailed_tokens[0]} tokens and more fits text.length = {self.length}"
            )


@dataclass(frozen=True)
class Stage:
    """From one step on other tasks, on other clips. A stage takes nothing over from the one before."""

    from_step: Annotated[int, "its first step, counted from 0; the recipe's own tasks hold before", Gt(0)] = 0
    tasks: Annotated[dict[str, float], "as the recipe's"] = field(default_factory=dict)
    modality_weights: Annotated[dict[str, float], "as the recipe's"] = field(default_factory=dict)
    collections: Annotated[tuple[str, ...], "only clips of these collections; empty: all"] = ()

    def __post_init__(self) -> None:
        check_options(self, "recipe: curriculum")
        if not self.tasks:
            raise OpenUniError(f"recipe: curriculum: the stage from step {self.from_step} says no tasks")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with a linear warm-up, then a constant rate."""

    steps: Annotated[int, "optimiser steps of the whole run"] = 15000
    batch_size: Annotated[int, "samples per step"] = 8
    accumulate: Annotated[int, "parts a batch is computed in, one after another, to save memory"] = 1
    learning_rate: Annotated[float, "of the base model's parameters"] = 1e-5
    added_rate_factor: Annotated[float, "times that for parameters the base model does not have"] = 10.0
    warmup_steps: Annotated[int, "steps over which the rate grows from 0"] = 200
    decay_steps: Annotated[int, "last steps, over which the rate falls linearly to 0; 0: none"] = 0
    weight_decay: Annotated[float, "AdamW's, on matrices only"] = 0.01
    beta2: Annotated[float, "AdamW's second moment; the first is 0.9"] = 0.95
    clip_norm: Annotated[float, "gradients longer than this are scaled down to it"] = 1.5


@dataclass(frozen=True)
class Ema:
    """The averaged weights, which validation and sampling use."""

    decay: Annotated[float, "per step, after a warm-up of (1 + step) / (10 + step)"] = 0.9999


@dataclass(frozen=True)
class Validation:
    """Loss on held-out clips at fixed noise levels with fixed noise: comparable between steps and runs."""

    every_steps: Annotated[int, "0: never"] = 500
    clips: Annotated[int, "at most this many held-out clips"] = 16
    quantiles: Annotated[int, "noise levels per clip and task"] = 4


@dataclass(frozen=True)
class Checkpoints:
    """When the run is saved (also at the end and on Ctrl-C)."""

    every_steps: Annotated[int, "steps between two checkpoints"] = 500
    keep: Annotated[int, "how many of the latest stay"] = 2


@dataclass(frozen=True)
class Recipe:
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
    curriculum: Annotated[tuple[Stage, ...], "later stages: `[[curriculum]]` with from_step, tasks, ..."] = ()
    seed: Annotated[int, "of everything drawn"] = 0
    precision: Annotated[Literal["auto", "float32", "bfloat16"], "auto: bfloat16 autocast on CUDA"] = "auto"
    start_from: Annotated[str, "folder of a run whose weights this one starts from, such as a first stage"] = ""
    data: Data = field(default_factory=Data)
    flow: Flow = field(default_factory=Flow)
    text: TextStream = field(default_factory=TextStream)
    optimizer: Optimizer = field(default_factory=Optimizer)
    ema: Ema = field(default_factory=Ema)
    validation: Validation = field(default_factory=Validation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    def __post_init__(self) -> None:
        if not isinstance(self.model.get("name"), str):
            raise OpenUniError('recipe: [model] needs a name, such as name = "unityvideo"')
        borders = [stage.from_step for stage in self.curriculum]
        if borders != sorted(set(borders)):
            raise OpenUniError(f"recipe: curriculum: each stage must begin after the one before; from_step: {borders}")
        optimizer, checkpoints = self.optimizer, self.checkpoints
        positive = {
            "optimizer.steps": optimizer.steps,
            "optimizer.batch_size": optimizer.batch_size,
            "optimizer.accumulate": optimizer.accumulate,
            "checkpoints.every_steps": checkpoints.every_steps,
            "checkpoints.keep": checkpoints.keep,
            "flow.shift": self.flow.shift,
        }
        for name, value in positive.items():
            if value <= 0:
                raise OpenUniError(f"recipe: {name} must be above 0, got {value}")
        if optimizer.batch_size % optimizer.accumulate:
            raise OpenUniError(
                f"recipe: optimizer.batch_size ({optimizer.batch_size}) must be a multiple of "
                f"optimizer.accumulate ({optimizer.accumulate})"
            )

    @classmethod
    def load(cls, name_or_path: str | Path) -> "Recipe":
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
            record = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise OpenUniError(f"there is no recipe at {path}") from None
        except tomllib.TOMLDecodeError as error:
            raise OpenUniError(f"{path} is not valid TOML: {error}") from error
        return cls.from_dict(record, str(path))

    @classmethod
    def from_dict(cls, record: dict[str, Any], where: str = "recipe") -> "Recipe":
        """From nested dicts as TOML and JSON give them; strict about keys and types."""
        return strict(cls, record, where)

    def to_dict(self) -> dict[str, Any]:
        """Nested JSON-able dicts, every default spelled out."""
        return dataclasses.asdict(self)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.toml"))
