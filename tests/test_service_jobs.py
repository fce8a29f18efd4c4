"""Batches that the service submits, on a real job server: carried out once, and followed."""

import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import small_checkpoint
from refining import click, label_video, labels

from workflows.query import Dataset
from workflows.refine_requests import write_requests
from workflows.service_config import serve_config
from workflows.service_errors import ServiceError
from workflows.service_jobs import RefineJobs
from workflows.storage import Storage

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
pytest_plugins = ["job_cluster"]


def test_a_batch_is_carried_out_once_and_followed_to_its_summary(
    job_cluster: str, tmp_path: Path
) -> None:
    checkpoint = small_checkpoint(tmp_path / "checkpoint")
    for video_id in "vw":
        label_video(tmp_path, checkpoint, [click(1, 4, 20.0)], video_id, frames=12)
    before = labels(tmp_path)
    requests = str(tmp_path / "requests.parquet")
    wanted = [{"video_id": v, "prompts": [click(1, 8, 80.0)]} for v in ("v", "nowhere")]
    write_requests(wanted, requests, Storage())
    config: dict[str, Any] = {
        "dataset": str(tmp_path / "labels"),
        "model": {"checkpoint": str(checkpoint), "dtype": "float32"},
        "models": {"gpus": 0.0, "cpus": 0.5},
        "jobs_address": job_cluster,
    }
    jobs = RefineJobs(serve_config(config))
    first = jobs.submit(requests, "b1")
    assert jobs.submit(requests, "b1")["job_id"] == first["job_id"] == "refine-b1"
    deadline = time.monotonic() + 500
    while (state := jobs.status("refine-b1"))["status"] not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < deadline, state
        time.sleep(1)
    assert state["summary"]["ok"] == 1, state
    assert state["summary"]["failures"] == {"not_found": 1}
    assert labels(tmp_path) != before
    assert Dataset(config["dataset"]).tracks(["v"])["revision"].to_pylist() == [2]
    with pytest.raises(ServiceError) as caught:
        jobs.status("refine-b2")
    assert caught.value.status == 404
