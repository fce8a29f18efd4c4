"""From a manifest to a dataset on S3: videos, weights, masks and commits, with a store's moods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bulk import EXACT, Row, click, config_of, contents, settings_of, video_row, write_rows
from checkpoints import small_checkpoint

from workflows.label_run import label
from workflows.manifest import write_manifest
from workflows.storage import Storage

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["local_ray", "object_store", "ceph_store"]

ROOT = "s3://maskmill-test/job"


@pytest.fixture
def ceph_bucket(ceph_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    from object_store import empty_bucket

    with empty_bucket(ceph_server, monkeypatch) as store:
        yield store


@pytest.fixture(
    params=[
        pytest.param("object_store", marks=pytest.mark.cluster),
        pytest.param("ceph_bucket", marks=pytest.mark.slow),
    ]
)
def store(request: pytest.FixtureRequest) -> ObjectStore:
    found: ObjectStore = request.getfixturevalue(request.param)
    return found


def upload(path: Path, uri: str, storage: Storage) -> str:
    storage.put(uri, path.read_bytes())
    return uri


def without_places(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    for row in found["tracks"]:
        del row["model_id"]  # the place of the weights, whose hash is compared
    return found


def settings_on(store: ObjectStore, folder: Path, **changes: Any) -> dict[str, Any]:
    settings = settings_of(folder, folder / "checkpoint", **EXACT, **changes)
    return settings | {
        "manifest": f"{ROOT}/manifest.parquet",
        "output": f"{ROOT}/labels",
        "model.checkpoint": f"{ROOT}/checkpoint",
        "storage.endpoint_url": store.endpoint_url,
        "storage.region": "us-east-1",
        "storage.allow_http": True,
        "storage.max_video_bytes_in_memory": 20_000,  # some are held, some go to disk
        "storage.spool_folder": folder,
    }


def test_on_an_object_store_a_run_gives_what_it_gives_on_disk(
    local_ray: None, store: ObjectStore, tmp_path: Path
) -> None:
    checkpoint = small_checkpoint(tmp_path / "checkpoint")
    rows = [video_row(tmp_path, f"v{i}", 6 + 10 * i, prompts=[click(i)]) for i in range(4)]
    local = settings_of(tmp_path, checkpoint, **EXACT)
    write_rows(local, rows)
    label(config_of(local))
    wanted = without_places(contents(local["output"]))

    storage = store.storage
    for path in checkpoint.iterdir():
        upload(path, f"{ROOT}/checkpoint/{path.name}", storage)
    remote = [
        {**row, "video_uri": upload(Path(row["video_uri"]), f"{ROOT}/{row['video_id']}", storage)}
        for row in rows
    ]
    settings = settings_on(store, tmp_path)
    write_manifest(remote, settings["manifest"], storage)
    summary = label(config_of(settings))
    assert (summary.videos, summary.ok, summary.failed) == (4, 4, 0)
    assert without_places(contents(settings["output"], storage)) == wanted

    # A changed prompt labels that video again, and a video that is not there fails by name.
    remote[1]["prompts"] = [click(9, x=60.0)]
    remote.append({**remote[0], "video_id": "gone", "video_uri": f"{ROOT}/gone"})
    write_manifest(remote, settings["manifest"], storage)
    summary = label(config_of(settings))
    assert (summary.skipped, summary.labelled, summary.failures) == (3, 1, {"not_found": 1})
    tracks = contents(settings["output"], storage)["tracks"]
    assert [track["object_id"] for track in tracks if track["video_id"] == "v1"] == [1, 9]


@pytest.mark.slow
def test_a_store_that_throttles_and_loses_answers_costs_no_video_and_doubles_none(
    local_ray: None, object_store: ObjectStore, tmp_path: Path
) -> None:
    small_checkpoint(tmp_path / "checkpoint")
    rows = [video_row(tmp_path, f"v{i}", 6) for i in range(6)]
    settings = settings_on(object_store, tmp_path, commit__videos=2) | {
        "model.checkpoint": tmp_path / "checkpoint"
    }
    write_manifest(rows, settings["manifest"], object_store.storage)
    object_store.misbehave("labels/", throttled=3, lost=3)
    summary = label(config_of(settings))
    assert object_store.faults_left == 0
    assert (summary.ok, summary.failed) == (6, 0)
    found = contents(settings["output"], object_store.storage)
    assert [row["video_id"] for row in found["tracks"]] == [f"v{i}" for i in range(6)]
    assert len(found["masks"]) == 6 * 6
