"""Replicas come with more work and go with less, and no stream is cut by it."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from refining import click
from scripted_refinements import Scene
from serve_cluster import Client, replica_pids, serving_dataset
from serve_parts import Scripted

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
pytest_plugins = ["local_ray"]

FRAMES = 150  # of half a minute: replicas are counted every ten seconds
EAGER = (
    *("models.max=2", "models.target_ongoing=1.0"),
    *("models.upscale_delay_s=1.0", "models.downscale_delay_s=3.0"),
)


def until_there_are(count: int, limit_s: float = 300.0) -> None:
    deadline = time.monotonic() + limit_s
    while len(found := replica_pids("models")) != count:
        assert time.monotonic() < deadline, f"{len(found)} replicas; wanted {count}"
        time.sleep(0.2)


def test_replicas_come_with_more_work_and_go_with_less_and_every_stream_is_whole(
    local_ray: None,
) -> None:
    videos = {f"v{number}": Scene(num_frames=FRAMES) for number in range(4)}
    nowhere = Path("nowhere")  # no model is loaded
    with serving_dataset("nowhere", nowhere, EAGER, Scripted(videos, step_s=0.25)) as url:
        until_there_are(1)
        with ThreadPoolExecutor(len(videos)) as pool:
            streams = [
                pool.submit(Client(url).refine, video, 1, click(1, 0, 76.0, 102.0))
                for video in videos
            ]
            until_there_are(2)
            assert not all(stream.done() for stream in streams)
            answers = [stream.result() for stream in streams]
        for lines in answers:
            assert [line["frame"]["frame_index"] for line in lines[:-1]] == list(range(FRAMES))
            assert lines[-1]["result"]["revision"] == 2
        until_there_are(1)
