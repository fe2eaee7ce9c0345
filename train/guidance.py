"""Classifier-free guidance of a training run: which texts it replaces, and whether training covered its predictions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from openuni.manifests.errors import OpenUniError
from openuni.training.model import Model
from openuni.training.objectives.flow_matching import guidance_weights
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import Task

if TYPE_CHECKING:
    from openuni.training.sampler import SamplingOptions


def caption_streams(model: Model, task: Task) -> tuple[str, ...]:
    """Streams of the task that are conditioned on the caption."""
    return tuple(name for name in task.streams if model.text_condition(task, name) == "caption")


def guided_streams(model: Model, task: Task, negative_prompt: str) -> tuple[str, ...]:
    """Streams whose text guidance replaces, by the negative prompt or the empty caption.

    These are the streams with the caption. In a task without a caption (UniVidX's X->X), guidance compares the empty
    caption with the negative prompt, as the released inference does; without a negative prompt there are none.
    """
    captioned = caption_streams(model, task)
    if captioned or not negative_prompt:
        return captioned
    return tuple(name for name in task.streams if model.text_condition(task, name) == "nothing")


def check_guidance(
    model: Model, recipe: TrainingRecipe, trained: Sequence[Task], task: Task, sampling: "SamplingOptions"
) -> None:
    """Raise `OpenUniError` for guidance that the run was not trained for; the message says what to set.

    `trained`: tasks of the run. Guidance evaluates the model with another text, or with noise in place of the condition
    streams. Both must be inputs that the training had.
    """
    scale, condition_scale = sampling.guidance_scale, sampling.condition_guidance_scale
    if not task.targets and ((scale, condition_scale) != (1.0, 1.0) or sampling.negative_prompt):
        raise OpenUniError(
            f'guidance applies to video only, and task "{task}" has no video target. Leave it at 1, without a negative '
            "prompt."
        )
    guided = guided_streams(model, task, sampling.negative_prompt)
    if scale != 1.0 and not guided:
        raise OpenUniError(_without_caption(model, recipe, task, scale))
    condition_scale = condition_scale if task.conditions else 1.0
    weights = guidance_weights(scale if guided else condition_scale, condition_scale)
    if sampling.negative_prompt:
        _check_negative_prompt(
            model, recipe, trained, task, bool(guided and (weights.without_text or weights.without_both))
        )
    elif guided and weights.without_text and not _has_learnt_the_empty_caption(recipe):
        raise OpenUniError(
            f'task "{task}": guidance compares with the empty caption, which this run was not trained on '
            "(data.caption_dropout = 0). Train with data.caption_dropout = 0.1; or pass a negative prompt, or leave "
            f"guidance_scale at {condition_scale:g}."
        )
    apart = not recipe.flow_matching.shared_sigma and Task((), task.streams) in trained
    if condition_scale == 1.0 or apart or recipe.data.condition_dropout > 0:
        return
    raise OpenUniError(
        f'condition_guidance_scale {condition_scale:g} requires a run trained on "{task}" with condition dropout, '
        "which this run was not. Train with data.condition_dropout = 0.1 (or with flow_matching.shared_sigma = "
        f'false and the task "{Task((), task.streams)}"), or leave condition_guidance_scale at 1.'
    )


def check_prompt(model: Model, recipe: TrainingRecipe, task: Task, prompt: str) -> None:
    """Raise `OpenUniError` for a prompt that the task does not use."""
    if not prompt or caption_streams(model, task):
        return
    raise OpenUniError(
        f'task "{task}" does not use a prompt, got "{prompt}". Leave the prompt empty'
        + (f", or train with {option}." if (option := _caption_option(model, recipe)) else ".")
    )


def _check_negative_prompt(
    model: Model, recipe: TrainingRecipe, trained: Sequence[Task], task: Task, has_effect: bool
) -> None:
    if not guided_streams(model, task, "negative prompt"):
        raise OpenUniError(
            f'task "{task}" does not use a negative prompt: no stream attends to a caption. Leave it out.'
        )
    if not has_effect:
        raise OpenUniError(
            "a negative prompt has no effect without guidance. Set guidance_scale above 1, or leave it out."
        )
    if caption_streams(model, task) or _is_pretrained(recipe):
        return
    if not any(caption_streams(model, other) for other in trained):
        raise OpenUniError(
            f'task "{task}": a negative prompt requires a model that has learnt from captions, and this run has not. '
            "Train from pretrained weights, with a task that has a caption such as t2RAIN, or with "
            f"{_caption_option(model, recipe) or 'captions'}."
        )


def _without_caption(model: Model, recipe: TrainingRecipe, task: Task, scale: float) -> str:
    option = _caption_option(model, recipe)
    if not option:
        return f'guidance_scale {scale:g} requires a caption, and task "{task}" uses none. Leave it at 1.'
    return (
        f'guidance_scale {scale:g} requires a caption, and task "{task}" was trained with the empty one. Pass a '
        f"negative prompt, which guidance compares with the empty caption; or train with {option}; or leave it at 1."
    )


def _caption_option(model: Model, recipe: TrainingRecipe) -> str:
    """Options that train all tasks with captions; empty for models without them."""
    if not model.caption_option:
        return ""
    return model.caption_option + ("" if recipe.data.caption_dropout else " and data.caption_dropout = 0.1")


def _is_pretrained(recipe: TrainingRecipe) -> bool:
    """Whether the weights come from a model that knows captions and the empty caption."""
    return bool(recipe.model.get("pretrained") or recipe.init_from)


def _has_learnt_the_empty_caption(recipe: TrainingRecipe) -> bool:
    return recipe.data.caption_dropout > 0 or _is_pretrained(recipe)
