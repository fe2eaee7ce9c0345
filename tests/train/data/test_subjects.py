"""Subjects of clips follow the modality-type prompts of their streams, in training and in sampling."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.data import subjects
from openuni.training.data.batches import Loader
from openuni.training.data.plan import Plan
from openuni.training.loop.setup import Setup, prepare
from openuni.training.loop.trainer import train
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from tests.raw_clips import write_clips

TINY = {"name": "unityvideo", "num_layers": 1, "heads": 2, "head_dim": 12, "ffn_dim": 32, "freq_dim": 16}
ONCE = SamplingOptions(1, 1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three clips with flow; the detailed of two captions is embedded, the brief one is the subject."""
    folder = tmp_path_factory.mktemp("subjects")
    write_clips(folder / "raw", 3)
    encode = {"modalities": ["rgb", "flow"], "size_px": [32, 48], "frames": 5, "caption": "template_caption.detailed"}
    recipe = {"work": {"short_side_px": 32}, "annotators": {"template_caption": {}, "dis": {}}, "encode": encode}
    return openuni.run(recipe, folder / "raw", out=folder / "corpus", reporter=Reporter(quiet=True))


def recipe(model: dict[str, Any] = TINY, **data: Any) -> TrainingRecipe:
    return TrainingRecipe.from_dict(
        {
            "model": model,
            "data": {"text_length": 0, "validation_share": 0.0, "subjects": "template_caption.brief"} | data,
            "optimizer": {"steps": 1, "batch_size": 4, "warmup_steps": 0},
        }
    )


def rows_of_flow(setup: Setup, settings: TrainingRecipe, steps: int = 8) -> list[tuple[int, bool, torch.Tensor]]:
    """Clip, whether its caption was dropped, and the text of its flow stream, of every sample."""
    plan = Plan.build(setup.index, setup.mix, settings.seed, settings.optimizer.batch_size)
    loader = Loader(setup.corpus, setup.index, setup.texts, settings, setup.model)
    batches = [batch for step in range(steps) for part in loader.step(plan, step) for batch in part]
    return [
        (clip, torch.equal(batch.text["rgb"][row], setup.texts.empty), batch.text["flow"][row])
        for batch in batches
        for row, clip in enumerate(batch.clips)
    ]


def test_the_text_of_a_stream_is_its_prompt_and_the_subject(corpus: Corpus, tmp_path: Path) -> None:
    settings = recipe(caption_dropout=0.0)
    setup = prepare(settings, corpus, tmp_path)
    briefs = {clip.clip_id: clip.row("template_caption")["brief"] for clip in corpus}
    codec = openuni.training.data.fixed_texts.open_text_codec(setup.record["text"])
    for clip, _, text in rows_of_flow(setup, settings, 2):
        subject = torch.from_numpy(codec.encode(codec.load("cpu"), briefs[setup.index.clip_ids[clip]]))
        prompt = setup.texts.rows["flow"]
        assert torch.equal(text[: len(prompt)], prompt)
        assert torch.equal(text[len(prompt) : len(prompt) + len(subject)], subject)
        assert not text[len(prompt) + len(subject) :].any()
    fixed = prepare(recipe(subjects=""), corpus, tmp_path / "fixed")
    assert fixed.index.digest() != setup.index.digest()
    assert "subjects" not in fixed.record["recipe"]["data"]  # records are what they were before the option


def test_subjects_are_dropped_apart_from_captions(corpus: Corpus, tmp_path: Path) -> None:
    settings = recipe(caption_dropout=0.5)
    setup = prepare(settings, corpus, tmp_path)
    found = {
        (no_caption, torch.equal(text, setup.texts.prompt("flow")))
        for _, no_caption, text in rows_of_flow(setup, settings)
    }
    assert found == {(a, b) for a in (False, True) for b in (False, True)}


def test_clips_without_a_subject_have_the_prompt_alone(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = pa.array(["two persons", " ", None], pa.large_string())
    monkeypatch.setattr(subjects, "text_of_clips", lambda *_: texts)
    settings = recipe(caption_dropout=0.0)
    setup = prepare(settings, corpus, tmp_path)
    assert setup.index.subjects is not None and setup.index.subjects.number.tolist() == [0, -1, -1]
    alone = {clip for clip, _, text in rows_of_flow(setup, settings) if torch.equal(text, setup.texts.prompt("flow"))}
    assert alone == {1, 2}


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe(), corpus, tmp_path_factory.mktemp("run"))


def test_a_subject_is_given_at_sampling(run: Run) -> None:
    """It changes the streams with prompts; without one, the prompt stands alone."""
    given = {"rgb": torch.zeros(1, *run.record["latent_shape"])}
    texts: list[torch.Tensor] = []
    hook = run.model.register_forward_pre_hook(lambda _, arguments: texts.append(arguments[2]["flow"][0]))
    made = [run.sample("rgb->flow", given, ["a"], None, ONCE, named)["flow"] for named in ((), [""], ["two persons"])]
    hook.remove()
    assert torch.equal(texts[0], run.texts.prompt("flow")[: len(texts[0])]) and torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    long = run.sample("rgb->flow", given, ["a"], None, ONCE, ["persons " * 40])["flow"]
    assert long.isfinite().all()  # longer than all texts of the training
    with pytest.raises(OpenUniError, match="one per caption, or none: got 2 for 1 captions"):
        run.sample("rgb->flow", given, ["a"], None, ONCE, ["a", "b"])


def test_what_cannot_be_is_an_error_that_says_what_to_set(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for column, message in (
        ("template_caption.bief", 'no text column of that name. Did you mean "brief"'),
        ("brief", 'the corpus has no rows of annotator ""'),
        ("dis.brief", "dis has no text column of that name"),
    ):
        with pytest.raises(OpenUniError, match=re.escape(message)):
            prepare(recipe(subjects=column), corpus, tmp_path)
    with pytest.raises(OpenUniError, match="unividx has no modality-type prompts in these tasks"):
        prepare(recipe(TINY | {"name": "unividx", "modalities": ["rgb", "flow"]}), corpus, tmp_path)
    monkeypatch.setattr(subjects, "MAX_DISTINCT", 1)
    monkeypatch.setattr(subjects, "text_of_clips", lambda *_: pa.array(["one", "two", "three"], pa.large_string()))
    with pytest.raises(OpenUniError, match=r"3 distinct texts of 3 clips\. Allowed: 1 to 1"):
        prepare(recipe(), corpus, tmp_path)
    plain = train(recipe(subjects=""), corpus, tmp_path / "plain")
    with pytest.raises(OpenUniError, match=r'modality-type prompts alone, got subject "a cat".*data\.subjects = '):
        plain.sample("text->rgb+flow", {}, ["a"], None, ONCE, ["a cat"])
