"""Streams through Ray Serve: a caller that hangs up stops the work, and clicks do not wait."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from refining import click
from scripted_refinements import Scene
from serve_cluster import Client, serving_dataset
from serve_parts import Scripted

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
pytest_plugins = ["local_ray"]


@pytest.fixture(scope="module")
def slow_url(local_ray: None) -> Iterator[str]:
    """A step of the model takes 50 ms; what was computed is told by the engine's own count."""
    parts = Scripted({"v1": Scene(num_frames=400)}, step_s=0.05)
    nowhere = Path("nowhere")  # no model is loaded
    with serving_dataset("nowhere", nowhere, parts=parts) as url:
        yield url


def steps(url: str) -> int:
    """Previews carry how many steps their replica has taken so far."""
    body = {"base_revision": 1, "frame_index": 0, "prompts": [click(1, 0, 60.0, 100.0)]}
    answer = Client(url).post("videos/v1/preview", body).json()
    return int(answer["pts_s"])


def test_a_connection_that_is_closed_stops_the_work(slow_url: str) -> None:
    """By how many steps tests/test_service_workers.py shows, where no network is between."""
    before = steps(slow_url)
    body = {"base_revision": 1, "prompts": [click(1, 5, 76.0, 102.0)]}
    client = Client(slow_url)
    with client.post("videos/v1/refinements", body, stream=True) as response:
        lines = response.iter_lines()
        for _ in range(10):
            json.loads(next(lines))
    last, now = -1, steps(slow_url)
    while now != last + 1:  # but for this preview's own
        time.sleep(1.0)  # twenty steps, if they went on
        last, now = now, steps(slow_url)
    assert now - before < 300  # of 400
    assert client.revision("v1") == 1


def test_clicks_are_answered_while_a_propagation_runs(slow_url: str) -> None:
    body = {"base_revision": 1, "prompts": [click(1, 5, 76.0, 102.0)]}
    client, clicker = Client(slow_url), Client(slow_url)
    with client.post("videos/v1/refinements", body, stream=True) as response:
        lines = response.iter_lines()
        next(lines)
        seen = 1
        for _ in range(5):
            clicker.preview("v1", 1, click(1, 0, 60.0, 100.0))
        for _ in range(3):
            next(lines)
            seen += 1
    assert seen == 4
