"""Checks of `context_parallel`: what of a training can be divided among ranks."""

import numpy as np

from openuni.manifests.errors import OpenUniError
from openuni.training.data.index import Index
from openuni.training.data.plan import usable_clips
from openuni.training.model import Model
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import TaskMix


def checked_context(recipe: TrainingRecipe, world: int, what: str) -> int:
    """`context_parallel`. Raises `OpenUniError` unless the samples of a step can be divided among `world` ranks."""
    size, batch_size = recipe.context_parallel, recipe.optimizer.batch_size
    if world % size:
        fitting = [str(number) for number in range(1, world + 1) if world % number == 0]
        raise OpenUniError(
            f"context_parallel = {size} must divide the number of {what}, which is {world}. Set it to "
            f"{' or '.join(fitting)}, or use {size * -(-world // size)} {what}."
        )
    if batch_size < world // size:
        most = batch_size * size
        apart = f": every {size} of them need" if size > 1 else ": each needs"
        raise OpenUniError(
            f"optimizer.batch_size = {batch_size} cannot be divided among {world} {what}{apart} a sample in every "
            f"step. Use at most {most}, or raise the batch size."
        )
    return size


def possible_contexts(model: Model) -> tuple[int, ...]:
    """Values of `context_parallel` to propose: powers of two up to 8, as ranks of one machine exchange fast."""
    if not model.divides_tokens:
        return (1,)
    heads = model.resolved().options_dict()["heads"]
    return tuple(size for size in (1, 2, 4, 8) if heads % size == 0)


def check_tokens(recipe: TrainingRecipe, model: Model, index: Index, mix: TaskMix) -> None:
    """Raise `OpenUniError` unless heads and tokens of the model can be divided among `context_parallel` ranks."""
    size = recipe.context_parallel
    if size == 1:
        return
    if not model.divides_tokens:
        raise OpenUniError(f"{model.name()} does not support context_parallel. Set it to 1.")
    options = model.resolved().options_dict()
    heads, patch = options["heads"], np.array(options["patch"])
    if heads % size:
        fitting = [str(number) for number in range(1, heads + 1) if heads % number == 0]
        raise OpenUniError(
            f"context_parallel = {size} must divide the number of attention heads, which is {heads}. Set it to "
            f"{' or '.join(fitting)}."
        )
    shapes = np.unique(index.shapes[usable_clips(index, mix)], axis=0)
    tokens = {f"latents of {shape.tolist()}": int((shape[1:] // patch).prod()) for shape in shapes}
    if model.generates_text:
        tokens["a text ([text] length)"] = recipe.text.length
    fewest = min(tokens, key=lambda what: tokens[what])
    if tokens[fewest] < size:
        raise OpenUniError(
            f"context_parallel = {size} is more than the {tokens[fewest]} tokens of {fewest}. Set it to at most "
            f"{tokens[fewest]}."
        )
