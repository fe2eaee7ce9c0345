"""Runs to export: all weights trained, and LoRAs on a frozen base that has a hub name."""

from pathlib import Path

import pytest

from openuni.manifests.contracts.checkpoint import MIRROR_VARIABLE
from openuni.manifests.corpus.corpus import Corpus
from openuni.training.loop.trainer import train
from openuni.training.run import Run
from tests.train.backbone.tiny_wan import tiny_base
from tests.train.corpora import random_clips, write_corpus
from tests.train.small_runs import small_recipe

SIZE = {"num_layers": 2, "heads": 2, "head_dim": 12, "ffn_dim": 32, "freq_dim": 16}
BASE = "someone/tiny-wan"
STEPS = {"optimizer": {"steps": 2, "learning_rate": 0.05}, "validation": {"every_steps": 0}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(4))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints by hub name: a base with a card."""
    folder = tmp_path_factory.mktemp("mirror")
    tiny_base().save_pretrained(folder / BASE / "transformer")
    (folder / BASE / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    return folder


@pytest.fixture
def use_mirror(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, str(mirror))


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """UnityVideo from random weights."""
    recipe = small_recipe({"model": SIZE | {"name": "unityvideo", "switcher_dim": 8}}, STEPS)
    return train(recipe, corpus, tmp_path_factory.mktemp("run") / "run", device="cpu")


@pytest.fixture(scope="module")
def lora_run(corpus: Corpus, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """UniVidX: LoRAs on the base."""
    model = {"name": "unividx", "modalities": ["rgb", "depth"], "rank": 3, "pretrained": BASE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MIRROR_VARIABLE, str(mirror))
        recipe = small_recipe({"model": model, "tasks": {"partitions": 1.0}}, STEPS)
        return train(recipe, corpus, tmp_path_factory.mktemp("lora") / "run", device="cpu")
