"""The corpus and the run of the tests of training."""

from tests.train.loop.conftest import corpus, run

__all__ = ["corpus", "run"]
