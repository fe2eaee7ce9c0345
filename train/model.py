"""The model contract: the interface between models and tasks, flow matching, sampler and trainer."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.options import recorded
from openuni.training.tasks import Task

# the clip's caption, the modality-type prompt, the empty caption
TextCondition = Literal["caption", "prompt", "nothing"]
Streams = dict[str, torch.Tensor]  # by modality: latents [B, C, T, H, W], all of one shape


@dataclass(frozen=True)
class UnrecordedDefault:
    """Beside an option's meaning: the value of runs whose record is older than the option, if it is not the default."""

    value: Any


class VideoModel(Protocol):
    """A `torch.nn.Module` with this call. Weights are float32; autocast chooses the arithmetic.

    `forward(streams, sigmas, text)`: latents [B, C, T, H, W] by modality, noisy for targets and clean for conditions;
    one sigma per stream and sample [B], 0 clean to 1 noise; per stream the text embeddings that its tokens attend to,
    [B, L, D], selected by `Model.text_condition`. Returns the velocity `eps - x` of every stream, [B, C, T, H, W].
    """

    streams: tuple[str, ...]  # supported modalities
    channels: int  # C of the latents
    text_dim: int  # D of the text
    patch: tuple[int, int, int]  # T, H, W of the latents must be multiples of these
    condition_sigma: float  # sigma of condition streams; those of target streams are above it
    unsaved: frozenset[str]  # state-dict keys that are not checkpointed: reloaded from the frozen pretrained base

    def __call__(self, streams: Streams, sigmas: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Streams:
        """Velocities of every stream."""

    def added_parameters(self) -> list[str]:
        """Names of the newly added parameters, which can have a separate learning rate."""


class TextModel(VideoModel, Protocol):
    """A `VideoModel` that also generates text: the caption is one more stream, "text", in the same call.

    `streams["text"]`: noisy (or clean, at sigma 0) token values, int64 [B, L], in 0..vocabulary - 1; `sigmas["text"]`
    [B] as for any stream. The result has "text", the logits [B, L, vocabulary] of the clean tokens. With continuous
    flow matching of text, `streams["text"]` may be noisy embeddings, float [B, L, D], and the result also has
    "text_velocity" [B, L, D]. Without "text" among the streams it behaves as a plain `VideoModel`.
    """

    vocabulary: int
    text_flow: Literal["tokens", "embeddings"]

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token values int64 [B, L] -> clean embeddings for continuous flow matching, float32 [B, L, D]."""


@dataclass(frozen=True)
class Model(Component):
    """Base of all models: a component whose `load` builds the module, on the device, with its initial weights."""

    gpus: ClassVar[float] = 1.0
    generates_text: ClassVar[bool] = False  # whether its module is a `TextModel`; it then has the option `vocabulary`
    divides_tokens: ClassVar[bool] = False  # whether its module supports `context_parallel`
    supported_modalities: ClassVar[tuple[str, ...]] = ()  # fixed latent streams; empty: chosen by the recipe
    caption_option: ClassVar[str] = ""  # option that gives the caption to tasks without one, such as 'model.x = "y"'

    @abstractmethod
    def load(self, device: str) -> Any:
        """The `VideoModel` with initial (or pretrained) weights. Draws from torch's global generator."""

    def text_condition(self, task: Task, stream: str) -> TextCondition:
        """Text that a stream's tokens attend to in a task: the caption for rgb, else the modality-type prompt."""
        return "caption" if stream == "rgb" else "prompt"

    def has_text_stream(self, task: Task) -> bool:
        """Whether text is one of the streams in this task, as a target or as a condition (the clean caption)."""
        return self.generates_text and task.generates_text

    @property
    def text_width(self) -> int:
        """Width D of text embeddings under continuous flow matching; 0 under discrete flow matching."""
        return 0

    @property
    def condition_sigma(self) -> float:
        """Sigma of condition streams; 0 (exactly clean) by default."""
        return 0.0

    def max_latent_shape(self, streams: int) -> tuple[int, int, int] | None:
        """Maximum T, H, W of the latents for this number of streams; None: unlimited."""
        return None

    @abstractmethod
    def resolved(self) -> "Model":
        """The same architecture with all sizes as explicit options, as a run records it.

        Loading it requires no files except unsaved weights (`VideoModel.unsaved`).
        """

    def machine_independent(self) -> "Model":
        """A copy with execution options, such as attention kernels, at their defaults, as a run records it."""
        return self

    def options_dict(self) -> dict[str, Any]:
        """The options as JSON-able values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in recorded(self).items()}
