"""Which texts are embedded: the clips' own, or what an annotator says, made anew with it."""

import dataclasses

import numpy as np
import pytest

import openuni
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.scope import RunScope
from openuni.report import doctor
from openuni.training.codecs.bytes import Bytes
from tests.annotators.test_caption import tiny_checkpoint
from tests.raw_clips import write_clips

ENCODE = {"modalities": ["rgb"], "size_px": [32, 48], "frames": 5}
TOLD = {"work": {"short_side_px": 32}, "annotators": {"template_caption": {}}}


def recipe(caption="", annotators=None, **more):
    made = {"annotators": annotators} if annotators is not None else {}
    return TOLD | made | {"encode": ENCODE | {"caption": caption}} | more


def run(raw, out, tables, **scope):
    return openuni.run(tables, raw, out=out, scope=RunScope(**scope), reporter=Reporter(quiet=True))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_clips(folder, 3)
    return folder


def embedded(corpus: Corpus) -> dict[str, str]:
    """clip_id -> the text that its embedding stands for; only clips that have a row."""
    (group,) = [group for group in corpus.groups() if group.startswith("text/")]
    rows = corpus.table(group).to_pylist()
    assert all(row["status"] == "ok" for row in rows)
    codec = Bytes()
    model = codec.load("cpu")
    candidates = {}
    for clip in corpus:
        texts = [clip.clip.caption or ""]
        for name in corpus.operators("annotator"):
            row = corpus.find(f"annotations/{name}", clip.clip.clip_id)
            told = row[name] if row else {}
            texts += [told[column] for column in ("brief", "detailed") if told.get(column)]
        candidates[clip.clip.clip_id] = texts
    found = {}
    for row in rows:
        extent = [row[key] for key in ("shard", "offset", "nbytes", "xxh3")]
        data = corpus.read(group, *extent)
        for text in candidates[row["clip_id"]]:
            array = codec.encode(model, text)
            if list(array.shape) == row["shape"] and as_bfloat16(array) == data:
                found[row["clip_id"]] = text
    assert len(found) == len(rows)
    return found


def as_bfloat16(array: np.ndarray) -> bytes:
    from openuni.pipeline.encode_phase import to_bytes

    return to_bytes(array, "bfloat16")


def told(corpus, name, column):
    rows = corpus.table(f"annotations/{name}").to_pylist()
    return {row["clip_id"]: row[name][column] for row in rows}


def test_captions_are_the_clips_own_unless_a_column_is_named(raw, tmp_path):
    corpus = run(raw, tmp_path / "corpus", recipe())
    own = {clip.clip.clip_id: clip.clip.caption for clip in corpus}
    assert embedded(corpus) == own and len(set(own.values())) == 3
    for column in ("detailed", "brief"):
        corpus = run(raw, tmp_path / "corpus", recipe(f"template_caption.{column}"))
        assert embedded(corpus) == told(corpus, "template_caption", column)
        assert {clip.clip.clip_id: clip.clip.caption for clip in corpus} == own  # the clips' rows stay as they were
    before = corpus.group_version(next(group for group in corpus.groups() if group.startswith("text/")))
    corpus = run(raw, tmp_path / "corpus", recipe())
    assert embedded(corpus) == own
    assert corpus.group_version(next(group for group in corpus.groups() if group.startswith("text/"))) != before


def test_captions_of_a_model_are_embedded_and_made_anew_with_it(raw, tmp_path):
    options = {"checkpoint": tiny_checkpoint(tmp_path), "max_new_tokens": 6, "precision": "fp32"}

    def with_options(**more):
        return recipe("caption.detailed", {"caption": options | more})

    corpus = run(raw, tmp_path / "corpus", with_options())
    first = embedded(corpus)
    assert first == told(corpus, "caption", "detailed") and all(first.values())
    (group,) = [group for group in corpus.groups() if group.startswith("text/")]
    version = corpus.group_version(group)
    stamps = {part: corpus.store.fs.modified(corpus.store.path(part)) for part in corpus.parts(group)}
    corpus = run(raw, tmp_path / "corpus", with_options())  # nothing has changed: nothing is done
    assert stamps == {part: corpus.store.fs.modified(corpus.store.path(part)) for part in corpus.parts(group)}
    corpus = run(raw, tmp_path / "corpus", with_options(detailed_prompt="Who is there?"))
    assert corpus.group_version(group) != version
    assert embedded(corpus) == told(corpus, "caption", "detailed") != first


