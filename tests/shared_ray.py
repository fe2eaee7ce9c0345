"""One Ray for all tests of a process that do not end it: joined as a cluster, which starts in a third of the time."""

import atexit
from functools import cache

from openuni.pipeline.resources import Resources


@cache
def _address() -> str:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    atexit.register(cluster.shutdown)
    return str(cluster.address)


def shared_workers(count: int) -> Resources:
    """`count` workers on the shared Ray; 0: in this process."""
    return Resources(count, address=_address()) if count else Resources(0)
