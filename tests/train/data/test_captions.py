"""Captions of a corpus as what a text stream says: by clip, by stage, and only where their lengths fit."""

from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.data.captions import Captions, open_captions
from openuni.training.data.tokenizer import ByteTokenizer, Umt5Tokenizer, make_tokenizer
from openuni.training.recipe import TextStreamOptions
from tests.raw_clips import write_clips
from tests.train.corpora import random_clips, write_corpus
from tests.train.test_codecs import umt5_folder as umt5_folder

BYTES = ByteTokenizer()
SAID = ["a red cube", None, "", "größer", "a ball that rolls", "  "]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Clips with captions of their own."""
    clips = [clip | {"caption": caption} for clip, caption in zip(random_clips(6, ("rgb",)), SAID, strict=True)]
    return write_corpus(tmp_path_factory.mktemp("plain"), clips)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Clips through the pipeline, with the brief of an annotator's two captions embedded."""
    folder = tmp_path_factory.mktemp("described")
    write_clips(folder / "raw", 3)
    recipe = {
        "work": {"short_side_px": 32},
        "annotators": {"template_caption": {}},
        "encode": {"modalities": ["rgb"], "size_px": [32, 48], "frames": 5, "caption": "template_caption.brief"},
    }
    return openuni.run(recipe, folder / "raw", out=folder / "corpus", reporter=Reporter(quiet=True))


def recalled(corpus: Corpus, length: int = 256) -> Captions:
    return open_captions(corpus, sorted(corpus.kept_clip_ids()), "", TextStreamOptions(length=length), BYTES)


def test_recall_makes_the_prompts_of_those_that_have_one(plain: Corpus) -> None:
    ids = sorted(plain.kept_clip_ids())
    said = {clip.clip_id: clip.caption for clip in plain}
    captions = recalled(plain)
    assert [captions.prompt(number) for number in range(6)] == [said[clip] or "" for clip in ids]
    assert [captions.target(number) for number in range(6)] == [said[clip] or "" for clip in ids]
    assert captions.fits.tolist() == [bool((said[clip] or "").strip()) for clip in ids]
    assert captions.counts == {"with_text": 3, "fitting": 3}


def test_a_text_that_does_not_fit_is_left_out_not_cut(plain: Corpus) -> None:
    """8 bytes of "größer" and the end are 9 tokens; "a red cube" has 10 bytes."""
    fitting = {length: int(recalled(plain, length).fits.sum()) for length in (8, 9, 11, 17, 18)}
    assert fitting == {8: 0, 9: 1, 11: 2, 17: 2, 18: 3}


def test_digest_knows_texts_and_limits(plain: Corpus, tmp_path: Path) -> None:
    assert recalled(plain).digest() == recalled(plain).digest()
    assert recalled(plain).digest() != recalled(plain, 9).digest()
    clips = [clip | {"caption": said} for clip, said in zip(random_clips(6, ("rgb",)), ["a", *SAID[1:]], strict=True)]
    assert recalled(write_corpus(tmp_path, clips)).digest() != recalled(plain).digest()


def test_refinement_makes_detailed_captions_from_brief_ones(described: Corpus) -> None:
    (family,) = described.text_families().values()
    assert family["caption"] == "template_caption.brief"
    ids = sorted(described.kept_clip_ids())
    rows = {clip.clip_id: clip.row("template_caption") for clip in described}
    options = TextStreamOptions(
        stage="refinement",
        detailed="template_caption.detailed",
        length=512,
        brief_tokens=(0, 512),
        detailed_tokens=(0, 512),
    )
    captions = open_captions(described, ids, family["caption"], options, BYTES)
    assert [captions.prompt(number) for number in range(len(ids))] == [rows[clip]["brief"] for clip in ids]
    assert [captions.target(number) for number in range(len(ids))] == [rows[clip]["detailed"] for clip in ids]
    assert captions.fits.all()


def test_refinement_keeps_to_its_lengths(described: Corpus) -> None:
    ids = sorted(described.kept_clip_ids())
    rows = {clip.clip_id: clip.row("template_caption") for clip in described}
    brief, detailed = ([len(rows[clip][name].encode()) for clip in ids] for name in ("brief", "detailed"))

    def fits(**limits: object) -> list[bool]:
        wide = {"length": 9999, "brief_tokens": (0, 9999), "detailed_tokens": (0, 9998)}
        options = TextStreamOptions(stage="refinement", detailed="template_caption.detailed", **(wide | limits))  # type: ignore[arg-type]
        found: list[bool] = open_captions(described, ids, "template_caption.brief", options, BYTES).fits.tolist()
        return found

    most = max(brief) - 1
    assert fits(brief_tokens=(0, most)) == [count <= most for count in brief]
    least = min(detailed) + 1
    assert fits(detailed_tokens=(least, 9998)) == [count >= least for count in detailed]
    assert fits(detailed_tokens=(0, least - 1)) == [count <= least - 1 for count in detailed]
    assert fits(length=max(detailed)) == [count < max(detailed) for count in detailed]


def test_columns_that_are_not_there_are_named(described: Corpus) -> None:
    ids = sorted(described.kept_clip_ids())

    def opened(detailed: str, embedded: str = "template_caption.brief") -> Captions:
        return open_captions(described, ids, embedded, TextStreamOptions(stage="refinement", detailed=detailed), BYTES)

    with pytest.raises(OpenUniError, match=r'no rows of annotator "caption".*available: template_caption'):
        opened("caption.detailed")
    with pytest.raises(OpenUniError, match=r'has no text column of that name\. Did you mean "detailed"'):
        opened("template_caption.detail")
    with pytest.raises(OpenUniError, match=r'both are "template_caption.brief". Encode'):
        opened("template_caption.brief")
    with pytest.raises(OpenUniError, match=r"both are the captions of the clips table"):
        opened("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, r"text: length = 1\. Allowed: at least 2"),
        ({"degree": 0.0}, r"text: degree = 0\.0\. Allowed: above 0"),
        ({"brief_tokens": (5, 1)}, r"text.brief_tokens must be \[least, most\], got \[5, 1\]"),
        ({"stage": "refinement", "length": 128}, "no caption of at least 128 tokens fits text.length = 128"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(OpenUniError, match=message):
        TextStreamOptions(**options)


def test_tokenizers_count_and_have_digests(umt5_folder: str) -> None:
    pieces = Umt5Tokenizer(umt5_folder)
    texts = ["a cube", "", "größer"]
    assert BYTES.lengths(texts).tolist() == [6, 0, 8]
    long = [pieces.encode(text, 64) for text in texts]
    assert pieces.lengths(texts).tolist() == [int((row != pieces.end).sum()) for row in long]
    assert pieces.lengths([]).dtype == np.int64 and len(pieces.lengths([])) == 0
    assert make_tokenizer(TextStreamOptions()) == BYTES
    named = make_tokenizer(TextStreamOptions(tokenizer="umt5", checkpoint=umt5_folder))
    assert named.digest() == pieces.digest() != BYTES.digest()
