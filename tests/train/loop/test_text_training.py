"""Models that make text, trained for real on tiny corpora: batches, losses, validation, stop and go, refusals."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.data.batches import Loader, TrainingBatch
from openuni.training.data.plan import Plan, Sample
from openuni.training.data.tokenizer import ByteTokenizer
from openuni.training.loop.setup import Setup, prepare
from openuni.training.loop.trainer import train
from openuni.training.objectives.losses import compute_losses
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run, autocast
from openuni.training.sampler import SamplingOptions
from openuni.training.tasks import Task
from tests.train.corpora import random_clips, write_corpus
from tests.train.data.test_captions import described as described
from tests.train.loop.test_trainer import assert_same, state
from tests.train.small_runs import small_recipe
from tests.train.test_codecs import umt5_folder as umt5_folder

BYTES = ByteTokenizer()
SAID = ["a cube", "two balls", "grün", "a cone falls", "a", "a red box", "it rolls", "nothing"]
V2T, T2V, T2VT = Task.parse("v2t"), Task.parse("t2v"), Task.parse("t2vt")
SETTINGS: dict[str, Any] = {
    "model": {"name": "univigu", "num_layers": 1, "heads": 2, "head_dim": 12, "ffn_dim": 32, "freq_dim": 16},
    "tasks": {"t2v": 1.0, "v2t": 1.0, "t2vt": 1.0},
    "text": {"length": 16},
    "data": {"caption_dropout": 0.3},
    "optimizer": {"batch_size": 6},
}


def recipe(**changes: Any) -> TrainingRecipe:
    """`SETTINGS` with tables merged."""
    return small_recipe(SETTINGS, changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    clips = [clip | {"caption": said} for clip, said in zip(random_clips(8, ("rgb",)), SAID, strict=True)]
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips)


@pytest.fixture(scope="module", params=["tokens", "embeddings"])
def flow(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(corpus: Corpus, flow: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe(model={"text_flow": flow}), corpus, tmp_path_factory.mktemp("run"))


def set_up(corpus: Corpus, folder: Path, **changes: Any) -> tuple[Setup, Loader]:
    setup = prepare(recipe(**changes), corpus, folder)
    return setup, Loader(corpus, setup.index, setup.texts, setup.recipe, setup.model, setup.tokenizer)


def drawn(corpus: Corpus, folder: Path, steps: int, **changes: Any) -> list[TrainingBatch]:
    setup, loader = set_up(corpus, folder, **changes)
    plan = Plan.build(setup.index, setup.mix, setup.recipe.seed, setup.recipe.optimizer.batch_size)
    return [batch for step in range(steps) for part in loader.step(plan, step) for batch in part]


# ---------------------------------------------------------------- batches


def test_a_batch_has_what_is_made_and_what_is_given(corpus: Corpus, tmp_path: Path) -> None:
    said = {clip.clip_id: clip.caption for clip in corpus}
    ids = sorted(corpus.kept_clip_ids())
    seen = set()
    for batch in drawn(corpus, tmp_path, 4):
        words = batch.text_stream
        assert words is not None and len(words.clean) == len(batch.tasks) == 6  # all three tasks in one pass
        for row, task in enumerate(batch.tasks):
            seen.add(task)
            text = BYTES.decode(words.clean[row])
            assert bool(words.is_target[row]) == task.generates_text
            assert (float(words.sigma[row]) > 0) == task.generates_text
            assert text == said[ids[batch.clips[row]]] or (not task.generates_text and text == "")
            assert bool(batch.targets["rgb"][row]) == (task != V2T)
            if task == V2T:
                assert float(batch.sigmas["rgb"][row]) == 0.0
    assert seen == {V2T, T2V, T2VT}


def test_a_dropped_caption_is_dropped_from_both_places(corpus: Corpus, tmp_path: Path) -> None:
    """The embedding and the given tokens say the same, always: nothing of a dropped caption leaks."""
    _, loader = set_up(corpus, tmp_path)
    dropped = 0
    for batch in drawn(corpus, tmp_path, 6):
        assert batch.text_stream is not None
        for row, task in enumerate(batch.tasks):
            told = not torch.equal(batch.text["rgb"][row], loader.texts.empty)
            if task == T2V:
                assert told == (BYTES.decode(batch.text_stream.clean[row]) != "")
                dropped += not told
            assert not (told and task == V2T)
    assert dropped > 0


def test_noise_is_by_name_not_by_company(corpus: Corpus, tmp_path: Path, flow: str) -> None:
    _, loader = set_up(corpus, tmp_path, model={"text_flow": flow})
    samples = [Sample(0, V2T), Sample(3, T2VT), Sample(1, T2V)]
    sigmas = [{"text": 0.5}, {"rgb": 0.4, "text": 0.7}, {"rgb": 0.2}]
    names: list[tuple[int | str, ...]] = [(4, 0), (4, 1), (4, 2)]
    whole = loader.batch(samples, sigmas, names).text_stream
    backwards = loader.batch(samples[::-1], sigmas[::-1], names[::-1]).text_stream
    alone = loader.batch(samples[1:2], sigmas[1:2], names[1:2]).text_stream
    assert whole and backwards and alone
    for field in dataclasses.fields(whole):
        assert torch.equal(getattr(whole, field.name).flip(0), getattr(backwards, field.name))
        assert torch.equal(getattr(whole, field.name)[1:2], getattr(alone, field.name))
    assert not torch.equal(whole.start[0], whole.start[1])
    assert whole.start.shape == ((3, 16) if flow == "tokens" else (3, 16, 24))


def test_sigmas_are_shared_or_apart(corpus: Corpus, tmp_path: Path) -> None:
    def pairs(shared: bool) -> list[tuple[float, float]]:
        options = {"tasks": {"t2vt": 1.0}, "flow": {"shared_sigma": shared}, "text": {"shift": 3.0}}
        batches = drawn(corpus, tmp_path / str(shared), 2, **options)
        return [
            (float(video), float(text))
            for batch in batches
            for video, text in zip(batch.sigmas["rgb"], batch.text_stream.sigma, strict=True)  # type: ignore[union-attr]
        ]

    assert all(video == text for video, text in pairs(True))
    assert all(video != text for video, text in pairs(False))
    alone = [
        float(sigma) for batch in drawn(corpus, tmp_path / "v2t", 2, tasks={"v2t": 1.0}) for sigma in _sigma(batch)
    ]
    assert len(set(alone)) == 12 and all(0 < sigma < 1 for sigma in alone)


def _sigma(batch: TrainingBatch) -> torch.Tensor:
    assert batch.text_stream is not None
    return batch.text_stream.sigma


def test_clips_without_a_text_that_fits_make_video_only(tmp_path: Path) -> None:
    said = ["a cube", None, "a caption that is too long", "a ball"]
    clips = [clip | {"caption": text} for clip, text in zip(random_clips(4, ("rgb",)), said, strict=True)]
    corpus = write_corpus(tmp_path / "corpus", clips)
    batches = drawn(corpus, tmp_path, 8, data={"validation_share": 0.0})
    ids = sorted(corpus.kept_clip_ids())
    made = {corpus[ids[clip]].caption for batch in batches for clip, task in _pairs(batch) if task.generates_text}
    every = {corpus[ids[clip]].caption for batch in batches for clip, _ in _pairs(batch)}
    assert made == {"a cube", "a ball"} and every == set(said)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["data"]["captions"] == {"with_text": 3, "fitting": 2}
    assert record["data"]["clips_by_task"] == {"text->rgb": 4, "rgb->text": 2, "->rgb+text": 2}


def _pairs(batch: TrainingBatch) -> list[tuple[int, Task]]:
    return list(zip(batch.clips, batch.tasks, strict=True))


def test_without_given_text_video_is_made_as_by_the_base(corpus: Corpus, tmp_path: Path) -> None:
    batches = drawn(corpus, tmp_path, 3, model={"text_conditioning": False})
    for batch in batches:
        assert (batch.text_stream is None) == (batch.tasks[0] == T2V)
        assert len({task.generates_text for task in batch.tasks}) == 1  # one pass each


# ---------------------------------------------------------------- losses


def test_the_loss_is_videos_and_texts_by_their_tokens(corpus: Corpus, tmp_path: Path, flow: str) -> None:
    setup, loader = set_up(corpus, tmp_path, model={"text_flow": flow})
    torch.manual_seed(0)
    model = setup.model.load("cpu")
    samples = [Sample(0, V2T), Sample(3, T2VT), Sample(1, T2V)]
    sigmas = [{"text": 0.5}, {"rgb": 0.4, "text": 0.7}, {"rgb": 0.2}]
    batch = loader.batch(samples, sigmas, [(0, slot) for slot in range(3)])

    def losses(**text: Any) -> Any:
        changed = dataclasses.replace(setup.recipe, text=dataclasses.replace(setup.recipe.text, **text))
        return compute_losses(model, batch, changed, autocast(changed, torch.device("cpu")))

    found = losses()
    assert (found.video == 0).tolist() == [True, False, False]
    assert (found.text == 0).tolist() == [False, False, True]
    tokens = 2 * 1 * 1  # latents of 2 x 2 x 2 in patches of 1 x 2 x 2
    torch.testing.assert_close(found.total, found.video + tokens / 16 * found.text)
    torch.testing.assert_close(losses(weight=3.0).total, found.video + 3.0 * found.text)
    assert {name: len(values) for name, values in found.split_by_target(batch.tasks).items()} == {"video": 2, "text": 2}
    if flow == "tokens":  # the head is 0 at the start: every token is as likely as any other
        torch.testing.assert_close(found.text[0], torch.tensor(258.0).log())
        assert not torch.allclose(losses(loss="generalised_kl").text[0], found.text[0])


def test_accuracy_counts_the_text_and_one_end(corpus: Corpus, tmp_path: Path) -> None:
    _, loader = set_up(corpus, tmp_path)
    number = next(number for number in range(8) if loader.index.captions.target(number) == "a cube")  # type: ignore[union-attr]
    words = loader.batch([Sample(number, V2T)], [{"text": 0.5}], [(0, 0)]).text_stream
    assert words is not None
    logits = torch.nn.functional.one_hot(words.clean, 258).float()
    assert words.accuracy(logits, BYTES.end).tolist() == [1.0]
    logits[0, 7:] = torch.nn.functional.one_hot(torch.tensor(5), 258).float()  # the filling
    assert words.accuracy(logits, BYTES.end).tolist() == [1.0]
    logits[0, 0] = logits[0, 9]
    torch.testing.assert_close(words.accuracy(logits, BYTES.end), torch.tensor([6 / 7]))


# ---------------------------------------------------------------- the loop


def test_a_run_logs_video_and_text_and_validates_each_task(run: Run) -> None:
    steps = [row for row in run.log if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert all(row["text_loss"] > 0 and row["video_loss"] > 0 for row in steps)
    assert {task for row in steps for task in row["task_loss"]} == {"text->rgb", "rgb->text", "->rgb+text"}
    validated = [row["validation_loss"] for row in run.log if "validation_loss" in row]
    assert len(validated) == 2
    for row in validated:
        assert {"text->rgb", "rgb->text", "rgb->text text", "->rgb+text video", "->rgb+text text"} <= set(row)
        assert 0 <= row["rgb->text token accuracy"] <= 1 and 0 <= row["->rgb+text token accuracy"] <= 1
        assert "rgb->text video" not in row and "text->rgb text" not in row
        assert row["rgb->text"] == pytest.approx(2 / 16 * row["rgb->text text"], rel=1e-5)
        assert {name for name in row if name.startswith("rgb->text at")} == {"rgb->text at 0.25", "rgb->text at 0.75"}


def test_describing_is_learnt(corpus: Corpus, tmp_path: Path, flow: str) -> None:
    """The text's loss of eight clips falls below half of its first values, with tokens and with embeddings."""
    settings = recipe(
        tasks={"v2t": 1.0},
        model={"text_flow": flow},
        text={"shift": 4.0, "weight": 1.0},
        data={"validation_share": 0.0},
        optimizer={"steps": 80, "batch_size": 8, "learning_rate": 1e-2},
        validation={"every_steps": 0},
        checkpoints={"every_steps": 80},
    )
    losses = [row["text_loss"] for row in train(settings, corpus, tmp_path).log if "loss" in row]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_resuming_is_bitwise_the_same(corpus: Corpus, tmp_path: Path, run: Run, flow: str) -> None:
    train(recipe(model={"text_flow": flow}, optimizer={"steps": 3}), corpus, tmp_path)
    train(recipe(model={"text_flow": flow}), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))

    def values(folder: Path) -> list[dict[str, Any]]:
        keys = ("step", "loss", "text_loss", "video_loss", "task_loss", "validation_loss")
        return [{k: v for k, v in row.items() if k in keys} for row in Run.open(folder).log]

    assert [row for row in values(run.folder)] == values(tmp_path)


