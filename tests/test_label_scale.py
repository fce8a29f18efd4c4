"""Many videos: what the driver spends on each, what it holds, how soon a finished run is over."""

import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bulk import click, config_of, settings_of, words_of
from checkpoints import small_checkpoint
from scripted_engine import NoOp
from videos import write_moving_square

from workflows.checkpoints import local_checkpoint
from workflows.config import LabelConfig
from workflows.dataset_log import Change, DatasetLog
from workflows.label_plan import Labelling
from workflows.label_run import label
from workflows.manifest import write_manifest
from workflows.progress import Progress
from workflows.rows import TRACKS_SCHEMA, VIDEOS_SCHEMA, Status
from workflows.storage import Storage

pytest_plugins = ["local_ray"]
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
OVERHEAD_S = 0.02  # of the driver's own time, for each video
GROWTH_BYTES = 64 * 2**20  # from about 2,000 videos to about 9,000


def held_bytes() -> int:
    """Memory of this process, without what its allocator only keeps for later."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_ten_thousand_videos_of_one_frame_cost_the_driver_little_time_and_no_memory(
    local_ray: None, tmp_path: Path
) -> None:
    video = write_moving_square(tmp_path / "one.mp4", num_frames=1)
    checkpoint = small_checkpoint(tmp_path / "checkpoint")
    settings = settings_of(tmp_path, checkpoint, compute__actors=2, compute__videos_in_flight=4)
    row = {"video_uri": str(video), "prompts": [click()], "first_frame": 0, "last_frame": 0}
    rows = ({"video_id": f"v{index:05}", **row} for index in range(10_000))
    write_manifest(rows, str(settings["manifest"]), Storage())
    seen: list[tuple[int, int]] = []

    def look(progress: Progress) -> None:
        seen.append((progress.videos_done, held_bytes()))

    began_s, cpu_s = time.monotonic(), time.process_time()
    summary = label(config_of(settings), NoOp(), look)
    wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    assert (summary.ok, summary.failed) == (10_000, 0)
    early = statistics.median(held for done, held in seen if 1_000 <= done <= 3_000)
    late = statistics.median(held for done, held in seen if done >= 8_000)
    print(
        f"driver: {cpu_s / 10:.2f} ms of processor a video, {wall_s / 10:.2f} ms a video in all; "
        f"{early / 2**20:.0f} MiB around 2,000 videos, {late / 2**20:.0f} MiB around 9,000"
    )
    assert cpu_s / 10_000 <= OVERHEAD_S
    assert late - early <= GROWTH_BYTES


def finished_rows(
    config: LabelConfig, ids: list[str], labelling: Labelling, prompts: Any
) -> pa.Table:
    """Rows of `videos` as a run would have left them."""
    print_ = labelling.fingerprint({"prompts": prompts, "first_frame": None, "last_frame": None})
    some: dict[str, Any] = {
        "video_uri": "s3://videos/v.mp4",
        "fingerprint": print_,
        "status": str(Status.OK),
        "run_id": "before",
        "finished_at": datetime.now(UTC),
        "num_frames_decoded": 100,
        "objects": 1,
    }
    columns = {
        field.name: pa.array([some.get(field.name)] * len(ids), field.type)
        for field in VIDEOS_SCHEMA
    }
    return pa.table({**columns, "video_id": ids}, schema=VIDEOS_SCHEMA)


def test_a_million_finished_videos_are_known_to_be_so_within_a_minute_and_2_gb(
    tmp_path: Path,
) -> None:
    checkpoint = small_checkpoint(tmp_path / "checkpoint")
    settings = settings_of(tmp_path, checkpoint)
    config = config_of(settings)
    prompts = [click()]
    ids = [f"v{index:07}" for index in range(1_000_000)]
    rows = ({"video_id": i, "video_uri": f"s3://videos/{i}.mp4", "prompts": prompts} for i in ids)
    write_manifest(rows, config.manifest, Storage())
    sha256 = local_checkpoint(str(checkpoint), Storage()).sha256
    labelling = Labelling(sha256, config.inference_config)
    log = DatasetLog(Storage(), config.output)
    log.create()
    left = iter(ids)
    while some := list(islice(left, 50_000)):
        videos = finished_rows(config, some, labelling, prompts)
        log.commit(lambda number, v=videos: Change((), TRACKS_SCHEMA.empty_table(), v))  # type: ignore[misc]
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.label", *words_of(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert (summary["videos"], summary["skipped"], summary["ok"]) == (1_000_000,) * 3
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime  # what it takes where nobody else is at work
    print(
        f"resume of 1,000,000: {cpu_s:.0f} s of processor, {summary['wall_s']:.0f} s in all, "
        f"{used.ru_maxrss / 2**20:.2f} GiB"
    )
    assert used.ru_maxrss * 1024 <= 2e9
    assert cpu_s <= 60
