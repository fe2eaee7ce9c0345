"""FSDP2: the weights of a model divided among ranks, gathered block by block where they are computed with."""

import warnings
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.training.backbone.attention import check_attention, use_attention, use_context
from openuni.training.backbone.compilation import COMPILE
from openuni.training.backbone.context import Context
from openuni.training.loop.ranks import Ranks
from openuni.training.loop.training_checkpoint import TrainingCheckpoint, check_matches, load_optimizer
from openuni.training.loop.weights import SYNC_TOLERANCE, Ema, Rows, Weights

# Weights are gathered in their own dtype and autocast casts them, as on one device: the arithmetic is the same.
# Gradients are added in float32.
POLICY = MixedPrecisionPolicy(
    param_dtype=None, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
)


class ShardedWeights(Weights):
    """The share of this rank of a model's trained weights. `shard` has been applied to the model."""

    def __init__(self, model: Any, ranks: Ranks, every_micro_batch: bool = False) -> None:
        """`every_micro_batch`: add gradients over ranks after every micro-batch, which takes less memory."""
        super().__init__(model)
        self.ranks = ranks
        self.every_micro_batch = every_micro_batch
        with torch.no_grad():
            sharded: Any = self.parameters
            self.local = {name: parameter.to_local() for name, parameter in sharded.items()}
        self._numbers = {name: number for number, name in enumerate(self.local)}
        self._used = np.zeros(len(self.local))
        # float64 [parameters, 2]: sums of the local gradients and of their absolute values, until they are checked
        self._sums: torch.Tensor | None = None
        self._is_checked = False
        for prefix, module in model.named_modules():
            if isinstance(module, FSDPModule):
                hooked: Any = module
                hooked.register_forward_pre_hook(partial(self._watch, prefix))
        self._watched: set[str] = set()

    def begin_pass(self, is_last: bool) -> None:
        """See `Weights.begin_pass`: gradients are added over ranks after the last micro-batch only."""
        self.model.set_requires_gradient_sync(is_last or self.every_micro_batch)
        self.model.set_is_last_backward(is_last)

    def used(self) -> np.ndarray:
        """See `Weights.used`."""
        return self._used

    def gradients(self, used: np.ndarray) -> list[torch.Tensor]:
        """See `Weights.gradients`. Parameters that no rank has used have none, as on one device."""
        found = []
        for (name, parameter), count in zip(self.parameters.items(), used, strict=True):
            if count and parameter.grad is not None:
                gradient = parameter.grad._local_tensor  # type: ignore[attr-defined]
                self.local[name].grad = gradient
                found.append(gradient)
            elif count:
                raise OpenUniError(f"gradients are not synchronized between ranks: {name} has none on this rank")
        self._used = np.zeros(len(self.local))
        return found

    def changed(self) -> None:
        """See `Weights.changed`: releases gathered weights, which are gathered again when needed."""
        self.model.reshard()

    def check_synchronized(self, ranks: Ranks) -> None:
        """See `Weights.check_synchronized`; the first call checks, later ones do nothing."""
        if self._is_checked:
            return
        self._is_checked = True
        before = np.zeros((len(self.local), 2)) if self._sums is None else self._sums.cpu().numpy()
        self._sums = None
        after = np.array(
            [0.0 if tensor.grad is None else tensor.grad.double().sum().item() for tensor in self.local.values()]
        )
        together = ranks.total(np.concatenate([before.ravel(), after]))
        sums, absolute = together[: before.size].reshape(before.shape).T
        difference = np.abs(together[before.size :] - sums)
        odd = np.flatnonzero(~(difference <= SYNC_TOLERANCE * ranks.world * absolute + 1e-30))
        finite = np.isfinite(together).all()  # else the step is refused as not finite
        if len(odd) and finite:
            name = list(self.local)[odd[0]]
            raise ranks.agreed(
                OpenUniError(
                    f"gradients are not synchronized between ranks: that of {name} is not the sum over all "
                    f"{ranks.world} ranks ({len(odd)} of {len(self.local)} parameters). No weights were changed. "
                    "Check that all nodes have the same version of PyTorch."
                )
            )

    def rows(self, name: str, local: torch.Tensor) -> Rows:
        """See `Weights.rows`."""
        return Rows(local, self.parameters[name])

    @torch.no_grad()
    def load(self, checkpoint: TrainingCheckpoint, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Load this rank's share of a checkpoint, reading no more than that.

        Raises `DamagedCheckpoint`, or `OpenUniError` if names or sizes differ.
        """
        state = self.model.state_dict()
        local = {name: tensor.to_local() for name, tensor in state.items()}
        check_matches(self.model, self._load_into(checkpoint, "model", local), checkpoint.path)
        check_matches(self.model, self._load_into(checkpoint, "ema", ema.average), checkpoint.path)
        moments = {}
        for key, _, tensor in checkpoint.shares("optimizer", lambda key, size: self._rows(key.partition("/")[2], size)):
            moments[key] = tensor
        load_optimizer(optimizer, self.local, moments, checkpoint.path)

    def _load_into(
        self, checkpoint: TrainingCheckpoint, file: str, local: dict[str, torch.Tensor]
    ) -> dict[str, torch.Size]:
        """Returns the sizes of the tensors in the file."""
        sizes = {}
        for name, size, tensor in checkpoint.shares(file, self._rows):
            sizes[name] = size
            if name in local and local[name].shape == tensor.shape:  # else `check_matches` raises
                local[name].copy_(tensor)
        return sizes

    def _rows(self, name: str, size: torch.Size) -> tuple[slice, ...] | None:
        """The rows of a tensor that are the share of this rank: FSDP2 divides the first dimension as `torch.chunk`."""
        if not size:
            return None  # a number, such as the optimizer's count of steps
        rows = -(-size[0] // self.ranks.world)
        return (slice(min(self.ranks.rank * rows, size[0]), min((self.ranks.rank + 1) * rows, size[0])),)

    def _watch(self, prefix: str, module: nn.Module, _: Any) -> None:
        """Before a module's first forward pass: note which of its gathered parameters get gradients."""
        if prefix in self._watched:
            return
        self._watched.add(prefix)
        for name, parameter in module.named_parameters(prefix):
            if name in self._numbers and not isinstance(parameter, DTensor):  # else of a module within
                parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, self._numbers[name]))

    @torch.no_grad()
    def _on_gradient(self, number: int, parameter: torch.Tensor) -> None:
        self._used[number] = 1.0
        if self._is_checked or parameter.grad is None:
            return
        gradient = parameter.grad.double()
        if self._sums is None:
            self._sums = torch.zeros(len(self.local), 2, dtype=torch.float64, device=gradient.device)
        entry = torch.stack([gradient.sum(), gradient.abs().sum()])
        # without synchronization, gradients accumulate: the last one is the sum of all
        self._sums[number] = self._sums[number] + entry if self.every_micro_batch else entry


