"""The pool of actors: how it grows, shares devices, comes up, and what it tells while it works."""

import json
import logging
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from bulk import Row, config_of, settings_of, video_row, write_rows
from scripted_engine import Gathered, NoOp, Patient, Poisoned

from jobs import label as label_job
from workflows.config import ConfigError
from workflows.label import INIT_DEATHS, PoolBroken
from workflows.label_run import label
from workflows.progress import Progress
from workflows.query import Dataset

pytest_plugins = ["local_ray"]
pytestmark = pytest.mark.cluster


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    (folder := tmp_path / "pids").mkdir()
    return folder


def write_videos(folder: Path, settings: dict[str, Any], count: int) -> None:
    one = video_row(folder, "video", 2)
    write_rows(settings, [{**one, "video_id": f"v{index:02}"} for index in range(count)])


def test_a_pool_grows_to_what_there_is_to_do(
    local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path
) -> None:
    settings = settings_of(
        tmp_path, checkpoint, compute__actors=1, compute__max_actors=3, compute__videos_in_flight=1
    )
    write_videos(tmp_path, settings, 12)
    # No video is labelled before three actors are there.
    summary = label(config_of(settings), Gathered(pids, wanted=3))
    assert (summary.ok, summary.failed, summary.reruns) == (12, 0, 0)


def test_two_actors_share_a_gpu_and_two_gpus_hold_four(
    local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path
) -> None:
    settings = settings_of(
        tmp_path,
        checkpoint,
        compute__actors=4,
        compute__gpus_per_actor=0.5,
        compute__videos_in_flight=1,
    )
    write_videos(tmp_path, settings, 8)
    assert label(config_of(settings), Gathered(pids, wanted=4)).ok == 8


@pytest.mark.parametrize(
    ("actors", "in_flight"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)]
)
def test_no_video_waits_behind_a_longer_one(
    actors: int, in_flight: int, local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path
) -> None:
    settings = settings_of(
        tmp_path, checkpoint, compute__actors=actors, compute__videos_in_flight=in_flight
    )
    rows = [video_row(tmp_path, "long", 3), *(video_row(tmp_path, f"v{i}", 2) for i in range(6))]
    write_rows(settings, rows)
    # The long one, which is begun first, ends when all others have.
    summary = label(config_of(settings), Patient(pids, others=6))
    assert (summary.ok, summary.failed) == (7, 0)


def test_videos_of_one_actor_are_under_way_together(
    local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path
) -> None:
    settings = settings_of(tmp_path, checkpoint, compute__videos_in_flight=3)
    write_videos(tmp_path, settings, 6)
    assert label(config_of(settings), Patient(pids, together=3)).ok == 6


def test_actors_may_take_every_processor_there_is(
    local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path
) -> None:
    """What cuts the manifest up would otherwise wait for them, and they for it."""
    settings = settings_of(
        tmp_path,
        checkpoint,
        compute__actors=2,
        compute__cpus_per_actor=2,
        compute__videos_in_flight=1,
    )
    write_videos(tmp_path, settings, 6)
    assert label(config_of(settings), Gathered(pids, wanted=2)).ok == 6


def test_the_longest_videos_are_begun_first(
    local_ray: None, tmp_path: Path, checkpoint: Path
) -> None:
    settings = settings_of(tmp_path, checkpoint, compute__videos_in_flight=1)
    one, lengths = video_row(tmp_path, "video", 9), [3, 8, 1, 5, 2]
    rows = [{**one, "video_id": str(n), "first_frame": 0, "last_frame": n} for n in lengths]
    write_rows(settings, rows)
    label(config_of(settings), NoOp())
    ended = Dataset(str(settings["output"])).sql("SELECT video_id FROM videos ORDER BY finished_at")
    assert ended["video_id"].to_pylist() == ["8", "5", "3", "2", "1"]


def test_ray_data_has_every_switch_that_is_set() -> None:
    """It takes any name, so one that it does not know any more would be set in vain."""
    from ray.data import DataContext

    from workflows.label import _context

    assert vars(_context(1)).keys() == vars(DataContext.get_current().copy()).keys()


