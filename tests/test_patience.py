"""Tests on a busy machine: a Ray that did not come up in time leaves nothing behind."""

import subprocess
from pathlib import Path

import pytest
from patience import patiently

pytestmark = pytest.mark.cluster


def test_what_came_up_of_a_node_that_was_given_up_is_ended_before_the_next_try() -> None:
    pids: list[int] = []

    def start() -> str:
        held = subprocess.Popen(["sleep", "600"])
        pids.append(held.pid)
        if len(pids) < 3:
            raise Exception("The current node timed out during startup.")
        held.kill()
        held.wait()
        return "up"

    assert patiently(start) == "up"
    assert len(pids) == 3
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().split(")")[1].split()[0] == "Z"


def test_another_error_is_not_tried_again() -> None:
    with pytest.raises(ValueError, match="no such address"):
        patiently(lambda: int_of("no such address"))


def int_of(text: str) -> int:
    raise ValueError(text)
