"""Where the captions that are embedded come from: the clips' own, or a column of text that an annotator wrote."""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.schema import producer_schema, text_columns
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.errors import OpenUniError, did_you_mean


class CaptionColumn(NamedTuple):
    """A column of text in an annotator's rows."""

    annotator: str
    column: str


def caption_column(given: str, annotators: Mapping[str, Annotator], corpus: Corpus | None = None) -> CaptionColumn:
    """The column that `[encode] caption = "ANNOTATOR.COLUMN"` names.

    `annotators`: those of the recipe; others are looked for in the corpus. Raises `OpenUniError` when there is no such
    annotator or column, or the column is no text, with what there is. Without a corpus an annotator that is not in the
    recipe is taken to be in one.
    """
    annotator, _, column = given.rpartition(".")
    source = CaptionColumn(annotator, column)
    if annotator in annotators:
        fields = producer_schema(type(annotators[annotator])).field(annotator).type
    elif corpus is None and annotator:
        return source
    else:
        known = [*annotators, *(corpus.operators("annotator") if corpus else ())]
        if annotator not in known:
            hint = did_you_mean(annotator, known)
            raise OpenUniError(
                f'[encode] caption = "{given}": neither this recipe nor the corpus has an annotator "{annotator}".'
                f'{hint} Use ANNOTATOR.COLUMN, such as "caption.detailed", or leave it empty: the clips\' captions.'
            )
        assert corpus is not None
        fields = _stored(corpus, annotator)
    texts = text_columns(fields)
    if column not in texts:
        problem = f'{annotator} has no column "{column}"'
        if fields.get_field_index(column) >= 0:
            problem = f'"{column}" is not a text column of {annotator}'
        raise OpenUniError(
            f'[encode] caption = "{given}": {problem}.{did_you_mean(column, texts)} '
            f"Text columns: {', '.join(texts) or 'none'}."
        )
    return source


def clip_ids_with_caption(corpus: Corpus, source: CaptionColumn) -> pa.Array:
    """clip_ids (string array) for which the annotator wrote a text that is not empty."""
    if _stored(corpus, source.annotator).get_field_index(source.column) < 0:
        return pa.array([], pa.string())
    columns = {"clip_id": pads.field("clip_id"), "text": pads.field(*source)}
    table = corpus.table(annotation_group(source.annotator), columns)
    there = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table.column("text"))), 0)
    return table.filter(pc.fill_null(there, False)).column("clip_id").combine_chunks()


def captions(corpus: Corpus, source: CaptionColumn, ids: pa.Array) -> pa.StringArray:
    """The text of each of these clips, null where there is none."""
    rows = corpus.look_up(annotation_group(source.annotator), ids, {"text": pads.field(*source)})
    return pc.struct_field(rows, "text")


def _stored(corpus: Corpus, annotator: str) -> pa.StructType:
    group = annotation_group(annotator)
    schema = corpus.dataset(group).schema
    return schema.field(annotator).type if corpus.parts(group) else pa.struct([])
