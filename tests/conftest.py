"""What holds for all tests."""

import os

# as the command line does (openuni/cli/main.py), before anything loads torch: the machine may be busy with other work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from tests.coded_clips import ordinary_priority

LONG = ("test_readme.py", "test_docs.py")  # a minute and more in one file: begun last, it would run on alone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that the two processes end together."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def no_test_leaves_real_time_priority():
    """Wherever a test encodes AV1 by itself."""
    with ordinary_priority():
        yield


@pytest.fixture(scope="module")
def one_thread():
    """For tests whose networks are tiny: more threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