@pytest.mark.slow
def test_a_long_video_is_no_stall(
    local_ray: None, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data ends what gives no result for half an hour, here for two seconds."""
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.exceptions import ExecutionTimeoutError

    class Sleeper:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            time.sleep(30)
            return batch

    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 2)
    plain = ray.data.range(1).map_batches(
        Sleeper, compute=ActorPoolStrategy(size=1), num_cpus=0.5, batch_size=1
    )
    with pytest.raises(ExecutionTimeoutError, match="made no progress"):
        plain.take_all()
    settings = settings_of(tmp_path, checkpoint)
    write_videos(tmp_path, settings, 1)
    assert label(config_of(settings), NoOp(frame_s=5.0)).ok == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"compute__gpus_per_actor": 3},
            "the largest has 2 GPUs and 4 CPUs; compute.gpus_per_actor=0 labels on CPUs$",
        ),
        (
            {"compute__cpus_per_actor": 5},
            "wants 0 GPUs and 5 CPUs on one machine .*; compute.cpus_per_actor=4 would fit$",
        ),
    ],
)
def test_an_actor_that_no_machine_could_hold_is_refused_by_name(
    changes: dict[str, Any], complaint: str, local_ray: None, tmp_path: Path, checkpoint: Path
) -> None:
    settings = settings_of(tmp_path, checkpoint, **changes)
    write_videos(tmp_path, settings, 1)
    with pytest.raises(ConfigError, match=complaint):
        label(config_of(settings))
    assert not Path(settings["output"], "_runs").exists()
    assert Dataset(str(settings["output"])).videos().num_rows == 0


def test_machines_that_refuse_an_actor_are_replaced_and_the_run_goes_on(
    local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(tmp_path, checkpoint, compute__actors=1)
    write_videos(tmp_path, settings, 4)
    with caplog.at_level(logging.WARNING):
        summary = label(config_of(settings), Gathered(pids, wanted=1, refused=2))
    assert (summary.ok, summary.failed, summary.reruns) == (4, 0, 0)


@pytest.mark.slow
def test_one_actor_that_works_outlives_any_number_that_cannot_start(
    local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path
) -> None:
    settings = settings_of(tmp_path, checkpoint, compute__actors=2)
    write_videos(tmp_path, settings, 4)
    # The videos take as long as others try in vain.
    summary = label(config_of(settings), Gathered(pids, INIT_DEATHS + 4, one_only=True))
    assert (summary.ok, summary.failed, summary.reruns) == (4, 0, 0)


@pytest.mark.slow
def test_when_no_actor_comes_up_the_run_ends_with_the_reason(
    local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path
) -> None:
    settings = settings_of(tmp_path, checkpoint, compute__actors=1)
    write_videos(tmp_path, settings, 2)
    with pytest.raises(PoolBroken, match="40.0 of 80.0 GiB are held by others"):
        label(config_of(settings), Gathered(pids, wanted=1, refused=1000))
    assert len(list(pids.iterdir())) == INIT_DEATHS + 1
    assert Dataset(str(settings["output"])).videos().num_rows == 0  # none of them is to blame


def test_what_does_not_fit_is_retried_alone_in_smaller_steps_and_then_recorded(
    local_ray: None, tmp_path: Path, checkpoint: Path
) -> None:
    settings = settings_of(tmp_path, checkpoint, compute__videos_in_flight=3)
    names = ["good-1", "greedy-1", "oom-1", "good-2"]
    write_rows(settings, [video_row(tmp_path, name) for name in names])
    summary = label(config_of(settings), Poisoned())
    assert (summary.ok, summary.failed, dict(summary.failures)) == (3, 1, {"out_of_memory": 1})
    found = Dataset(str(settings["output"])).videos().to_pylist()
    assert [row["video_id"] for row in found if row["status"] == "failed"] == ["oom-1"]
    # Only on request again; here it fails once more, and the others are left alone.
    again = label(config_of({**settings, "retry_reasons": "[out_of_memory]"}), Poisoned())
    assert (again.skipped, again.labelled, again.failed) == (3, 0, 1)


def metrics_of_ray() -> str:
    """What a Prometheus server would read from the machines of the cluster."""
    import ray

    pages = []
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            pages.append(answer.read().decode())
    return "\n".join(pages)


def test_a_run_tells_how_far_it_is_and_its_metrics_can_be_read_while_it_works(
    local_ray: None, tmp_path: Path, checkpoint: Path, pids: Path
) -> None:
    settings = settings_of(tmp_path, checkpoint, compute__actors=1)
    write_videos(tmp_path, settings, 3)
    moments: list[Progress] = []

    def look(progress: Progress) -> None:
        moments.append(progress)
        if "ray_maskmill_videos_in_flight" in metrics_of_ray():
            (pids / "0").touch()  # the second that the engines wait for: they may go on

    summary = label(config_of(settings), Gathered(pids, wanted=2), look)
    assert summary.ok == 3
    assert (moments[0].videos, moments[0].videos_done) == (3, 0)
    assert (moments[-1].videos_done, moments[-1].frames, moments[-1].masks) == (3, 6, 6)


def test_the_summary_is_one_line_and_the_row_of_the_run_has_its_costs(
    local_ray: None, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = settings_of(
        tmp_path, checkpoint, price__per_actor_hour=3600.0, price__currency="EUR"
    )
    rows: list[Row] = [video_row(tmp_path, f"v{i}") for i in range(3)]
    write_rows(settings, rows)
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert label_job.main(words) == 0
    out, err = capsys.readouterr()
    line = json.loads(out.splitlines()[-1])
    (run,) = Dataset(str(settings["output"])).sql("SELECT * FROM runs").to_pylist()
    assert run["run_id"] == line["run_id"]
    assert (run["videos_requested"], run["videos_ok"], run["frames"]) == (3, 3, 18)
    assert run["device_s"] > 0
    assert run["cost"] == pytest.approx(run["device_s"])  # 3,600 an hour is 1 a second
    assert run["cost_per_1000_frames"] == pytest.approx(run["cost"] / 18 * 1000)
    assert run["cost_per_video_hour"] == pytest.approx(run["cost"] / run["video_s"] * 3600)
    assert 0 <= run["device_idle_share"] <= 1
    assert set(dict(run["seconds_by_stage"])) == {"open", "track", "write"}
    assert run["peak_memory_bytes"] > 2**20
    assert "3 of 3 videos" in err and "18 masks" in err
