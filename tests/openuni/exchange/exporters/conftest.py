"""One corpus for all tests of exporters; those that damage something make their own."""

import pytest

from tests.openuni.exchange.exporters.rooms import ids_by_name, make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("rooms"))


@pytest.fixture(scope="session")
def ids(corpus):
    return ids_by_name(corpus)
