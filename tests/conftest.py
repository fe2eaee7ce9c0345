"""What holds for all tests."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import chdir
from typing import TYPE_CHECKING

# as the command line does (openuni/cli/main.py), before anything loads torch: the machine may be busy with other work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# for networks as tiny as those of tests more threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

# one way to authenticate for every Ray that tests start or join: the first local one would turn tokens on for the
# process, and workers of a cluster that was started without them die
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import pytest

from tests.thread_priority import ordinary_priority

if TYPE_CHECKING:
    from openuni.pipeline.runners.resources import Resources

# A minute and more in one file: begun last, it would run on alone. The first are those of the slow step.
LONG = (
    *("test_unividx_world.py", "test_univigu_world.py", "test_kills_and_faults.py", "test_flipped_bits.py"),
    *("test_unityvideo_world.py", "test_cluster.py", "test_kills.py", "test_ranks.py", "test_killed_commands.py"),
    *("test_demo.py", "test_readme.py", "test_docs.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that the two processes end together."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def no_test_leaves_real_time_priority():
    """Wherever a test encodes AV1 by itself."""
    with ordinary_priority():
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_disks() -> Iterator[None]:
    """fsync protects from power cuts, which no test has, and is a third of the time of a small run.

    That files are synced before they become visible is tested in tests/manifests/storage/test_store.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster that all tests of this process join: starting one takes longer than most runs on it.

    Its workers have the environment of its start. Tests of Ray's own start, and of variables, start their own.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    with chdir(tmp_path_factory.mktemp("ray")):  # as RayRunner: its workers would import modules that lie there
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="session")
def ray_workers(ray_address: str) -> "Callable[[int], Resources]":
    """Resources of a number of workers on that cluster."""
    from openuni.pipeline.runners.resources import Resources

    return lambda workers: Resources(workers, address=ray_address)