def shard(model: Any, ranks: Ranks, device: str, attention: str = "auto", compile_backend: str = "none") -> None:
    """Divide the weights of a model on the CPU among ranks, block by block, on `device`.

    Raises `MissingRequirement` if PyTorch is too old, and `OpenUniError` for an attention kernel that does not run
    there.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise MissingRequirement(
            f"training on several ranks needs PyTorch 2.15 or newer, this is {torch.__version__}. Install it with: "
            "pip install 'torch>=2.15'"
        )
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")  # nothing is in place
    check_attention(attention, device)
    model.attention = attention
    use_attention(model, attention)
    if ranks.context_group is not None:
        model.context = Context.of(ranks.context_group)
        use_context(model, model.context)
    for block in model.blocks:
        if compile_backend != "none":  # within the block: gathering is not compiled
            block.forward = torch.compile(block.forward, backend=compile_backend, **COMPILE)
        fully_shard(block, mesh=ranks.mesh, mp_policy=POLICY, reshard_after_forward=True)
    fully_shard(model, mesh=ranks.mesh, mp_policy=POLICY, reshard_after_forward=False)
    model.register_forward_pre_hook(_hide_streams, prepend=True)
    if hasattr(model, "embedded"):
        register_fsdp_forward_method(model, "embedded")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)  # losses are divided by the batch size
    model.set_reduce_scatter_unused_params(True)  # ranks use different parameters in a pass


def _hide_streams(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pass streams as a mapping that FSDP does not look into.

    It would take gradients of the model's outer weights to be complete once those of the inputs are. Text embeddings
    among the inputs come from such weights (`TextModel.embedded`), whose gradients follow later.
    """
    return (MappingProxyType(given[0]), *given[1:])
