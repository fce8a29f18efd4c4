"""A Ray cluster with a job server, beside this process: nothing here is connected to it."""

from collections.abc import Iterator

import pytest
from free_ports import free_ports
from patience import patiently

CPUS = 4  # pretended; actors of the tests take half of one


@pytest.fixture(scope="module")
def job_cluster() -> Iterator[str]:
    """The address of its job server."""
    from ray.cluster_utils import Cluster

    server, agent = free_ports(2)
    cluster = patiently(
        lambda: Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": CPUS,
                "include_dashboard": True,
                "dashboard_port": server,
                # Jobs are begun through it; by default all Rays of a machine want the same port.
                "dashboard_agent_listen_port": agent,
                "object_store_memory": 200_000_000,
            },
        )
    )
    try:
        yield f"http://127.0.0.1:{server}"
    finally:
        cluster.shutdown()
