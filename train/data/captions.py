"""The texts of a corpus's captions, for models that make text: what clips are prompted with, what is to be made."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import xxhash

from openuni.manifests.contracts.schema import text_columns
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.training.data.tokenizer import Tokenizer
from openuni.training.recipe import TextStreamOptions

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

ROWS_PER_READ = 10_000  # texts that are counted at a time


@dataclass(frozen=True, eq=False)
class Captions:
    """Texts by clip number; null where a clip has none. They stay in Arrow's memory, a few hundred bytes each."""

    prompts: pa.Array  # of the embeddings that the model is told
    targets: pa.Array  # what a task that makes text shall make
    fits: np.ndarray  # bool [N]: there is a target, of a length that the recipe trains on

    def prompt(self, clip: int) -> str:
        """What the clip's embedding says; empty where it has no caption."""
        return self.prompts[clip].as_py() or ""

    def target(self, clip: int) -> str:
        """The text to make of a clip that fits."""
        return self.targets[clip].as_py() or ""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Clips with a text to make, and those of them whose lengths fit."""
        return {"with_text": int(_non_empty(self.targets).sum()), "fitting": int(self.fits.sum())}

    def digest(self) -> bytes:
        """Changes whenever a text does, or whether it fits."""
        total = xxhash.xxh3_64(self.fits.tobytes())
        for texts in (self.prompts, self.targets):
            for start in range(0, len(texts), ROWS_PER_READ):
                total.update(repr(texts[start : start + ROWS_PER_READ].to_pylist()).encode())
        return total.digest()


def open_captions(
    corpus: "Corpus", clip_ids: list[str], embedded: str, options: TextStreamOptions, tokenizer: Tokenizer
) -> Captions:
    """The captions of these clips. `embedded`: the column that the text family was made from, empty for the clips' own.

    "recall": the text to make is the prompt. "refinement": the prompt is the brief caption, the text to make that of
    `options.detailed`. A text that does not fit is not cut: the clip is none of a task that makes text. Raises
    `OpenUniError` when a column is not there.
    """
    ids = pa.array(clip_ids, pa.string())
    prompts = _texts(corpus, embedded, ids)
    if options.stage == "recall":
        targets = prompts
    else:
        if options.detailed == embedded:
            column = f'"{embedded}"' if embedded else "the clips' own captions"
            raise OpenUniError(
                f'text.stage = "refinement" makes detailed captions from brief ones, but both are {column}: encode the '
                'corpus with [encode] caption = "caption.brief", and set text.detailed to another column, such as '
                '"caption.detailed"'
            )
        targets = _texts(corpus, options.detailed, ids)
    return Captions(prompts, targets, _fitting(prompts, targets, options, tokenizer))


def _fitting(prompts: pa.Array, targets: pa.Array, options: TextStreamOptions, tokenizer: Tokenizer) -> np.ndarray:
    """bool [N]; what fits leaves room for the end token."""
    there = _non_empty(targets)
    lengths = _lengths(targets, tokenizer)
    fits = there & (lengths < options.length)
    if options.stage == "refinement":
        prompt_lengths = _lengths(prompts, tokenizer)
        for found, (least, most) in ((prompt_lengths, options.brief_tokens), (lengths, options.detailed_tokens)):
            fits &= (found >= least) & (found <= most)
    return fits


def _non_empty(texts: pa.Array) -> np.ndarray:
    """bool [N]: a text with something in it."""
    has_text = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    found: np.ndarray = pc.fill_null(has_text, False).to_numpy(zero_copy_only=False)
    return found


def _lengths(texts: pa.Array, tokenizer: Tokenizer) -> np.ndarray:
    """int64 [N], in tokens without the end; 0 for none."""
    parts = [texts[start : start + ROWS_PER_READ].to_pylist() for start in range(0, len(texts), ROWS_PER_READ)]
    counted = [tokenizer.lengths([text or "" for text in part]) for part in parts]
    return np.concatenate([np.zeros(0, np.int64), *counted])


def _texts(corpus: "Corpus", column: str, ids: pa.Array) -> pa.Array:
    """large_string [N]: the texts of a column, `ANNOTATOR.COLUMN`, or of the clips' own rows."""
    group, field = "clips", pads.field("caption")
    if column:
        annotator, _, name = column.rpartition(".")
        group = annotation_group(annotator)
        _check(corpus, column, annotator, name)
        field = pads.field(annotator, name)
    rows = corpus.look_up(group, ids, {"text": field.cast(pa.large_string())})
    return pc.struct_field(rows, "text")


def _check(corpus: "Corpus", column: str, annotator: str, name: str) -> None:
    """Raises unless the corpus has this column of texts."""
    known = corpus.operators("annotator")
    if annotator not in known or not corpus.parts(annotation_group(annotator)):
        raise OpenUniError(
            f'captions "{column}": the corpus has no rows of an annotator "{annotator}".'
            f"{did_you_mean(annotator, known)} Give ANNOTATOR.COLUMN; annotators there: {', '.join(known) or 'none'}."
        )
    texts = text_columns(corpus.dataset(annotation_group(annotator)).schema.field(annotator).type)
    if name not in texts:
        raise OpenUniError(
            f'captions "{column}": {annotator} wrote no text of that name.{did_you_mean(name, texts)} '
            f"Texts: {', '.join(texts) or 'none'}."
        )
