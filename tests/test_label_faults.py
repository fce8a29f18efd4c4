"""Workers, drivers, machines and videos fail in the middle of a run; no row is lost or doubled."""

import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bulk import (
    EXACT,
    ROOT,
    Row,
    address_of_ray,
    click,
    config_of,
    contents,
    driver,
    last_line,
    settings_of,
    video_row,
    words_of,
    write_rows,
)
from scripted_engine import Poisoned, Real

from workflows.label_engine import EngineFactory
from workflows.label_run import label
from workflows.query import Dataset

pytest_plugins = ["local_ray"]
pytestmark = pytest.mark.cluster

ALONE = {**EXACT, "compute__videos_in_flight": 1, "compute__actors": 2}
TOGETHER = {**ALONE, "compute__videos_in_flight": 3}
SOON = {"commit__videos": 3, "commit__seconds": 0.5}


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Rows of a manifest: of different lengths, some with an object that begins later."""
    folder = tmp_path_factory.mktemp("videos")
    return [
        video_row(folder, f"v{i:02}", 12 + 5 * (i % 4), prompts=[click(0), click(5, i % 3, 90.0)])
        for i in range(16)
    ]


Contents = dict[str, list[Row]]


def undisturbed(
    folder: Path, checkpoint: Path, rows: list[Row], factory: EngineFactory, **changes: Any
) -> Contents:
    """The contents that a run gives when nobody kills anything."""
    settings = settings_of(folder, checkpoint, output=folder / "undisturbed", **changes)
    write_rows(settings, rows)
    summary = label(config_of(settings), factory)
    assert (summary.ok, summary.failed, summary.reruns) == (len(rows), 0, 0)
    return contents(settings["output"])


@pytest.fixture(scope="session")
def wanted(
    local_ray: None,
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Path,
    videos: list[Row],
) -> Contents:
    """Of the videos, labelled by the model."""
    return undisturbed(tmp_path_factory.mktemp("wanted"), checkpoint, videos, Real(), **ALONE)


def alive(pids: Path) -> list[Path]:
    """Of processes that registered there."""
    return [path for path in pids.iterdir() if Path("/proc", path.name).exists()]


@contextmanager
def killing_workers(pids: Path, kills: int, seed: int) -> Iterator[list[float]]:
    """SIGKILL processes that registered there, at random moments; when each was killed."""
    choose, ended, killed = random.Random(seed), threading.Event(), []

    def run() -> None:
        while len(killed) < kills and not ended.wait(choose.uniform(0.2, 2.0)):
            if there := alive(pids):
                victim = choose.choice(there)
                victim.unlink()
                os.kill(int(victim.name), signal.SIGKILL)
                killed.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def label_all(settings: dict[str, Any], factory: EngineFactory) -> int:
    """Run until every video is ok; how often. A video may be hit three times, which is recorded."""
    for times in range(1, 6):
        again = {**settings, "retry_reasons": "[internal]"} if times > 1 else settings
        if label(config_of(again), factory).failed == 0:
            return times
    raise AssertionError("videos still fail after five runs")


def kill_workers(
    folder: Path, checkpoint: Path, rows: list[Row], kills: int, seed: int, alone: bool
) -> tuple[Contents, int]:
    """The contents after a run with kills, and how many there were."""
    folder.mkdir()
    (pids := folder / "pids").mkdir()
    changes = ALONE if alone else TOGETHER
    settings = settings_of(folder, checkpoint, **changes, **SOON)
    write_rows(settings, rows)
    with killing_workers(pids, kills, seed) as killed:
        label_all(settings, Real(pids))
    return contents(settings["output"]), len(killed)


def test_workers_killed_at_random_change_no_row(
    wanted: Contents, tmp_path: Path, checkpoint: Path, videos: list[Row]
) -> None:
    found, kills = kill_workers(tmp_path / "run", checkpoint, videos, 2, seed=1, alone=True)
    assert kills > 0
    assert found == wanted


def test_workers_killed_with_three_videos_in_flight_change_no_row(
    wanted: Contents, tmp_path: Path, checkpoint: Path, videos: list[Row]
) -> None:
    found, kills = kill_workers(tmp_path / "run", checkpoint, videos, 2, seed=1, alone=False)
    assert kills > 0
    assert found == wanted


@pytest.mark.slow
def test_workers_killed_at_twenty_moments_change_no_row(
    wanted: Contents, tmp_path: Path, checkpoint: Path, videos: list[Row]
) -> None:
    killed = seed = 0
    while killed < 24:
        alone = seed % 2 == 0
        found, kills = kill_workers(tmp_path / str(seed), checkpoint, videos, 3, seed, alone)
        assert found == wanted
        killed, seed = killed + kills, seed + 1
        assert seed < 40, f"only {killed} workers were alive to be killed"
    print(f"workers: {killed} killed in {seed} runs")


def log_of(settings: dict[str, Any]) -> Path:
    """What drivers of a job say on standard error."""
    return Path(f"{settings['output']}.log")


def labelling(settings: dict[str, Any]) -> "subprocess.Popen[str]":
    """A driver whose log is kept."""
    with log_of(settings).open("a") as log:
        return driver("label", settings, address_of_ray(), log=log)


def kill_drivers(
    folder: Path, checkpoint: Path, rows: list[Row], kills: int, seed: int, longest_s: float
) -> tuple[Contents, list[int]]:
    """The contents after drivers were killed at random moments, and one that was not; of each that
    was killed, how many videos had their masks put."""
    folder.mkdir(exist_ok=True)
    settings = settings_of(folder, checkpoint, **ALONE, **SOON)
    write_rows(settings, rows)
    choose, killed = random.Random(seed), []
    masks = Path(settings["output"], "masks")

    def num_put() -> int:
        return len(list(masks.glob("*/*.parquet")))

    for _ in range(kills):
        put_before = num_put()
        with labelling(settings) as process:
            # One in four perhaps before it has begun, the others when something is under way.
            waits = kills == 1 or choose.random() < 0.75
            while waits and num_put() == put_before and process.poll() is None:
                time.sleep(0.05)
            deadline = time.monotonic() + choose.uniform(0, longest_s)
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            if process.poll() is None:
                process.kill()
                killed.append(num_put())
    with labelling(settings) as process:
        summary = last_line(process)
    assert (summary["ok"], summary["failed"]) == (len(rows), 0)
    return contents(settings["output"]), killed


def test_a_driver_that_is_killed_is_resumed_to_the_same_rows(
    wanted: Contents, tmp_path: Path, checkpoint: Path, videos: list[Row]
) -> None:
    found, killed = kill_drivers(tmp_path, checkpoint, videos, 1, seed=3, longest_s=0.5)
    assert found == wanted
    assert len(killed) == 1


@pytest.mark.slow
def test_drivers_killed_at_twenty_moments_are_resumed_to_the_same_rows(
    wanted: Contents, tmp_path: Path, checkpoint: Path, videos: list[Row]
) -> None:
    killed: list[int] = []
    seed = 0
    while len(killed) < 20:
        found, some = kill_drivers(tmp_path / str(seed), checkpoint, videos, 5, seed, 4)
        assert found == wanted
        killed, seed = killed + some, seed + 1
        assert seed < 20, f"only {len(killed)} drivers were alive to be killed"
    print(f"drivers: {len(killed)} killed in {seed} runs, with so many of 16 videos put: {killed}")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_with_every_finished_video_kept(
    number: signal.Signals,
    local_ray: None,
    tmp_path: Path,
    checkpoint: Path,
    videos: list[Row],
) -> None:
    settings = settings_of(tmp_path, checkpoint, **ALONE, commit__seconds=600.0)
    write_rows(settings, videos)
    with labelling(settings) as process:
        while process.poll() is None and log_of(settings).read_text().count(": ok in ") < 2:
            time.sleep(0.05)
        process.send_signal(number)
        summary = last_line(process)
        assert process.returncode == 1
    assert summary["stopped"]
    dataset = Dataset(str(settings["output"]))
    kept = dataset.videos().num_rows
    assert kept == summary["labelled"] >= 1
    (run,) = dataset.sql("SELECT videos_ok, run_id FROM runs").to_pylist()
    assert run == {"videos_ok": kept, "run_id": summary["run_id"]}
    with labelling(settings) as process:
        rest = last_line(process)
    assert (rest["ok"], rest["skipped"]) == (len(videos), kept)


def test_two_drivers_on_one_dataset_give_every_row_once(
    wanted: Contents, tmp_path: Path, checkpoint: Path, videos: list[Row]
) -> None:
    settings = settings_of(tmp_path, checkpoint, **ALONE, **SOON)
    write_rows(settings, videos)
    with (
        labelling(settings) as one,
        labelling(settings) as other,
    ):
        summaries = [last_line(one), last_line(other)]
    assert [(s["ok"], s["failed"]) for s in summaries] == [(len(videos), 0)] * 2
    assert contents(settings["output"]) == wanted


def test_a_job_is_disconnected_from_ray_when_it_prints_its_last_line(
    local_ray: None, tmp_path: Path, checkpoint: Path, videos: list[Row]
) -> None:
    """Ray prints the troubles of a cluster on the standard output of all who are connected; and of
    a run in which all goes well it has nothing to say."""
    settings = settings_of(tmp_path, checkpoint)
    write_rows(settings, videos[:1])
    code = (
        "import sys, ray, jobs._cli, jobs.label\n"
        "say = jobs._cli.print_last_line\n"
        "def asked(summary):\n"
        "    print('connected' if ray.is_initialized() else 'alone', file=sys.stderr)\n"
        "    say(summary)\n"
        "jobs._cli.print_last_line = asked\n"
        "sys.exit(jobs.label.main(sys.argv[1:]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *words_of(settings)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": address_of_ray()},
        capture_output=True,
        text=True,
    )
    *lines, last = ran.stderr.splitlines()
    assert (ran.returncode, last) == (0, "alone")
    ours = re.compile(r"\d+ of 1 videos, |.* INFO (workflows|sam2model|jobs)\.")
    assert [line for line in lines if not ours.match(line)] == []
    assert json.loads(ran.stdout.splitlines()[-1])["ok"] == 1


def actors_alive() -> set[str]:
    """Classes of the actors of a run that hold a place on this Ray."""
    from ray._private.state import actors

    names = {a["ActorClassName"] for a in actors().values() if a["State"] != "DEAD"}
    return {name for name in names if "LabelActor" in name or name == "RunBoard"}


@pytest.fixture
def nothing_collected() -> Iterator[None]:
    """As in a driver that only waits: no garbage is collected but where somebody asks for it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_poisonous_video_costs_itself_only(
    local_ray: None, nothing_collected: None, tmp_path: Path, checkpoint: Path
) -> None:
    rows = [video_row(tmp_path, f"good-{i}") for i in range(5)]
    rows.insert(1, video_row(tmp_path, "segfault-1"))
    rows.insert(3, video_row(tmp_path, "defect-1"))
    settings = settings_of(tmp_path, checkpoint, compute__videos_in_flight=3)
    write_rows(settings, rows)
    summary = label(config_of(settings), Poisoned())
    assert (summary.videos, summary.ok, summary.failed) == (7, 5, 2)
    assert summary.reruns > 0
    found = Dataset(str(settings["output"])).videos().to_pylist()
    details = {row["video_id"]: row["detail"] for row in found if row["reason"] == "internal"}
    assert sorted(details) == ["defect-1", "segfault-1"]
    assert "worker process died" in details["segfault-1"]
    assert "a mistake of the program" in details["defect-1"]
    deadline = time.monotonic() + 60
    while actors_alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert actors_alive() == set()  # or the next run would wait for their processors for ever


