"""One Ray on this machine for all tests that want one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import patiently

QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(Path(__file__).parent),  # workers make what the tests define
    # and may reach the object store of those tests that have one
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Four pretended processors and two pretended GPUs; actors of the tests take half of one."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        patiently(
            lambda: ray.init(
                address="local",  # never a cluster that happens to run on this machine
                num_cpus=4,
                num_gpus=2,
                include_dashboard=False,
                object_store_memory=200_000_000,
                log_to_driver=False,
                logging_level="warning",
            )
        )
        yield
        ray.shutdown()