def test_a_column_that_the_corpus_holds_needs_no_annotator_in_the_recipe(raw, tmp_path):
    run(raw, tmp_path / "corpus", {key: value for key, value in TOLD.items()})
    corpus = run(raw, tmp_path / "corpus", recipe("template_caption.brief", {}))
    assert embedded(corpus) == told(corpus, "template_caption", "brief")


def test_clips_without_a_text_have_no_embedding_until_they_get_one(raw, tmp_path):
    out = tmp_path / "corpus"
    corpus = run(raw, out, TOLD | {"encode": ENCODE})
    group = "annotations/template_caption"
    spared = corpus[0].clip.clip_id

    def blanked(rows):
        changed = rows.to_pylist()
        for row in changed:
            if row["clip_id"] == spared:
                row["template_caption"] |= {"status": "failed", "error": "planted", "brief": None, "detailed": None}
        return type(rows).from_pylist(changed, rows.schema)

    corpus.rewrite(group, blanked)
    corpus = run(raw, out, recipe("template_caption.brief"))
    assert len(embedded(corpus)) == 2 and spared not in embedded(corpus)
    assert corpus.summary().pending == 0
    corpus = run(raw, out, recipe("template_caption.brief"), retry_failed=True)
    assert embedded(corpus) == told(corpus, "template_caption", "brief") and spared in embedded(corpus)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("template_caption.detial", r'has no column "detial"\..*Did you mean "detailed"\?.*brief, detailed, source'),
        ("template_caption.brightness_mean", r'"brightness_mean" is not a text column of template_caption'),
        ("template_caption.status", r'"status" is not a text column of template_caption'),
        ("dis.flow", r'"flow" is not a text column of dis\. Text columns: none'),
        ("detailed", r'neither this recipe nor the corpus has an annotator ""'),
    ],
)
def test_a_column_that_is_none_is_refused_when_the_recipe_is_read(caption, message):
    with pytest.raises(OpenUniError, match=message):
        CorpusRecipe.parse(recipe(caption, {"template_caption": {}, "dis": {}}))


def test_an_annotator_that_is_nowhere_is_refused_before_the_work(raw, tmp_path):
    tables = recipe("caption.detailed")
    with pytest.raises(OpenUniError, match=r'neither this recipe nor the corpus has an annotator "caption".*ANNOTATOR'):
        run(raw, tmp_path / "corpus", tables)
    assert not Corpus.open(str(tmp_path / "corpus")).parts("clips")
    notes = [finding.text for finding in doctor.run_checks(CorpusRecipe.parse(tables)) if finding.what == "encode"]
    assert notes == ["captions come from caption.detailed, which must already be in the corpus"]
    known = [finding for finding in doctor.run_checks(CorpusRecipe.parse(recipe("template_caption.brief")))]
    assert [finding.level for finding in known if "captions come from" in finding.text] == ["ok"]


def test_the_text_of_an_older_annotator_without_that_column_is_no_text(raw, tmp_path):
    corpus = run(raw, tmp_path / "corpus", {key: value for key, value in TOLD.items()})
    from openuni.config.captions import CaptionColumn, captions, clip_ids_with_caption

    assert len(clip_ids_with_caption(corpus, CaptionColumn("template_caption", "tags"))) == 0
    assert len(clip_ids_with_caption(corpus, CaptionColumn("nobody", "tags"))) == 0
    ids = clip_ids_with_caption(corpus, CaptionColumn("template_caption", "brief"))
    assert len(ids) == 3 and all(captions(corpus, CaptionColumn("template_caption", "brief"), ids))
    assert dataclasses.is_dataclass(corpus[0].clip)
