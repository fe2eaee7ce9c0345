"""The model contract: what tasks, flow matching, sampler and trainer know of a model, and nothing more."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.options import recorded
from openuni.training.tasks import Task

TextCondition = Literal[
    "caption", "prompt", "nothing"
]  # the clip's caption, the modality-type prompt, the empty caption
Streams = dict[str, torch.Tensor]  # by modality: latents [B, C, T, H, W], all of one shape


class VideoModel(Protocol):
    """A `torch.nn.Module` with this call. Weights are float32; autocast chooses the arithmetic.

    `forward(streams, sigmas, text)`: noisy (or clean, where given) latents [B, C, T, H, W] by modality; one sigma per
    stream and sample [B], 0 clean to 1 noise; per stream the text its tokens attend to, [B, L, D], which is what the
    model's `text_of` says. Returns the velocity `eps - x` of every stream, [B, C, T, H, W].
    """

    streams: tuple[str, ...]  # modalities it was built for
    channels: int  # C of the latents
    text_dim: int  # D of the text
    patch: tuple[int, int, int]  # T, H, W of the latents must be multiples of these
    condition_sigma: float  # sigma of given streams; those of made ones lie above it
    unsaved: frozenset[str]  # names in the state dict that its options bring back (a frozen pretrained base)

    def __call__(self, streams: Streams, sigmas: dict[str, torch.Tensor], text: dict[str, torch.Tensor]) -> Streams:
        """Velocities of every stream."""

    def added_parameters(self) -> list[str]:
        """Names of the parameters that the base model does not have; they may learn faster."""


class TextModel(VideoModel, Protocol):
    """A `VideoModel` that also makes text: the caption is one more stream, "text", in the same call.

    `streams["text"]`: noisy (or clean, at sigma 0) token values, int64 [B, L], in 0..vocabulary - 1; `sigmas["text"]`
    [B] as of any stream. The result has "text", the logits [B, L, vocabulary] of the clean tokens. Where the text's
    flow is continuous, `streams["text"]` may be noisy embeddings, float [B, L, D], and the result has
    "text_velocity" [B, L, D] beside the logits. Without "text" among the streams it is a plain `VideoModel`.
    """

    vocabulary: int
    text_flow: Literal["tokens", "embeddings"]

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token values int64 [B, L] -> the clean embeddings that flow, float32 [B, L, D]."""


@dataclass(frozen=True)
class Model(Component):
    """Base of all models: a component whose `load` builds the module, on the device, with its initial weights."""

    gpus: ClassVar[float] = 1.0
    generates_text: ClassVar[bool] = False  # whether its module is a `TextModel`; it then has the option `vocabulary`
    supported_modalities: ClassVar[tuple[str, ...]] = ()  # the streams of latents it has, where there is no choice

    @abstractmethod
    def load(self, device: str) -> Any:
        """The `VideoModel` with initial (or pretrained) weights. Draws from torch's global generator."""

    def text_condition(self, task: Task, stream: str) -> TextCondition:
        """Which text the tokens of a stream attend to in a task: the caption for rgb, its prompt for any other."""
        return "caption" if stream == "rgb" else "prompt"

    def has_text_stream(self, task: Task) -> bool:
        """Whether in this task text is one of the streams, made or (its caption, clean) given."""
        return self.generates_text and task.generates_text

    @property
    def text_width(self) -> int:
        """D of the embeddings that flow where text is made from noise; 0 where tokens flow."""
        return 0

    @property
    def condition_sigma(self) -> float:
        """Sigma at which the model sees given streams: 0, exactly clean, unless a model says otherwise."""
        return 0.0

    def max_latent_shape(self, streams: int) -> tuple[int, int, int] | None:
        """T, H, W beyond which the model has no positions for so many streams; None: there is no end to them."""
        return None

    @abstractmethod
    def resolved(self) -> "Model":
        """The same architecture spelled out in the options: what a run records beside its weights.

        It needs no file but those of weights that the run does not save (`VideoModel.unsaved`).
        """

    def machine_independent(self) -> "Model":
        """Without the options that say how a machine is to compute, such as its kernels: what a run records."""
        return self

    def options_dict(self) -> dict[str, Any]:
        """The options as JSON-able values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in recorded(self).items()}
