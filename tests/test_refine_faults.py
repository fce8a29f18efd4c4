"""Drivers of a batch of refinements are killed in its midst; each request is one revision."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bulk import EXACT, address_of_ray, contents, driver, last_line, settings_of
from refining import click, label_video

from workflows.query import Dataset
from workflows.refine_requests import write_requests
from workflows.storage import Storage

pytest_plugins = ["local_ray"]
pytestmark = pytest.mark.cluster

VIDEOS = [f"v{number}" for number in range(6)]
REFINED = """
    SELECT request_id, video_id, status, reason FROM refinements ORDER BY ALL
"""
REVISIONS = """
    SELECT video_id, revision, refinement.request_id AS request_id FROM tracks
    WHERE source = 'refine' ORDER BY ALL
"""
Contents = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Videos with an object each, and requests that correct it."""
    folder = tmp_path_factory.mktemp("labelled")
    for number, video_id in enumerate(VIDEOS):
        label_video(folder, checkpoint, [click(1, 4, 20.0)], video_id, frames=12 + 4 * (number % 3))
    requests = [
        {"request_id": f"r-{v}", "video_id": v, "prompts": [click(1, 7, 80.0)], "author": "ann"}
        for v in VIDEOS
    ]
    write_requests(requests, str(folder / "requests.parquet"), Storage())
    return folder


def settings(folder: Path, checkpoint: Path, **changes: Any) -> dict[str, Any]:
    values = settings_of(folder, checkpoint, **EXACT, **changes)
    del values["manifest"]
    values["dataset"] = values.pop("output")
    values["requests"] = folder / "requests.parquet"
    return values


def refine_driver(values: dict[str, Any]) -> "subprocess.Popen[str]":
    return driver("refine", values, address_of_ray())


def run_to_the_end(values: dict[str, Any]) -> dict[str, Any]:
    with refine_driver(values) as process:
        summary = last_line(process)
    assert process.returncode == 0, summary
    return summary


def contents_of(folder: Path) -> Contents:
    """What a reader sees of labels and of requests; masks of all revisions."""
    dataset = Dataset(str(folder / "labels"))
    queries = {"refinements": REFINED, "revisions": REVISIONS}
    found = {name: dataset.sql(query).to_pylist() for name, query in queries.items()}
    return contents(folder / "labels") | found


@pytest.fixture(scope="module")
def wanted(
    local_ray: None, labelled: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Contents:
    """Of a run that nobody disturbs."""
    folder = copy_of(labelled, tmp_path_factory.mktemp("undisturbed"))
    summary = run_to_the_end(settings(folder, checkpoint))
    assert (summary["ok"], summary["failed"]) == (len(VIDEOS), 0)
    found = contents_of(folder)
    assert [row["request_id"] for row in found["revisions"]] == [f"r-{v}" for v in VIDEOS]
    return found


def copy_of(labelled: Path, folder: Path) -> Path:
    shutil.copytree(labelled, folder, dirs_exist_ok=True)
    return folder


def kill_when(process: "subprocess.Popen[str]", is_time: Callable[[], bool]) -> None:
    while not is_time():
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


@contextmanager
def held_up(video: Path) -> Iterator[None]:
    """Whoever opens the video waits, so that a batch with it cannot come to its end."""
    kept = video.with_suffix(".kept")
    video.rename(kept)
    os.mkfifo(video)
    try:
        yield
    finally:
        kept.rename(video)


def put(folder: Path) -> int:
    """Files of masks, committed or not."""
    return len(list((folder / "labels/masks").rglob("*.parquet")))


@pytest.mark.parametrize("moment", ["put", "committed"])
def test_a_driver_that_is_killed_and_run_again_gives_each_request_one_revision(
    wanted: Contents, labelled: Path, checkpoint: Path, tmp_path: Path, moment: str
) -> None:
    """Killed when masks were put and none was committed, or when some requests were committed."""
    folder = copy_of(labelled, tmp_path)
    seldom, often = {"commit__seconds": 600.0}, {"commit__videos": 2, "commit__seconds": 0.2}
    values = settings(folder, checkpoint, **(seldom if moment == "put" else often))
    dataset, before = Dataset(str(folder / "labels")), put(folder)

    def is_time() -> bool:
        if moment == "put":
            return put(folder) > before
        return dataset.refresh().sql("SELECT count(*) FROM refinements")[0][0].as_py() > 0

    with held_up(labelled / f"{VIDEOS[-1]}.mp4"), refine_driver(values) as process:
        kill_when(process, is_time)
    committed = len(contents_of(folder)["revisions"])
    assert (committed == 0) if moment == "put" else (0 < committed < len(VIDEOS))
    summary = run_to_the_end(values)
    assert (summary["ok"], summary["failed"]) == (len(VIDEOS), 0)
    assert summary["skipped"] >= committed  # a commit that was under way is carried on
    assert contents_of(folder) == wanted


@pytest.mark.slow
def test_drivers_killed_at_many_moments_give_each_request_one_revision(
    wanted: Contents, labelled: Path, checkpoint: Path, tmp_path: Path
) -> None:
    choose, kills, turn = random.Random(5), 0, 0
    while turn < 4 or kills < 4:
        assert turn < 20, f"only {kills} drivers were alive to be killed"
        folder = copy_of(labelled, tmp_path / str(turn))
        values = settings(folder, checkpoint, commit__videos=2, commit__seconds=0.2)
        for _ in range(3):
            with refine_driver(values) as process:
                try:
                    process.wait(choose.uniform(2, 12))
                except subprocess.TimeoutExpired:
                    process.kill()
                    kills += 1
        run_to_the_end(values)
        assert contents_of(folder) == wanted
        turn += 1
    print(f"{kills} drivers killed in {turn} batches")
