"""A Ray cluster with a job server, beside this process: nothing here is connected to it."""

import socket
from collections.abc import Iterator

import pytest

CPUS = 4  # pretended; actors of the tests take half of one


@pytest.fixture(scope="module")
def job_cluster() -> Iterator[str]:
    """The address of its job server."""
    from ray.cluster_utils import Cluster

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": CPUS,
            "include_dashboard": True,
            "dashboard_port": port,
            "object_store_memory": 200_000_000,
        },
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        cluster.shutdown()
