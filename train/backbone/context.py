"""Context parallelism: the tokens of a sample divided among ranks, for sequences that are too long for one device.

Every rank has a part of the tokens of every segment. In self-attention two all-to-all exchanges give each rank all
tokens of a part of the heads, and back (DeepSpeed-Ulysses, arXiv 2309.14509). All else in a block works on single
tokens. Parts may differ by one token, so nothing is padded. The gradient of a parameter on one rank is that of the
rank's tokens: its sum over the ranks is the gradient of the sample.
"""

from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as collectives


class Context:
    """The ranks that share the tokens of each sample, and this rank's place among them."""

    def __init__(self, rank: int, size: int, group_name: Any = None) -> None:
        self.rank, self.size, self.group_name = rank, size, group_name

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> Self:
        """All ranks of a process group."""
        return cls(group.rank(), group.size(), group.group_name)

    def lengths(self, count: int) -> tuple[int, ...]:
        """Number of tokens on each rank, of `count` in all, as `torch.tensor_split` divides them."""
        return tuple(count // self.size + (rank < count % self.size) for rank in range(self.size))

    def part(self, tokens: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """This rank's part of the tokens along `dim`, in memory of its own."""
        lengths = self.lengths(tokens.shape[dim])
        return tokens.narrow(dim, sum(lengths[: self.rank]), lengths[self.rank]).clone()

    def whole(self, part: torch.Tensor, count: int) -> torch.Tensor:
        """Parts [B, tokens of a rank, ...] of all ranks -> [B, count, ...], equal on all ranks.

        For outputs: each rank must compute the same loss from them, whose gradient then goes to each rank's part.
        """
        whole: torch.Tensor = _Whole.apply(part, self, count)
        return whole

    def to_heads(self, tokens: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """Own tokens of all heads [B, own, heads, ...] -> all tokens of own heads [B, sum(lengths), heads / size, ...].

        `lengths`: tokens of each rank. The order of tokens is that of ranks, the same for all heads.
        """
        split = tokens.unflatten(2, (self.size, -1)).movedim(2, 0).transpose(1, 2)  # [size, own, B, heads / size, ...]
        received = self._exchange(split.flatten(0, 1).contiguous(), lengths, (tokens.shape[1],) * self.size)
        return received.transpose(0, 1)

    def to_tokens(self, heads: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """The inverse of `to_heads`."""
        own = lengths[self.rank]
        received = self._exchange(heads.transpose(0, 1).contiguous(), (own,) * self.size, lengths)
        return received.unflatten(0, (self.size, own)).transpose(1, 2).movedim(0, 2).flatten(2, 3)

    def _exchange(self, rows: torch.Tensor, received: tuple[int, ...], sent: tuple[int, ...]) -> torch.Tensor:
        """Send `sent[r]` of the rows to rank r, and receive `received[r]` from it. Differentiable."""
        return collectives.all_to_all_single_autograd(rows, list(received), list(sent), self.group_name)

    def _gathered(self, rows: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """The rows of all ranks, one after another; `lengths`: of each rank."""
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = collectives.all_gather_tensor(padded, 0, self.group_name).split(max(lengths))
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


class _Whole(torch.autograd.Function):
    """Gather parts. The gradient of the whole is the same on all ranks: each takes its part, without a sum."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, context: Context, count: int) -> torch.Tensor:
        ctx.context = context
        return context._gathered(part.transpose(0, 1), context.lengths(count)).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.context.part(gradients[0]), None, None
