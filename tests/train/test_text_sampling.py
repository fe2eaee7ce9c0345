"""Text made from video, beside video, and given to it: one loop, draws by name, nothing else changes."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.loop.trainer import train
from openuni.training.objectives.discrete_flow_matching import named_step
from openuni.training.objectives.flow_matching import sampling_sigmas, solve
from openuni.training.run import Run
from openuni.training.sampler import SamplerInputs, SamplingOptions, TextState, sample
from openuni.training.tasks import Task
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop.test_text_training import SAID, recipe

QUICK = SamplingOptions(steps=3, shift=1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    clips = [clip | {"caption": said} for clip, said in zip(random_clips(8, ("rgb",)), SAID, strict=True)]
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips)


@pytest.fixture(scope="module", params=["tokens", "embeddings"])
def run(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    quick = {"optimizer": {"steps": 8, "learning_rate": 1e-2}, "validation": {"every_steps": 0}, "ema": {"decay": 0.0}}
    return train(recipe(model={"text_flow": request.param}, **quick), corpus, tmp_path_factory.mktemp("run"))


def video(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("solver", ["euler", "heun", "adams_bashforth"])
def test_each_task_makes_what_it_names(run: Run, solver: str) -> None:
    how = dataclasses.replace(QUICK, solver=solver)
    described = run.sample("v2t", {"rgb": video(2)}, ["", ""], sampling=how)
    assert set(described) == {"text"}
    assert described["text"].shape == (2, 16) and described["text"].dtype == torch.int64
    assert int(described["text"].min()) >= 0 and int(described["text"].max()) < 258
    both = run.sample("t2vt", {}, ["a cube", "a ball"], sampling=how)
    assert set(both) == {"rgb", "text"} and both["text"].shape == (2, 16) and both["rgb"].shape == (2, 4, 2, 2, 2)
    assert set(run.sample("t2v", {}, ["a cube"], sampling=how)) == {"rgb"}


def test_draws_are_by_item_and_seed(run: Run) -> None:
    """Item 0 comes out the same alone and in company; another seed gives another text."""
    latents, three = video(3), ["a cube", "a ball", ""]
    made = run.sample("v2t", {"rgb": latents}, three, sampling=QUICK)["text"]
    assert torch.equal(made, run.sample("v2t", {"rgb": latents}, three, sampling=QUICK)["text"])
    assert torch.equal(made[:1], run.sample("v2t", {"rgb": latents[:1]}, [""], sampling=QUICK)["text"])
    joint = run.sample("t2vt", {}, three, sampling=QUICK)
    alone = run.sample("t2vt", {}, three[:1], sampling=QUICK)
    assert torch.equal(joint["text"][:1], alone["text"])
    torch.testing.assert_close(joint["rgb"][:1], alone["rgb"], atol=1e-5, rtol=1e-4)
    other = run.sample("v2t", {"rgb": latents}, three, sampling=dataclasses.replace(QUICK, seed=1))["text"]
    assert not torch.equal(made, other)


def test_a_given_caption_is_in_the_text_stream_and_guidance_takes_it_away(run: Run) -> None:
    """With the embedding of the prompt put away, what is left of the prompt are its tokens."""
    seen: list[dict[str, Any]] = []
    model = run.model
    forward = model.forward

    def watched(streams: Any, sigmas: Any, text: Any) -> Any:
        seen.append({"text": streams["text"].clone(), "sigma": sigmas["text"].clone(), "told": text["rgb"].clone()})
        return forward(streams, sigmas, text)

    model.forward = watched
    try:
        run.sample("t2v", {}, ["a cube"], sampling=dataclasses.replace(QUICK, steps=1, guidance_scale=3.0))
    finally:
        del model.forward
    assert len(seen) == 2
    said = {run.tokenizer.decode(call["text"][0]): call for call in seen}
    assert set(said) == {"a cube", ""}
    assert all(not call["sigma"].any() for call in seen)
    assert torch.equal(said[""]["told"][0], run.texts.empty) and not torch.equal(
        said["a cube"]["told"][0], run.texts.empty
    )


class Decided:
    """Known answers: told something it moves the video by 1 and says token 1; told nothing, by 0 and token 2."""

    condition_sigma = 0.0

    def __call__(self, streams: Any, sigmas: Any, text: Any) -> dict[str, torch.Tensor]:
        told = text["rgb"].abs().sum((1, 2)) > 0
        words = torch.where(told, 1, 2)[:, None].expand(-1, streams["text"].shape[1])
        pushed = told.float()[:, None, None, None, None].expand_as(streams["rgb"])
        return {"rgb": pushed, "text": 1000.0 * torch.nn.functional.one_hot(words, 4)}


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_guidance_moves_the_video_and_not_the_text(guidance: float) -> None:
    start = TextState(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), 1.0)
    conditions = SamplerInputs({}, {"rgb": torch.ones(2, 3, 8)}, torch.zeros(3, 8), text_state=start)
    how = SamplingOptions(steps=4, shift=1.0, guidance_scale=guidance)
    made = sample(Decided(), Task.parse("t2vt"), conditions, (2, 4, 2, 2, 2), how)  # type: ignore[arg-type]
    still = sample(
        Decided(),  # type: ignore[arg-type]
        Task.parse("t2vt"),
        conditions._replace(text={"rgb": torch.zeros(2, 3, 8)}),
        (2, 4, 2, 2, 2),
        dataclasses.replace(how, guidance_scale=1.0),
    )
    assert (made["text"] == 1).all() and (still["text"] == 2).all()
    torch.testing.assert_close(made["rgb"], still["rgb"] - guidance)  # along velocities of `guidance` from 1 to 0


class Undecided:
    """Says at every position that value 3 is likelier than each of the others, by e."""

    condition_sigma = 0.0

    def __call__(self, streams: Any, sigmas: Any, text: Any) -> dict[str, torch.Tensor]:
        words = torch.full(streams["text"].shape, 3)
        return {"rgb": streams["rgb"], "text": torch.nn.functional.one_hot(words, 5).float()}


def test_temperature_makes_likelier_texts() -> None:
    start = TextState(torch.zeros(4, 500, dtype=torch.int64), torch.zeros(500, dtype=torch.int64), 1.0)
    conditions = SamplerInputs(
        {"rgb": torch.zeros(4, 4, 1, 2, 2)}, {"rgb": torch.zeros(4, 3, 8)}, None, text_state=start
    )

    def share(temperature: float) -> float:
        how = SamplingOptions(steps=3, shift=1.0, temperature=temperature)
        made = sample(Undecided(), Task.parse("v2t"), conditions, (4, 4, 1, 2, 2), how)  # type: ignore[arg-type]
        return float((made["text"] == 3).float().mean())

    likeliest = {temperature: math.exp(1 / temperature) for temperature in (0.5, 1.0, 2.0)}
    for temperature, weight in likeliest.items():
        assert share(temperature) == pytest.approx(weight / (weight + 4), abs=0.04)
    assert share(0.0) == 1.0
    with pytest.raises(OpenUniError, match=r"sampling: temperature = -1\.0\. Allowed: at least 0"):
        SamplingOptions(temperature=-1.0)


def test_guidance_without_a_video_to_make_is_refused(run: Run) -> None:
    with pytest.raises(OpenUniError, match='guidance applies to video only, and task "rgb->text" has no video target'):
        run.sample("v2t", {"rgb": video(1)}, [""], sampling=dataclasses.replace(QUICK, guidance_scale=2.0))


def test_text_in_one_loop_is_text_solved_alone() -> None:
    """`solve` takes a stream of tokens by Euler steps of its own, whatever the latents' solver."""
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    start = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(1))
    sigmas = sampling_sigmas(6, 2.0)
    expected = start
    for step, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        expected = named_step(expected, logits * (2 - sigma), (sigma, following), 2.0, step, 3)

    def field(streams: dict[str, torch.Tensor], sigma: float) -> dict[str, torch.Tensor]:
        assert streams.keys() == {"rgb", "text"}
        return {"rgb": streams["rgb"], "text": logits * (2 - sigma)}

    for solver in ("euler", "heun", "adams_bashforth"):
        found = solve(
            field,
            {"rgb": torch.ones(2, 1), "text": start},
            sigmas,
            solver,  # type: ignore[arg-type]
            lambda tokens, at, sigma, following, step: named_step(tokens, at, (sigma, following), 2.0, step, 3),
        )
        assert torch.equal(found["text"], expected)
        plain = solve(lambda x, sigma: x, {"rgb": torch.ones(2, 1)}, sigmas, solver)  # type: ignore[arg-type]
        assert torch.equal(found["rgb"], plain["rgb"])


