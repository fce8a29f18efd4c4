"""Several machines: actors on all of them, and machines that go away in the middle of a run."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bulk import EXACT, Row, click, contents, driver, last_line, settings_of, video_row, write_rows
from patience import patiently

pytestmark = pytest.mark.slow

# Ray notices a machine that is gone after seconds instead of half a minute.
SOON_MISSED = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}
ON_TWO = {**EXACT, "compute__actors": 2, "commit__videos": 3, "commit__seconds": 0.5}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors; machines are the tests' own."""
    from ray.cluster_utils import Cluster

    found = patiently(
        lambda: Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": 100_000_000,
                "_system_config": SOON_MISSED,
            },
        )
    )
    try:
        yield found
    finally:
        found.shutdown()


def add_machine(cluster: Any) -> Any:
    return patiently(lambda: cluster.add_node(num_cpus=1, object_store_memory=100_000_000))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        video_row(folder, f"v{i:02}", 12 + 5 * (i % 4), prompts=[click(0), click(5, i % 3, 90.0)])
        for i in range(16)
    ]


def lose_machines(
    cluster: Any, settings: dict[str, Any], kills: int, choose: random.Random
) -> tuple[dict[str, Any], int]:
    """Run a job while machines are killed and replaced; its summary and how many went."""
    machines = [add_machine(cluster), add_machine(cluster)]
    masks = Path(settings["output"], "masks")
    lost = 0
    with driver("label", settings, cluster.address) as process:
        while lost < kills and process.poll() is None:
            # From the first masks on, so that something is under way when a machine goes.
            if list(masks.glob("*/*.parquet")):
                time.sleep(choose.uniform(0.1, 3.0))
                if process.poll() is None:
                    victim = machines.pop(choose.randrange(len(machines)))
                    cluster.remove_node(victim, allow_graceful=False)
                    machines.append(add_machine(cluster))
                    lost += 1
            else:
                time.sleep(0.05)
        summary = last_line(process)
    # A video may be hit three times, which is recorded; it is taken again on request.
    while summary["failed"]:
        with driver("label", settings, cluster.address, ["--retry", "reason=internal"]) as process:
            summary = last_line(process)
    for machine in machines:
        cluster.remove_node(machine, allow_graceful=False)
    return summary, lost


@pytest.fixture(scope="module")
def wanted(
    cluster: Any,
    checkpoint: Path,
    videos: list[Row],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[Row]]:
    settings = settings_of(tmp_path_factory.mktemp("undisturbed"), checkpoint, **ON_TWO)
    write_rows(settings, videos)
    summary, _ = lose_machines(cluster, settings, 0, random.Random(0))
    assert (summary["ok"], summary["reruns"]) == (len(videos), 0)
    return contents(settings["output"])


def test_a_machine_that_goes_away_changes_no_row(
    cluster: Any,
    wanted: dict[str, list[Row]],
    tmp_path: Path,
    checkpoint: Path,
    videos: list[Row],
) -> None:
    settings = settings_of(tmp_path, checkpoint, **ON_TWO)
    write_rows(settings, videos)
    summary, lost = lose_machines(cluster, settings, 1, random.Random(1))
    assert (summary["ok"], lost) == (len(videos), 1)
    assert contents(settings["output"]) == wanted


def test_machines_that_go_away_at_twenty_moments_change_no_row(
    cluster: Any,
    wanted: dict[str, list[Row]],
    tmp_path: Path,
    checkpoint: Path,
    videos: list[Row],
) -> None:
    lost = seed = 0
    while lost < 20:
        (folder := tmp_path / str(seed)).mkdir()
        settings = settings_of(folder, checkpoint, **ON_TWO)
        write_rows(settings, videos)
        summary, kills = lose_machines(cluster, settings, 4, random.Random(seed))
        assert summary["ok"] == len(videos)
        assert contents(settings["output"]) == wanted
        lost, seed = lost + kills, seed + 1
        assert seed < 30, f"only {lost} machines were there to be lost"
    print(f"machines: {lost} lost in {seed} runs")


def test_actors_of_one_pool_work_on_all_machines(
    cluster: Any, tmp_path: Path, checkpoint: Path, videos: list[Row]
) -> None:
    """Each machine holds one actor only, so two that are needed at once are on two."""
    machines = [add_machine(cluster), add_machine(cluster)]
    settings = settings_of(
        tmp_path, checkpoint, compute__actors=2, compute__cpus_per_actor=1, **EXACT
    )
    write_rows(settings, videos)
    from workflows.query import Dataset

    with driver("label", settings, cluster.address) as process:
        summary = last_line(process)
    for machine in machines:
        cluster.remove_node(machine, allow_graceful=False)
    assert (summary["ok"], summary["reruns"]) == (len(videos), 0)
    (run,) = Dataset(str(settings["output"])).sql("SELECT device_s, wall_s FROM runs").to_pylist()
    assert run["device_s"] > 0
