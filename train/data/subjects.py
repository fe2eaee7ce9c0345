"""Subjects of clips: short texts such as "two persons" that follow the modality-type prompts of their clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash

from openuni.manifests.errors import OpenUniError
from openuni.training.data.captions import text_of_clips
from openuni.training.data.fixed_texts import embedded_rows
from openuni.training.model import Model
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import TaskMix

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

MAX_DISTINCT = 10_000  # they are embedded at the start of a run, and stay in memory


@dataclass(frozen=True, eq=False)
class Subjects:
    """Distinct subjects with their embeddings, and the subject of every clip."""

    texts: list[str]
    rows: list[torch.Tensor]  # float32 [L, D] each
    number: np.ndarray  # int32 [N], index into both; -1 for clips without a subject

    def embedding(self, clip: int) -> torch.Tensor | None:
        """Embedding of the clip's subject, float32 [L, D]; None without one."""
        number = int(self.number[clip])
        return self.rows[number] if number >= 0 else None

    @property
    def longest(self) -> int:
        """Maximum number of rows."""
        return max(map(len, self.rows), default=0)

    def digest(self) -> bytes:
        """Digest of all texts and whose they are."""
        return xxhash.xxh3_64(repr(self.texts).encode() + self.number.tobytes()).digest()


def open_subjects(
    corpus: "Corpus", column: str, clip_ids: Sequence[str], text_family: dict[str, Any], cache: Path
) -> Subjects | None:
    """The subjects of these clips: texts of a column `ANNOTATOR.COLUMN` (`data.subjects`); None for no column.

    They are embedded by the codec of the captions (`text_family`: its record), on a GPU if there is one, and kept in
    the file `cache`. Raises `OpenUniError` for a column that is missing, empty or of too many distinct texts.
    """
    if not column:
        return None
    found = pc.utf8_trim_whitespace(text_of_clips(corpus, column, pa.array(clip_ids, pa.string())))
    texts = sorted({text for text in found.unique().to_pylist() if text})
    if not texts or len(texts) > MAX_DISTINCT:
        raise OpenUniError(
            f'data.subjects = "{column}": {len(texts):,} distinct texts of {len(found):,} clips. Allowed: 1 to '
            f'{MAX_DISTINCT:,}, since they are embedded at the start of the run: short texts such as "two persons".'
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = embedded_rows(text_family, {text: text for text in texts}, cache, device=device)
    place = {text: number for number, text in enumerate(texts)}
    number = np.array([place.get(text, -1) for text in found.to_pylist()], np.int32)
    return Subjects(texts, [rows[text].cpu() for text in texts], number)


def check_subjects(column: str, model: Model, mix: TaskMix) -> None:
    """Raise `OpenUniError` if no stream of the tasks attends to a modality-type prompt."""
    if column and not any(model.text_condition(task, name) == "prompt" for task in mix.tasks for name in task.streams):
        raise OpenUniError(
            f'data.subjects = "{column}" has no effect: {model.name()} has no modality-type prompts in these tasks. '
            "Remove it."
        )


def check_run_subjects(recipe: TrainingRecipe, subjects: Sequence[str], captions: int) -> None:
    """Raise `OpenUniError` unless there are no subjects, or the run has learnt them and there is one per caption."""
    if subjects and not recipe.data.subjects:
        raise OpenUniError(
            f'the run was trained with the modality-type prompts alone, got subject "{subjects[0]}". Leave it out, or '
            'train with data.subjects, such as data.subjects = "caption.brief".'
        )
    if subjects and len(subjects) != captions:
        raise OpenUniError(f"subjects must be one per caption, or none: got {len(subjects)} for {captions} captions")