@pytest.mark.slow
def test_one_segfault_one_hang_one_corrupt_and_one_endless_video_leave_the_other_36_whole(
    local_ray: None, tmp_path: Path, checkpoint: Path
) -> None:
    good = [video_row(tmp_path, f"good-{i:02}", 6 + i % 5) for i in range(36)]
    changes = {"limits__video_deadline_s": 30.0}
    wanted = undisturbed(tmp_path, checkpoint, good, Poisoned(), **ALONE, **changes)
    (tmp_path / "corrupt-1.mp4").write_bytes(b"no video at all")
    os.mkfifo(tmp_path / "hang-1.mp4")
    names = {"segfault-1": 5, "hang-1": 15, "corrupt-1": 20, "endless-1": 30}
    rows = list(good)
    for name, place in names.items():
        rows.insert(place, video_row(tmp_path, name))
    settings = settings_of(tmp_path, checkpoint, **ALONE, **changes)
    write_rows(settings, rows)
    (pids := tmp_path / "pids").mkdir()
    summary = label(config_of(settings), Poisoned(pids))
    assert (summary.videos, summary.ok, summary.failed) == (40, 36, 4)
    found = contents(settings["output"])
    assert {row["video_id"]: row["reason"] for row in found["videos"] if row["reason"]} == {
        "segfault-1": "internal",
        "hang-1": "timeout",
        "corrupt-1": "undecodable",
        "endless-1": "timeout",
    }
    for name, rows_wanted in wanted.items():
        assert [row for row in found[name] if row["video_id"].startswith("good")] == rows_wanted
    # Not even the thread that still waits for a video keeps a process, and with it a GPU.
    deadline = time.monotonic() + 60
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(pids) == []
