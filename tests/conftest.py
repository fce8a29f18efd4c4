"""Fixtures that more than one test file needs."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The first Ray of a process decides for all of them whether calls carry a token; a later one that
# is told otherwise starts, and then loses every actor. Without this, Ray also writes a token to the
# home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Ray's workers yield to everybody else by default, and tests wait for them.
os.environ["RAY_worker_niceness"] = "0"

REAL_DATA = Path(os.environ.get("MASKMILL_TEST_DATA", Path(__file__).parents[2] / "shared/data"))


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The path of a real video or annotation file; skips, naming it, where it is absent."""

    def path_of(name: str) -> Path:
        path = REAL_DATA / name
        if not path.exists():
            pytest.skip(f"needs the real file {name} (set MASKMILL_TEST_DATA to its folder)")
        return path

    return path_of


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model of random weights, which nobody writes to."""
    from checkpoints import small_checkpoint

    return small_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(autouse=True)
def no_log_handler_outlives_its_test() -> Iterator[None]:
    """A job run within a test logs to that test's captured stderr, which is closed after it."""
    yield
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:
        root.removeHandler(handler)
