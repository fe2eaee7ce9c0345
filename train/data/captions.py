"""Captions of a corpus for models that generate text: the prompt and the target text of every clip."""

from collections.abc import Sequence
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

ROWS_PER_READ = 10_000  # texts tokenized at a time


@dataclass(frozen=True, eq=False)
class Captions:
    """Texts by clip number, null if missing. They stay in Arrow memory, a few hundred bytes each."""

    prompts: pa.Array  # texts of the embeddings that the model is conditioned on
    targets: pa.Array  # target texts
    fits: np.ndarray  # bool [N]: the clip has a target text with an allowed length

    def prompt(self, clip: int) -> str:
        """Text of the clip's embedding; empty without a caption."""
        return self.prompts[clip].as_py() or ""

    def target(self, clip: int) -> str:
        """Target text of a clip with `fits`."""
        return self.targets[clip].as_py() or ""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of clips with a target text, and of those with allowed lengths."""
        return {"with_text": int(_non_empty(self.targets).sum()), "fitting": int(self.fits.sum())}

    def digest(self) -> bytes:
        """Digest of all texts and `fits`."""
        total = xxhash.xxh3_64(self.fits.tobytes())
        for texts in (self.prompts, self.targets):
            for start in range(0, len(texts), ROWS_PER_READ):
                total.update(repr(texts[start : start + ROWS_PER_READ].to_pylist()).encode())
        return total.digest()


def open_captions(
    corpus: "Corpus", clip_ids: Sequence[str], embedded: str, options: TextStreamOptions, tokenizer: Tokenizer
) -> Captions:
    """Captions of these clips. `embedded`: source column of the text family; empty: the clips' captions.

    "recall": the target is the prompt. "refinement": the prompt is the brief caption, the target the column
    `options.detailed`. Texts are not truncated: a clip whose text has a disallowed length is excluded from tasks with a
    text target. Raises `OpenUniError` for a missing column.
    """
    ids = pa.array(clip_ids, pa.string())
    prompts = text_of_clips(corpus, embedded, ids)
    if options.stage == "recall":
        targets = prompts
    else:
        if options.detailed == embedded:
            column = f'"{embedded}"' if embedded else "the captions of the clips table"
            raise OpenUniError(
                f'text.stage = "refinement" generates detailed captions from brief ones, but both are {column}. Encode '
                'the corpus with [encode] caption = "caption.brief", and set text.detailed to another column, such as '
                '"caption.detailed"'
            )
        targets = text_of_clips(corpus, options.detailed, ids)
    return Captions(prompts, targets, _fitting(prompts, targets, options, tokenizer))


def _fitting(prompts: pa.Array, targets: pa.Array, options: TextStreamOptions, tokenizer: Tokenizer) -> np.ndarray:
    """bool [N]: allowed lengths, which leave room for the end token."""
    there = _non_empty(targets)
    lengths = _lengths(targets, tokenizer)
    fits = there & (lengths < options.length)
    if options.stage == "refinement":
        prompt_lengths = _lengths(prompts, tokenizer)
        for found, (least, most) in ((prompt_lengths, options.brief_tokens), (lengths, options.detailed_tokens)):
            fits &= (found >= least) & (found <= most)
    return fits


def _non_empty(texts: pa.Array) -> np.ndarray:
    """bool [N]: texts with non-whitespace characters."""
    has_text = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    found: np.ndarray = pc.fill_null(has_text, False).to_numpy(zero_copy_only=False)
    return found


def _lengths(texts: pa.Array, tokenizer: Tokenizer) -> np.ndarray:
    """Number of tokens without the end token, int64 [N]; 0 for missing texts."""
    parts = [texts[start : start + ROWS_PER_READ].to_pylist() for start in range(0, len(texts), ROWS_PER_READ)]
    counted = [tokenizer.lengths([text or "" for text in part]) for part in parts]
    return np.concatenate([np.zeros(0, np.int64), *counted])


def text_of_clips(corpus: "Corpus", column: str, ids: pa.Array) -> pa.Array:
    """Texts of a column `ANNOTATOR.COLUMN`, or of the clips' captions, large_string [N]."""
    group, field = "clips", pads.field("caption")
    if column:
        annotator, _, name = column.rpartition(".")
        group = annotation_group(annotator)
        _check(corpus, column, annotator, name)
        field = pads.field(annotator, name)
    rows = corpus.look_up(group, ids, {"text": field.cast(pa.large_string())})
    return pc.struct_field(rows, "text")


def _check(corpus: "Corpus", column: str, annotator: str, name: str) -> None:
    """Raise `OpenUniError` unless the corpus has this text column."""
    known = corpus.operators("annotator")
    if annotator not in known or not corpus.parts(annotation_group(annotator)):
        raise OpenUniError(
            f'captions "{column}": the corpus has no rows of annotator "{annotator}".'
            f"{did_you_mean(annotator, known)} Use ANNOTATOR.COLUMN; available: {', '.join(known) or 'none'}."
        )
    texts = text_columns(corpus.dataset(annotation_group(annotator)).schema.field(annotator).type)
    if name not in texts:
        raise OpenUniError(
            f'captions "{column}": {annotator} has no text column of that name.{did_you_mean(name, texts)} '
            f"Available: {', '.join(texts) or 'none'}."
        )
