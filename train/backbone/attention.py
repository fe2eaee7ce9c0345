"""Attention kernels: diffusers' attention backends that support training, by name."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention

from openuni.manifests.errors import MissingRequirement, OpenUniError, unknown_name
from openuni.training.backbone.context import Context

Attention = Literal[
    "auto", "sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "sdpa_math", "flash", "flash_3", "xformers"
]


class Backend(NamedTuple):
    """One of diffusers' attention backends and its requirements."""

    name: AttentionBackendName
    half_only: bool = False  # supports only bfloat16 and float16
    cuda_only: bool = False
    install: str = ""  # command that installs its package


# Excluded: backends without gradients (sage), and those that download kernel code from a hub on first use.
BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(AttentionBackendName.NATIVE),
    "sdpa_flash": Backend(AttentionBackendName._NATIVE_FLASH, half_only=True, cuda_only=True),
    "sdpa_cudnn": Backend(AttentionBackendName._NATIVE_CUDNN, half_only=True, cuda_only=True),
    "sdpa_efficient": Backend(AttentionBackendName._NATIVE_EFFICIENT, cuda_only=True),
    "sdpa_math": Backend(AttentionBackendName._NATIVE_MATH),
    "flash": Backend(AttentionBackendName.FLASH, True, True, "pip install flash-attn --no-build-isolation"),
    "flash_3": Backend(
        AttentionBackendName._FLASH_3, True, True, "build flash-attention's hopper/ folder from source (Hopper GPUs)"
    ),
    "xformers": Backend(AttentionBackendName.XFORMERS, False, True, "pip install xformers"),
}


def check_attention(name: str, device: str) -> None:
    """Raise `OpenUniError`, or `MissingRequirement` with the command, unless this attention runs on `device`."""
    if name not in get_args(Attention):
        raise OpenUniError(unknown_name("attention", name, get_args(Attention)))
    if name == "auto":
        return
    backend = BACKENDS[name]
    kind = torch.device(device).type
    if backend.cuda_only and kind != "cuda":
        able = ["auto", *(other for other, found in BACKENDS.items() if not found.cuda_only)]
        raise OpenUniError(f'attention = "{name}" requires CUDA, but the device is {kind}. Allowed: {_listed(able)}')
    try:
        attention_dispatch._check_attention_backend_requirements(backend.name)
    except RuntimeError as error:
        raise MissingRequirement(
            f'attention = "{name}" is not available: {error} Install it with: {backend.install}; or set attention = '
            '"auto"'
        ) from error


def _listed(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def use_attention(model: torch.nn.Module, name: str) -> None:
    """Set the attention backend of this model only.

    "auto" uses PyTorch's scaled_dot_product_attention, or diffusers' DIFFUSERS_ATTN_BACKEND.
    """
    for module in model.modules():
        if isinstance(module, WanAttention):
            processor: Any = module.processor
            processor._attention_backend = None if name == "auto" else BACKENDS[name].name


def use_context(model: torch.nn.Module, context: Context | None) -> None:
    """Let the attention of a model exchange tokens and heads within `context`; None: it has all tokens."""
    for module in model.modules():
        if isinstance(module, WanAttention):
            processor: Any = module.processor
            processor.context = context


def check_precision(name: str, device: torch.device) -> None:
    """Raise `OpenUniError` with advice if a half-precision backend is called in float32."""
    if name not in BACKENDS or not BACKENDS[name].half_only:
        return
    if not torch.is_autocast_enabled(device.type):
        raise OpenUniError(
            f'attention = "{name}" requires bfloat16, but precision is float32. Set precision = "bfloat16" in the '
            'recipe, or attention = "sdpa".'
        )


# cosines and sines, float32 [1, tokens, 1, head_dim] each; with a context of several ranks also the tokens of each rank
Rotary = tuple[Any, ...]


def rotated(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Apply RoPE to pairs of channels as diffusers' Wan does: `heads` [B, S, heads, head_dim] -> the same."""
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    cosines, sines = cosines[..., 0::2], sines[..., 1::2]
    turned = torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), dim=-1)
    return turned.flatten(-2).type_as(heads)


class WanProcessor:
    """Attention of `WanAttention`, as diffusers' `WanAttnProcessor` computes it, bit for bit, with less around it.

    Rotations write no slices. Queries, keys and values get one dtype before the kernel: under autocast, queries and
    keys leave their norm in float32, which PyTorch's attention would cast and those of other packages reject. The
    result goes to the output layer as it is, since a cast to float32 and back changes nothing. With `context`, heads
    are divided among ranks while tokens are together.
    """

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None
    context: Context | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        """`hidden_states` [B, S, D] attend to `encoder_hidden_states` [B, L, D] or to themselves -> [B, S, D]."""
        attended = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(attended), attn.to_v(attended)
        mixed = self.attend(attn, query, key, value, rotary_emb)
        out: torch.Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out

    def attend(
        self,
        attn: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary: Rotary | None,
        joint: int = 1,
    ) -> torch.Tensor:
        """Norms, rotation and attention of projected tokens [B, S, D] -> [B, S, D].

        `joint`: number of consecutive rows of the batch that attend to one another, as one sequence.
        """
        query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(key).unflatten(2, (attn.heads, -1))
        value = value.unflatten(2, (attn.heads, -1))
        if rotary is not None:
            query, key = rotated(query, *rotary[:2]), rotated(key, *rotary[:2])
        shape = query.shape
        qkv = [query.type_as(value), key.type_as(value), value]
        if joint > 1:
            qkv = [tensor.reshape(-1, joint * tensor.shape[1], *tensor.shape[2:]) for tensor in qkv]
        if self.context is None or rotary is None:  # attention to text: all of it is on every rank
            mixed = self._kernel(*qkv)
        else:
            lengths = tuple(joint * length for length in rotary[2])
            heads = self.context.to_heads(torch.stack(qkv, dim=3), lengths)
            mixed = self.context.to_tokens(self._kernel(*heads.unbind(3)), lengths)
        return mixed.reshape(*shape[:2], -1)

    def _kernel(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend)
