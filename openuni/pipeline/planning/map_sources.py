"""Which annotator's maps a recipe means, in which order they come to be, and where the stored ones lie."""

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import clip_ids_with_modality
from openuni.manifests.corpus.layout import annotation_group
from openuni.manifests.errors import OpenUniError


class MapSource(NamedTuple):
    """A modality as one annotator made it."""

    annotator: str
    modality: str


def annotator_of(modality: str, consumer: str, recipe: CorpusRecipe, corpus: Corpus | None = None) -> str:
    """The annotator that makes a modality: of the recipe, else of the corpus; never `consumer` itself.

    `consumer`: who wants to know, an annotator's name or a table of the recipe. Raises when none or several make it.
    """
    makers = [
        name for name, operator in recipe.annotators.items() if name != consumer and modality in operator.produces()
    ]
    if not makers and corpus is not None:
        known = [name for name in corpus.operators("annotator") if name != consumer]
        makers = [name for name in known if corpus.has_modality(name, modality)]
        if len(makers) > 1:  # a column that no row fills is nobody's map
            makers = [name for name in makers if len(clip_ids_with_modality(corpus, name, modality))] or makers
    if len(makers) == 1:
        return makers[0]
    if makers:
        named = ", ".join(f'"{name}.{modality}"' for name in makers)
        raise OpenUniError(f'{consumer}: several annotators produce "{modality}". Select one: {named}.')
    raise OpenUniError(
        f'{consumer}: no annotator of this recipe produces "{modality}". Add one under [annotators.NAME]; '
        "see: openuni list"
    )


def required_maps(recipe: CorpusRecipe, corpus: Corpus | None = None) -> dict[str, dict[str, MapSource]]:
    """For each annotator of the recipe: by modality the maps it starts from. In an order in which they can be made.

    Raises `OpenUniError` when nobody makes what is wanted, several do, or annotators wait for one another.
    """
    wanted: dict[str, dict[str, MapSource]] = {}
    for name, operator in recipe.annotators.items():
        wanted[name] = {}
        for want in operator.requires():
            annotator, _, modality = want.rpartition(".")
            source = MapSource(annotator or annotator_of(modality, name, recipe, corpus), modality)
            if modality in wanted[name]:
                raise OpenUniError(f"{name}: requires {modality} twice; only one map per modality is allowed")
            wanted[name][modality] = source
    waits = {name: [source.annotator for source in sources.values()] for name, sources in wanted.items()}
    try:
        order = list(TopologicalSorter(waits).static_order())
    except CycleError as error:
        raise OpenUniError(f"annotators require each other: {' <- '.join(error.args[1])}. Remove one.") from None
    return {name: wanted[name] for name in order if name in wanted}


def extents(corpus: Corpus, sources: Iterable[MapSource], ids: pa.Array) -> dict[MapSource, pa.Array]:
    """Where the stored maps of these clips lie: per source and clip the columns of its row, null where it has none."""
    found = {}
    for source in sources:
        if not corpus.has_modality(*source):
            found[source] = pa.nulls(len(ids))
            continue
        rows = corpus.look_up(annotation_group(source.annotator), ids, {"extent": pads.field(*source)})
        maps = pc.struct_field(rows, "extent")
        found[source] = pc.if_else(pc.is_valid(pc.struct_field(maps, "shard")), maps, None)
    return found
