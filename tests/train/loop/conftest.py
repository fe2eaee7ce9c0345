"""What tests of training start from: a corpus of six clips, and a run on it."""

import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.training.loop.trainer import train
from openuni.training.run import Run
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop.test_trainer import recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(6))


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe(), corpus, tmp_path_factory.mktemp("run"))