def test_accumulation_gives_the_same_gradients(corpus: Corpus, tmp_path: Path, run: Run, flow: str) -> None:
    train(recipe(model={"text_flow": flow}, optimizer={"accumulate": 3}), corpus, tmp_path)
    ours, theirs = state(tmp_path), state(run.folder)
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=2e-4, rtol=1e-2)


def test_a_second_stage_starts_from_the_first(corpus: Corpus, tmp_path: Path, run: Run, flow: str) -> None:
    still = {"steps": 1, "learning_rate": 0.0, "weight_decay": 0.0}
    settings = {"model": {"text_flow": flow}, "start_from": str(run.folder), "optimizer": still}
    train(recipe(**settings, text={"length": 12}), corpus, tmp_path / "second")
    assert_same(
        {key: value for key, value in state(tmp_path / "second").items() if key.startswith("model/")},
        {key.replace("ema/", "model/"): value for key, value in state(run.folder).items() if key.startswith("ema/")},
    )


def test_recall_then_refinement(described: Corpus, tmp_path: Path) -> None:
    """The two stages: prompts are recalled first; then, told brief captions, the model learns to make detailed ones."""
    rows = {clip.clip_id: clip.row("template_caption") for clip in described}
    text = {"length": 320, "weight": 1.0}
    settings = {
        "data": {"validation_share": 0.0, "caption_dropout": 0.0},
        "optimizer": {"steps": 30, "batch_size": 3, "learning_rate": 1e-2},
        "validation": {"every_steps": 0},
        "checkpoints": {"every_steps": 30},
    }
    recall = train(recipe(text=text, **settings), described, tmp_path / "recall")
    text |= {"stage": "refinement", "detailed": "template_caption.detailed"}
    text |= {"brief_tokens": (0, 319), "detailed_tokens": (0, 319)}
    second = settings | {"start_from": str(recall.folder)}
    for batch in drawn(described, tmp_path / "batches", 2, text=text, **second):
        assert batch.text_stream is not None
        for row, (clip, task) in enumerate(zip(batch.clips, batch.tasks, strict=True)):
            name = "detailed" if task.generates_text else "brief"
            assert BYTES.decode(batch.text_stream.clean[row]) == rows[sorted(described.kept_clip_ids())[clip]][name]
    refined = train(recipe(text=text, **second), described, tmp_path / "refined")
    losses = [row["text_loss"] for row in refined.log if row.get("text_loss")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    made = refined.sample("t2vt", {}, [next(iter(rows.values()))["brief"]], sampling=SamplingOptions(steps=3))
    assert made["text"].shape == (1, 320) and made["rgb"].isfinite().all()


def test_a_caption_refines_the_prompt(described: Corpus, tmp_path: Path) -> None:
    """Capability Refinement of captioning: from the brief prompt and the video to the detailed caption."""
    rows = {clip.clip_id: clip.row("template_caption") for clip in described}
    text = {"length": 320, "stage": "refinement", "detailed": "template_caption.detailed"}
    text |= {"brief_tokens": (0, 319), "detailed_tokens": (0, 319)}
    settings = {"text": text, "tasks": {"v2t": 1.0}, "model": {"captioning_prompt": True}}
    _, loader = set_up(described, tmp_path / "batches", **settings)
    ids, dropped, prompted = sorted(described.kept_clip_ids()), 0, 0
    for batch in drawn(described, tmp_path / "batches", 6, **settings):
        assert batch.text_stream is not None
        for row, clip in enumerate(batch.clips):
            assert BYTES.decode(batch.text_stream.clean[row]) == rows[ids[clip]]["detailed"]
            brief = loader.texts.padded(loader.index.read_text(loader.reader, clip))
            assert torch.equal(batch.text["rgb"][row], brief) or torch.equal(batch.text["rgb"][row], loader.texts.empty)
            prompted += torch.equal(batch.text["rgb"][row], brief)
            dropped += torch.equal(batch.text["rgb"][row], loader.texts.empty)
    assert prompted > dropped > 0  # captions of videos without a prompt are learnt, too

    quick = settings | {"optimizer": {"steps": 3, "batch_size": 3, "learning_rate": 1e-2}}
    run = train(recipe(**quick), described, tmp_path / "run")
    given = {"rgb": torch.zeros(1, *run.record["latent_shape"])}
    logits: list[torch.Tensor] = []
    run.model.register_forward_hook(lambda *call: logits.append(call[-1]["text"]))
    for prompt in ("", "a cube", "two balls"):
        run.sample("v2t", given, [prompt], sampling=SamplingOptions(steps=1))
    assert not any(torch.equal(logits[one], logits[two]) for one, two in ((0, 1), (0, 2), (1, 2)))
    plain = train(recipe(**quick | {"model": {}}), described, tmp_path / "plain")
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    with pytest.raises(OpenUniError, match=r"does not use a prompt.*train with model\.captioning_prompt = true\."):
        plain.generate("a cube", ["text"], {"rgb": frames})
    assert "captioning_prompt" not in plain.record["model"]["options"]  # runs from before the option stay as they are


# ---------------------------------------------------------------- refusals


def test_what_does_not_fit_is_refused(corpus: Corpus, tmp_path: Path, run: Run, umt5_folder: str) -> None:
    with pytest.raises(OpenUniError, match=r"vocabulary = 300, but the tokenizer of \[text\] has 258 values"):
        train(recipe(model={"vocabulary": 300}), corpus, tmp_path)
    with pytest.raises(
        OpenUniError,
        match=r"no clip has a usable target text for tasks .*8 clips have one, none .*\(at most 1\)",
    ):
        longer = [clip | {"caption": "a cube"} for clip in random_clips(8, ("rgb",))]
        train(recipe(text={"length": 2}), write_corpus(tmp_path / "corpus", longer), tmp_path)
    pieces = {"tokenizer": "umt5", "checkpoint": umt5_folder}
    with pytest.raises(OpenUniError, match="was trained with a different tokenizer"):
        train(recipe(start_from=str(run.folder), text=pieces), corpus, tmp_path / "other")
    with pytest.raises(OpenUniError, match="needs depth; the model has rgb"):
        train(recipe(tasks={"rgb->depth": 1.0}), corpus, tmp_path)
    assert not list(tmp_path.glob("run.json"))


def test_other_captions_are_another_corpus(tmp_path: Path) -> None:
    """Targets are part of the data: a run does not go on with other ones."""
    clips = [clip | {"caption": said} for clip, said in zip(random_clips(8, ("rgb",)), SAID, strict=True)]
    corpus = write_corpus(tmp_path / "corpus", clips)
    quick = {"optimizer": {"steps": 1}, "validation": {"every_steps": 0}}
    train(recipe(**quick), corpus, tmp_path / "run")
    with pytest.raises(OpenUniError, match=r"(?s)recipe\.text\.length: 16 -> 12"):
        train(recipe(**quick, text={"length": 12}), corpus, tmp_path / "run")
    other = write_corpus(tmp_path / "other", [clip | {"caption": "a cube"} for clip in clips])
    with pytest.raises(OpenUniError, match=r"data\.digest"):
        train(recipe(**quick), other, tmp_path / "run")


def test_texts_to_make_are_part_of_the_datas_digest(corpus: Corpus, tmp_path: Path) -> None:
    """Also where the embeddings are the same, as with other detailed captions of the same brief ones."""
    index = set_up(corpus, tmp_path)[0].index
    assert index.captions is not None
    said = index.captions.targets.to_pylist()
    others = dataclasses.replace(index.captions, targets=pa.array([*said[:-1], "another"], pa.large_string()))
    assert dataclasses.replace(index, captions=others).digest() != index.digest()
    assert dataclasses.replace(index).digest() == index.digest() != dataclasses.replace(index, captions=None).digest()


def test_umt5_tokens_train_too(corpus: Corpus, tmp_path: Path, umt5_folder: str) -> None:
    pieces = {"tokenizer": "umt5", "checkpoint": umt5_folder, "length": 32}
    run = train(recipe(text=pieces, optimizer={"steps": 2}, validation={"every_steps": 0}), corpus, tmp_path)
    assert run.record["model"]["options"]["vocabulary"] == run.record["tokens"]["vocabulary"] != 258


def test_a_run_of_before_the_epsilon_of_the_text_head_resumes_with_its_own(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_clips(4, ("rgb",)))
    train(recipe(optimizer={"steps": 1}), corpus, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record["model"]["options"].pop("text_head_eps") == 1e-5
    del record["checksum"]
    path.write_text(json.dumps(record))
    assert Run.open(tmp_path / "run").model.text_head.norm.eps == 1e-6
    run = train(recipe(optimizer={"steps": 2}), corpus, tmp_path / "run")
    assert run.checkpoint.step == 2 and run.model.text_head.norm.eps == 1e-6
    assert json.loads(path.read_text())["model"]["options"]["text_head_eps"] == 1e-6
    with pytest.raises(OpenUniError, match=r"text_head_eps: 1e-06 -> 1e-05"):
        train(recipe(optimizer={"steps": 3}, model={"text_head_eps": 1e-5}), corpus, tmp_path / "run")
