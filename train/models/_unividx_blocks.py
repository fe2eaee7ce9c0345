"""UniVidX's blocks, shared by its layouts: Wan's block over rows, with gated LoRAs and attention over all rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from openuni.training.backbone.attention import Rotary, WanProcessor
from openuni.training.backbone.lora import GatedLinear, LoraRouting, together
from openuni.training.backbone.wan import WanBlock

SHARED = "shared"  # adapter name of the shared-LoRA ablation


class CrossModalProcessor(WanProcessor):
    """Self-attention over rows: B M rows of S tokens attend as B sequences of M S tokens.

    Rows are viewed as one sequence, so keys and values are not repeated. Follows diffusers' processor interface, so
    that its attention backends apply.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: Rotary | None = None,
        rows: LoraRouting | None = None,
        joint: int = 1,
    ) -> torch.Tensor:
        """`hidden_states` [B M, S, D] -> the same; `joint`: number of consecutive rows that attend to each other."""
        query, key, value = together([attn.to_q, attn.to_k, attn.to_v], hidden_states, rows)
        mixed = self.attend(attn, query, key, value, rotary_emb, joint)
        out: torch.Tensor = attn.to_out[1](attn.to_out[0](mixed, rows))
        return out


class UniVidXBlock(WanBlock):
    """Wan's block over rows. Parameter names and order of operations are those of the base class."""

    def __init__(self, dim: int, ffn_dim: int, *base: Any, adapters: Sequence[str], rank: int, **options: Any) -> None:
        super().__init__(dim, ffn_dim, *base, **options)

        def gated(layer: nn.Linear) -> GatedLinear:
            return GatedLinear(layer.in_features, layer.out_features, adapters, rank)

        attention, feed_forward = self.attn1, self.ffn
        attention.to_q, attention.to_k = gated(attention.to_q), gated(attention.to_k)
        attention.to_v, attention.to_out[0] = gated(attention.to_v), gated(attention.to_out[0])
        feed_forward.net[0].proj, feed_forward.net[2] = gated(feed_forward.net[0].proj), gated(feed_forward.net[2])
        attention.set_processor(CrossModalProcessor())

    def forward(
        self,
        tokens: torch.Tensor,
        text: torch.Tensor,
        table: torch.Tensor,
        rows: LoraRouting,
        joint: int,
        *rotary: Any,
    ) -> torch.Tensor:
        """`tokens` [B M, S, D] -> the same; `text` [B M, L, D]; `table` [B M, 6, D]; `rotary`: of the S tokens."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (self.scale_shift_table + table.float()).chunk(6, dim=1)

        normed = (self.norm1(tokens.float()) * (1 + scale_1) + shift_1).type_as(tokens)
        mixed = self.attn1(normed, None, None, rotary, rows=rows, joint=joint)
        tokens = (tokens.float() + mixed * gate_1).type_as(tokens)

        normed = self.norm2(tokens.float()).type_as(tokens)
        tokens = tokens + self.attn2(normed, text, None, None)

        normed = (self.norm3(tokens.float()) * (1 + scale_2) + shift_2).type_as(tokens)
        return (tokens.float() + self.feed_forward(normed, rows).float() * gate_2).type_as(tokens)

    def feed_forward(self, tokens: torch.Tensor, rows: LoraRouting) -> torch.Tensor:
        """[B M, S, D] -> the same, gated per row as attention is."""
        widen, dropout, narrow = self.ffn.net
        out: torch.Tensor = narrow(dropout(widen.gelu(widen.proj(tokens, rows))), rows)
        return out