def test_generate_gives_text(run: Run) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    made = run.generate("", ["text"], {"rgb": frames}, sampling=QUICK)
    assert set(made) == {"text"} and isinstance(made["text"], str)
    both = run.generate("a cube", ["text", "rgb"], sampling=QUICK)
    assert both["rgb"].array.shape == (5, 16, 16, 3) and isinstance(both["text"], str)
    assert run.shift(Task.parse("v2t")) == run.recipe.text.shift and run.shift(Task.parse("t2vt")) == 1.0


def test_what_cannot_be_made_is_refused(run: Run, corpus: Corpus, tmp_path: Path) -> None:
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    with pytest.raises(OpenUniError, match='task "rgb->text" does not use a prompt, got "a cube"'):
        run.generate("a cube", ["text"], {"rgb": frames}, sampling=QUICK)
    settings = recipe(tasks={"t2v": 1.0}, optimizer={"steps": 1}, validation={"every_steps": 0})
    other = train(settings, corpus, tmp_path)
    with pytest.raises(OpenUniError, match=r'not trained for "rgb->text"; it was trained for: text->rgb'):
        other.generate("", ["text"], {"rgb": frames}, sampling=QUICK)
    conditions = SamplerInputs({"rgb": video(1)}, {"rgb": torch.zeros(1, 3, 8)}, None)
    with pytest.raises(OpenUniError, match="generates text: text_state is required"):
        sample(run.model, Task.parse("v2t"), conditions, (1, 4, 2, 2, 2), QUICK)


def test_another_tokenizer_than_the_trainings_is_refused(run: Run, tmp_path: Path) -> None:
    record = json.loads(json.dumps(run.record))
    record["tokens"]["digest"] = "0" * 16
    with pytest.raises(OpenUniError, match=r"trained with a different tokenizer \(258 values\)"):
        _ = Run(run.folder, record).tokenizer
    del record["tokens"]
    with pytest.raises(OpenUniError, match="does not generate text"):
        _ = Run(run.folder, record).tokenizer
