"""Manifests, configurations and the contents of datasets for tests of the bulk job."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from videos import write_moving_square

from workflows.config import LabelConfig, load_config
from workflows.manifest import write_manifest
from workflows.query import Dataset
from workflows.rows import PromptRow
from workflows.storage import Storage

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]

# Who shares a step changes the last bits of sums, and a video that was hit twice runs again in
# steps of one object. With such steps from the start rows are equal to the last bit, whatever
# happens to a run and however many videos an actor has.
EXACT = {"compute__slots_per_actor": 1, "compute__frame_batch": 1, "model__attention": "plain"}

NOT_COMPARED = {"run_id", "created_at", "finished_at", "seconds_by_stage"}
CURRENT_TRACKS = "SELECT * FROM current_tracks ORDER BY video_id, object_id"
ALL_MASKS = "SELECT * FROM masks ORDER BY video_id, object_id, frame_index, revision"
LAST_ATTEMPTS = """
    SELECT video_id, fingerprint, status, reason, num_frames_decoded, objects, width, height
    FROM videos QUALIFY row_number() OVER (
        PARTITION BY video_id ORDER BY status DESC, finished_at DESC
    ) = 1 ORDER BY video_id
"""


def click(object_id: int = 0, frame_index: int = 0, x: float = 20.0, y: float = 50.0) -> PromptRow:
    return {
        "object_id": object_id,
        "frame_index": frame_index,
        "points": [{"x": x, "y": y, "positive": True}],
        "box": None,
        "mask": None,
        "category": "square",
    }


def video_row(folder: Path, video_id: str, num_frames: int = 6, **changes: Any) -> Row:
    """A manifest row of a video made here, 96×128 px, unless it is there."""
    path = folder / f"{video_id}.mp4"
    if not path.exists():
        write_moving_square(path, num_frames)
    return {"video_id": video_id, "video_uri": str(path), "prompts": [click()], **changes}


def settings_of(folder: Path, checkpoint: Path, **changes: Any) -> dict[str, Any]:
    """Of a job over `folder`/manifest.parquet on processors; changes with __ for dots."""
    return {
        "manifest": folder / "manifest.parquet",
        "output": folder / "labels",
        "model.checkpoint": checkpoint,
        "model.dtype": "float32",
        "compute.gpus_per_actor": 0,
        "compute.cpus_per_actor": 0.5,
        "compute.videos_in_flight": 2,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }


def config_of(settings: dict[str, Any]) -> LabelConfig:
    return load_config(LabelConfig, overrides=[f"{k}={v}" for k, v in settings.items()])


def words_of(settings: dict[str, Any]) -> list[str]:
    """The same for a command line."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def driver(
    job: str,
    settings: dict[str, Any],
    address: str,
    words: Sequence[str] = (),
    log: IO[str] | None = None,
) -> "subprocess.Popen[str]":
    """`maskmill JOB` in a process of its own, on the Ray at an address, which outlives it.

    words: further options. log: takes its standard error, which nobody reads by default.
    """
    return subprocess.Popen(
        [sys.executable, "-m", f"jobs.{job}", *words_of(settings), *words],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if log is None else log,
        text=True,
    )


def last_line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The summary that a driver ends with; waits for it."""
    out, _ = process.communicate()
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def address_of_ray() -> str:
    """Of the Ray that this process is connected to."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def write_rows(settings: dict[str, Any], rows: Sequence[Row]) -> None:
    write_manifest(rows, str(settings["manifest"]), Storage())


def contents(root: str | Path, storage: Storage | None = None) -> dict[str, list[Row]]:
    """All that a reader sees and that does not tell when and by whom it was made.

    Every row of masks, so that one that is doubled or left over from an attempt shows.
    """
    dataset = Dataset(str(root), storage)
    tables = {"tracks": CURRENT_TRACKS, "masks": ALL_MASKS, "videos": LAST_ATTEMPTS}
    return {
        name: [
            {key: value for key, value in row.items() if key not in NOT_COMPARED}
            for row in dataset.sql(query).to_pylist()
        ]
        for name, query in tables.items()
    }
