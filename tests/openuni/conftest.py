"""One tiny corpus for all tests of the command line and of verification; those that change something copy it."""

from pathlib import Path

import pytest

from tests.tiny_corpus import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw/ (two videos), corpus.toml and corpus/. Not to be written to."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))
