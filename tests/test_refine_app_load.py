"""The service under load and faults: 32 people, a replica killed, callers that hang up."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from refining import click, label_video
from scripted_refinements import Scene
from serve_cluster import (
    Client,
    kill_replicas,
    replica_pids,
    serving_dataset,
    until_replaced,
)
from serve_load import check, load
from serve_parts import Scripted

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
pytest_plugins = ["local_ray"]

VIDEOS = [f"v{number}" for number in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    made = tmp_path_factory.mktemp("labelled")
    for video_id in VIDEOS:
        label_video(made, checkpoint, [click(1, 4, 20.0), click(2, 0, 100.0)], video_id)
    return made


def test_32_people_on_8_videos_lose_nothing_when_a_replica_is_killed(
    local_ray: None, folder: Path, checkpoint: Path
) -> None:
    settings = ["models.min=2", "models.max=2", "models.ongoing=4", "models.queued=6"]
    with serving_dataset(str(folder / "labels"), checkpoint, settings) as url:
        killed: list[int] = []

        def kill_one() -> None:
            killed.extend(kill_replicas("models", only=1))

        heard = load(url, VIDEOS, clients=32, seconds=60, halfway=kill_one)
        assert len(killed) == 1
        until_replaced("models", killed)
    check(folder, heard)
    print(f"load average {os.getloadavg()[0]:.0f}; {dict(heard.statuses)}", end="; ")
    print(f"{len(heard.done)} revisions, {heard.broken_streams} streams broken and sent again")
    assert len(heard.done) >= len(VIDEOS) and heard.statuses["preview", 200] >= len(VIDEOS)


def test_what_is_being_answered_is_answered_when_the_service_ends(
    local_ray: None, checkpoint: Path
) -> None:
    parts = Scripted({"v1": Scene(num_frames=60)}, step_s=0.05)
    settings = ["models.drain_s=60.0", "ingress.drain_s=60.0", "library.drain_s=60.0"]
    with serving_dataset("nowhere", checkpoint, settings, parts=parts) as url:
        body = {"base_revision": 1, "prompts": [click(1, 5, 76.0, 102.0)]}
        response = Client(url).post("videos/v1/refinements", body, stream=True)
        lines = response.iter_lines()
        first = next(lines)
        rest: list[Any] = [first]
        reader = threading.Thread(target=lambda: rest.extend(lines))
        reader.start()
    reader.join(300)
    assert len(rest) == 61 and "result" in json.loads(rest[-1])


def test_a_full_queue_answers_503_and_nothing_is_lost(local_ray: None, checkpoint: Path) -> None:
    parts = Scripted({"v1": Scene(num_frames=20)}, step_s=0.1)
    settings = ["models.ongoing=1", "models.queued=1"]
    with serving_dataset("nowhere", checkpoint, settings, parts=parts) as url:
        body = {"base_revision": 1, "prompts": [click(1, 5, 76.0, 102.0)], "draft": True}
        answers: list[requests.Response] = []

        def ask() -> None:
            answers.append(Client(url).post("videos/v1/refinements", body))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503} and statuses.count(200) >= 1
        for answer in answers:
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "2"
                assert answer.json()["error"]["code"] == "busy"
            else:
                assert "result" in json.loads(answer.text.splitlines()[-1])
        assert replica_pids("models")
