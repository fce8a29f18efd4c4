"""Ray gives a machine 30 s to come up, to which a crowded one may not keep: it is asked again."""

from collections.abc import Callable
from typing import TypeVar

Started = TypeVar("Started")
TRIES = 5


def patiently(start: Callable[[], Started]) -> Started:
    """What `start` gives once Ray comes up in time."""
    for _ in range(TRIES):
        try:
            return start()
        except Exception as error:  # Ray's own is of no other class
            if "timed out during startup" not in str(error):
                raise
    raise AssertionError(f"Ray did not come up here in {TRIES} tries")
