"""Ray gives each node 30 s to come up, a number of its own; a machine that is busy takes longer."""

import gc
import os
import signal
import subprocess
import warnings
from collections.abc import Callable
from typing import TypeVar

Started = TypeVar("Started")
TRIES = 5


def patiently(start: Callable[[], Started]) -> Started:
    """What `start` gives once Ray comes up in time."""
    for _ in range(TRIES):
        before = _children()
        try:
            return start()
        except Exception as error:  # Ray's own is of no other class
            if "timed out during startup" not in str(error):
                raise
            late = [error]
        _end(_children() - before)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            late.clear()  # and with it the processes that nobody waited for
            gc.collect()
    raise AssertionError(f"Ray did not come up here in {TRIES} tries")


def _children() -> set[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return {int(pid) for pid in listed.stdout.split()}


def _end(pids: set[int]) -> None:
    """What came up of a node that was given up: it takes time from the next, and nobody owns it."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # `ps` itself, for one
            continue
