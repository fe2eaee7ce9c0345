"""Uni-ViGU learns eight world clips by heart, through the real trainer and sampler: captions come back word for word.

What it takes, as measured: noise levels of the text shifted towards noise, where only the video tells what to say, and
a text loss that counts as much as the video's. Embeddings need far more of that shift than tokens: the wider they are,
the more noise leaves them readable, and what can be read off the text itself is not learnt from the video.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.payload_reader import PayloadReader
from openuni.training.data.index import open_index
from openuni.training.loop.trainer import train
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from openuni.training.sampler import SamplingOptions
from tests.train.world_corpora import CLIPS, world_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

MODEL = {"name": "univigu", "num_layers": 2, "heads": 3, "head_dim": 32, "ffn_dim": 192, "freq_dim": 32}


class Flow(NamedTuple):
    """How the text flows, and what that takes."""

    name: str
    shift: float  # of the text, in training
    steps: tuple[int, int]  # of all tasks together, then of describing alone
    sampling: SamplingOptions
    left: dict[str, float]  # of the first losses, at most


FLOWS = (
    Flow(
        name="tokens",
        shift=4.0,
        steps=(500, 400),
        sampling=SamplingOptions(steps=16, shift=1.0, temperature=0.0),
        left={"rgb->text": 0.02, "text->rgb": 0.3, "->rgb+text": 0.25},
    ),
    Flow(
        name="embeddings",
        shift=30.0,
        steps=(400, 700),
        sampling=SamplingOptions(steps=8, shift=30.0, temperature=0.0),
        left={"rgb->text": 0.25, "text->rgb": 0.3, "->rgb+text": 0.25},
    ),
)


class Learnt(NamedTuple):
    """All three tasks learnt at once."""

    flow: Flow
    run: Run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Captions of 78 to 196 bytes."""
    return world_corpus(tmp_path_factory.mktemp("world"), "solids", ["rgb"])


@pytest.fixture(scope="module", params=FLOWS, ids=lambda flow: flow.name)
def together(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    steps = request.param.steps[0]
    settings = recipe(request.param, {"v2t": 0.5, "t2v": 0.25, "t2vt": 0.25}, steps, rate=5e-3, decay=0.6)
    return Learnt(request.param, train(settings, corpus, tmp_path_factory.mktemp("together")))


def recipe(
    flow: Flow, tasks: dict[str, float], steps: int, *, rate: float, decay: float, start_from: str = ""
) -> TrainingRecipe:
    """`decay`: share of the steps over which the rate falls."""
    settings: dict[str, Any] = {
        "model": MODEL | {"text_flow": flow.name},
        "tasks": tasks,
        "start_from": start_from,
        "text": {"length": 200, "shift": flow.shift, "weight": 1.0},
        "data": {"text_length": 0, "validation_share": 0.0, "caption_dropout": 0.0},
        "flow": {"shift": 1.0},
        "optimizer": {
            "steps": steps,
            "batch_size": CLIPS,
            "learning_rate": rate,
            "added_rate_factor": 1.0,
            "warmup_steps": 10,
            "decay_steps": int(steps * decay),
            "weight_decay": 0.0,
        },
        "ema": {"decay": 0.98},
        "checkpoints": {"every_steps": steps},
    }
    return TrainingRecipe.from_dict(settings)


def test_the_loss_of_every_task_falls(together: Learnt) -> None:
    """The mean of the last 12 losses against that of the first 5."""
    seen: dict[str, list[float]] = defaultdict(list)
    for row in together.run.log:
        for task, loss in row.get("task_loss", {}).items():
            seen[task].append(loss)
    left = {task: np.mean(losses[-12:]) / np.mean(losses[:5]) for task, losses in seen.items()}
    assert left.keys() == together.flow.left.keys()
    assert all(left[task] < most for task, most in together.flow.left.items()), left


def test_captions_come_back_word_for_word(corpus: Corpus, together: Learnt, tmp_path: Path) -> None:
    """A second run describes alone, from the weights of the first: all eight captions are exact, to the last byte."""
    flow, earlier = together
    settings = recipe(flow, {"v2t": 1.0}, flow.steps[1], rate=4e-3, decay=0.87, start_from=str(earlier.folder))
    run = train(settings, corpus, tmp_path)
    index = open_index(corpus, ("rgb",), "", "", 0.0)
    latents = index.read_latents(PayloadReader(corpus), "rgb", range(CLIPS)).float()
    made = run.sample("v2t", {"rgb": latents}, [""] * CLIPS, sampling=flow.sampling)["text"]
    told = {clip: run.tokenizer.decode(row) for clip, row in zip(index.clip_ids, made, strict=True)}
    assert told == {clip.clip_id: clip.caption for clip in corpus}
    assert len(set(told.values())) == CLIPS
