"""What a corpus must have for a recipe: checks of its index before the first step."""

import logging

import numpy as np

from openuni.manifests.errors import OpenUniError
from openuni.training.data.extents import Extents
from openuni.training.data.index import Index
from openuni.training.data.plan import usable_clips
from openuni.training.model import Model
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import TaskMix

logger = logging.getLogger(__name__)


def check_one_codec(index: Index, mix: TaskMix) -> None:
    """Raise `OpenUniError` if the family's latents or texts differ in width or dtype: files of two codecs are mixed."""
    clips = usable_clips(index, mix)
    for name, extents in index.latents.items():
        _check_equal(index, extents, clips & extents.present, 0, "channels", f"{name} latents of {index.latent_family}")
    texts = clips & index.text.present
    _check_equal(index, index.text, texts, 1, "dimensions", f"text embeddings of {index.text_family}")


def _check_equal(index: Index, extents: Extents, clips: np.ndarray, dimension: int, unit: str, what: str) -> None:
    numbers = np.flatnonzero(clips)
    if not len(numbers):
        return
    kinds = extents.kinds[extents.kind[numbers]]
    for values, described in (
        (kinds[:, dimension], lambda value: f"{value} {unit}"),
        (kinds[:, -2], lambda value: f"dtype {extents.dtypes[value]}"),
    ):
        found, first, counts = np.unique(values, return_index=True, return_counts=True)
        if len(found) > 1:
            listed = ", ".join(
                f"{count} have {described(value)} (first {index.sample_ids[numbers[at]]})"
                for value, at, count in zip(found.tolist(), first.tolist(), counts.tolist(), strict=True)
            )
            raise OpenUniError(
                f"{what} are of several codecs: {listed}. A family has one codec: delete the rows that do not belong "
                "to it, or encode the corpus again."
            )


def check_captions(index: Index, model: Model, mix: TaskMix, recipe: TrainingRecipe, *, resumes: bool) -> None:
    """Raise `OpenUniError` if tasks use the caption, but no training clip has a text embedding.

    A run that `resumes` has begun without captions: it is only warned.
    """
    used = [
        str(task)
        for task in mix.tasks
        if any(model.text_condition(task, stream) == "caption" for stream in task.streams)
    ]
    trained = usable_clips(index, mix) & ~index.held_out
    if not used or recipe.data.caption_dropout == 1 or (index.text.present & trained).any():
        return
    text = (
        f"none of {int(trained.sum())} training clips has a text embedding in {index.text_family}, which is the prompt "
        f"of tasks {', '.join(used)}. Caption the clips and run the pipeline with [encode] again; or set "
        "data.caption_dropout = 1 to train on the empty caption alone."
    )
    if not resumes:
        raise OpenUniError(text)
    logger.warning("%s", text)


def warn_of_unused_tasks(clips_by_task: dict[str, int]) -> None:
    """Warn of tasks that no training clip has the streams for: they are never trained."""
    if unused := [task for task, clips in clips_by_task.items() if not clips]:
        logger.warning(
            "no training clip has all streams of tasks %s: they are not trained. Encode the missing modalities, or "
            "remove them from model.modalities and tasks.",
            ", ".join(unused),
        )
