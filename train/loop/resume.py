"""Starting a training: from its latest sound checkpoint, or from the weights of an earlier run."""

import logging
from pathlib import Path
from typing import Any

import torch

from openuni.manifests.errors import OpenUniError
from openuni.training.loop.ranks import Ranks
from openuni.training.loop.setup import Setup
from openuni.training.loop.sharding import ShardedWeights
from openuni.training.loop.training_checkpoint import (
    DamagedCheckpoint,
    TrainingCheckpoint,
    check_matches,
    check_sizes,
    list_checkpoints,
    load_model,
    load_optimizer,
    set_aside,
    unsaved,
)
from openuni.training.loop.weights import Ema, Weights
from openuni.training.run import Run

logger = logging.getLogger(__name__)


def resume(
    ranks: Ranks, folder: Path, weights: Weights, ema: Ema, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]]:
    """Load the latest sound checkpoint. Returns its step and state; 0 and an empty state without checkpoints.

    Damaged ones are renamed. Raises `OpenUniError` if there are only damaged ones.
    """
    damaged: list[tuple[TrainingCheckpoint, DamagedCheckpoint]] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            state = ranks.together(lambda: _load(checkpoint, weights, ema, optimizer))  # noqa: B023  # called here
        except DamagedCheckpoint as error:
            damaged.append((checkpoint, error))
            continue
        if ranks.is_first:
            for other, reason in damaged:
                logger.warning("%s Renamed to %s; resuming from step %d.", reason, set_aside(other), checkpoint.step)
        return checkpoint.step, state
    if damaged:
        reasons = "\n  ".join(str(reason) for _, reason in damaged)
        raise ranks.agreed(OpenUniError(f"no checkpoint of {folder} can be used:\n  {reasons}"))
    return 0, {}


def _load(
    checkpoint: TrainingCheckpoint, weights: Weights, ema: Ema, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    state = checkpoint.state()
    if isinstance(weights, ShardedWeights):
        weights.load(checkpoint, ema, optimizer)
        return state
    load_model(weights.model, checkpoint.tensors("model"), checkpoint.path)
    averages = checkpoint.tensors("ema")
    check_matches(weights.model, {name: tensor.shape for name, tensor in averages.items()}, checkpoint.path)
    with torch.no_grad():
        for name, average in ema.average.items():
            average.copy_(averages[name])
    load_optimizer(optimizer, weights.local, checkpoint.tensors("optimizer"), checkpoint.path)
    return state


def init_from(model: Any, setup: Setup) -> None:
    """Initialize from the EMA weights of an earlier run; newly added parameters keep their initial weights."""
    if not setup.recipe.init_from:
        return
    run = Run.open(setup.recipe.init_from)
    earlier = run.checkpoint
    if run.record.get("tokens") != setup.record.get("tokens"):
        raise OpenUniError(
            f"init_from: {run.folder} was trained with a different tokenizer: {run.record.get('tokens')}, this run "
            f"has {setup.record.get('tokens')}. Use the [text] tokenizer and checkpoint of that run."
        )
    tensors = earlier.tensors("ema")
    check_sizes(model, tensors, earlier.path)
    own = model.state_dict()
    if any(
        not torch.equal(tensors[name].to(own[name].dtype), own[name].cpu()) for name in unsaved(model) & set(tensors)
    ):
        raise OpenUniError(
            f"init_from: {run.folder} has a trained base, but this run uses the frozen base of "
            f'"{setup.recipe.model.get("pretrained")}". Set model.train_base = true, or remove init_from.'
        )
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    foreign = sorted(set(missing) - set(model.added_parameters()) - unsaved(model) | set(unexpected))
    if foreign:
        raise OpenUniError(
            f"init_from: {earlier.path} is a checkpoint of a different model; differing keys: "
            f"{', '.join(foreign[:6])}. Use the model of that run, or remove init_from."
        )
