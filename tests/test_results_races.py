"""Several processes write one dataset, some are killed: the rows are those of one undisturbed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import racing_writer
from labels import contents, failed, mask_rows, ok, put
from test_results import Killed, kill_at

from workflows import compaction
from workflows.compaction import compact, compact_one_batch
from workflows.data_files import bytes_a_row, sorted_rows
from workflows.dataset_log import Change, DatasetLog
from workflows.delta_log import TABLE_CONFIGURATION
from workflows.mask_objects import write_mask_object
from workflows.results import DatasetWriter
from workflows.rows import TRACKS_SCHEMA, VIDEOS_SCHEMA, outcomes_to_table
from workflows.storage import Storage, StorageError

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["object_store"]

RETENTION = "delta.deletedFileRetentionDuration"


def start(storage: Storage, root: str, seed: int) -> subprocess.Popen[str]:
    config = json.dumps(dataclasses.asdict(storage.config))
    command = [sys.executable, racing_writer.__file__, root, config, str(seed)]
    paths = [Path(racing_writer.__file__).parent, Path(racing_writer.__file__).parents[1]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def expected(storage: Storage, root: str) -> dict[str, list[tuple[object, ...]]]:
    """What one writer makes that nobody disturbs."""
    writer = start(storage, root, 0)
    writer.communicate()
    assert writer.returncode == 0
    return contents(storage, root)


@pytest.mark.cluster
@pytest.mark.parametrize("place", ["disk", pytest.param("s3", marks=pytest.mark.slow)])
def test_three_racing_writers_of_whom_some_are_killed_end_with_the_rows_of_one(
    request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    if place == "disk":
        storage, folder = Storage(), str(tmp_path)
    else:
        store: ObjectStore = request.getfixturevalue("object_store")
        storage, folder = store.storage, "s3://maskmill-test"
    undisturbed = expected(storage, f"{folder}/undisturbed")
    assert len(undisturbed["videos"]) == len(racing_writer.VIDEOS)
    root = f"{folder}/raced"
    chance = random.Random(7)
    kills_left = {seed: 2 for seed in range(3)}
    running = {seed: start(storage, root, seed) for seed in range(3)}
    while running:
        for seed, process in list(running.items()):
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                assert process.wait() == 0
                process.stdout.close()
                del running[seed]
            elif kills_left[seed] and chance.random() < 0.3:
                kills_left[seed] -= 1
                process.kill()
                process.communicate()
                running[seed] = start(storage, root, seed)
    assert sum(kills_left.values()) == 0, "every kill took place"
    assert contents(storage, root) == undisturbed


@pytest.mark.cluster
def test_readers_see_whole_videos_while_a_writer_and_a_compactor_work(tmp_path: Path) -> None:
    storage, root = Storage(), str(tmp_path / "set")
    DatasetWriter(storage, root)
    writer = start(storage, root, 1)
    looks = 0
    while writer.poll() is None:
        seen = contents(storage, root)
        labelled = {row[0] for row in seen["videos"] if row[2] == "ok"}
        assert {row[0] for row in seen["tracks"]} == {row[0] for row in seen["masks"]} == labelled
        assert {(r[0], r[1], r[2]) for r in seen["tracks"]} == {
            (r[0], r[1], r[3]) for r in seen["masks"]
        }
        assert len(seen["masks"]) == len(set(seen["masks"])) == 3 * len(seen["tracks"])
        looks += bool(labelled)
    writer.communicate()
    assert writer.returncode == 0 and looks > 3


def test_compaction_keeps_every_row_and_sorts_them(tmp_path: Path) -> None:
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    for video_id in ("c", "a", "b"):
        writer.commit([put(storage, root, ok(video_id)), failed(f"not {video_id}")])
    before = contents(storage, root)
    report = compact(storage, root, keep_replaced_hours=None)
    assert (report.files_before, report.files_after, report.files_deleted) == (9, 3, 0)
    assert contents(storage, root) == before
    tables = writer._log
    (path,) = tables.masks.refresh().paths()
    rows = pq.read_table(f"{root}/masks/{path}", columns=["video_id", "object_id", "frame_index"])
    assert rows.to_pylist() == sorted(rows.to_pylist(), key=lambda row: tuple(row.values()))
    assert writer.commit([put(storage, root, ok("a"))]).already == ("a",)


def age(root: str, hours: float) -> None:
    """Make all files of a dataset older."""
    then_s = time.time() - hours * 3600
    for path in Path(root).rglob("*.parquet"):
        os.utime(path, (then_s, then_s))


def test_files_that_no_version_kept_needs_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLE_CONFIGURATION, RETENTION, "interval 0 days")
    monkeypatch.setitem(TABLE_CONFIGURATION, "delta.checkpointInterval", "1")
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    for video_id in ("a", "b"):
        writer.commit([put(storage, root, ok(video_id))])
    put(storage, root, ok("never committed"))
    before = contents(storage, root)
    assert compact(storage, root, keep_replaced_hours=3).files_deleted == 0
    age(root, hours=2)
    assert compact(storage, root, keep_replaced_hours=3).files_deleted == 0
    assert compact(storage, root, keep_replaced_hours=1).files_deleted == 7
    assert contents(storage, root) == before
    with pytest.raises(ValueError, match="wanted 1 or more"):
        compact(storage, root, keep_replaced_hours=0)


def test_compaction_leaves_large_files_alone_and_fills_others_up_to_the_target(
    tmp_path: Path,
) -> None:
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    for number in range(6):
        masks = mask_rows(f"v{number}", frames=4000)
        writer.commit([write_mask_object(storage, root, ok(f"v{number}"), masks)])
    sizes = writer._log.masks.refresh().files()["size_bytes"].to_pylist()
    compact(storage, root, target_bytes=3 * max(sizes))
    files = writer._log.masks.refresh().files().sort_by("min_video_id")
    assert files["num_rows"].to_pylist() == [24_000, 24_000]
    assert files["max_video_id"].to_pylist() == ["v2", "v5"]


def test_files_whose_videos_lie_in_many_others_are_sorted_into_separate_ones(
    tmp_path: Path,
) -> None:
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root, merge_small_files=False)
    masks = writer._log.masks
    wide: set[str] = set()
    for start in range(10):  # ten files, each with videos from all over
        outcomes = []
        for number in range(start, 100, 10):
            rows = mask_rows(f"v{number:02d}", frames=400)
            outcomes.append(write_mask_object(storage, root, ok(f"v{number:02d}"), rows))
        writer.commit(outcomes)
        files = masks.refresh().files()
        is_new = [path not in wide for path in files["path"].to_pylist()]
        assert compaction._rewrite(masks, files.filter(pa.array(is_new)), 10**9)
        wide = set(masks.refresh().paths())
    files = masks.refresh().files()
    assert files.num_rows == 10
    target_bytes = 2 * min(files["size_bytes"].to_pylist())
    compact(storage, root, target_bytes=target_bytes)
    files = masks.refresh().files().sort_by("min_video_id")
    low, high = files["min_video_id"].to_pylist(), files["max_video_id"].to_pylist()
    assert files.num_rows >= 4 and max(files["size_bytes"].to_pylist()) < 1.5 * target_bytes
    assert all(end < start for end, start in zip(high[:-1], low[1:], strict=True))
    assert sum(files["num_rows"].to_pylist()) == 80_000
    paths = set(masks.paths())
    compact(storage, root, target_bytes=target_bytes)
    assert len(paths & set(masks.refresh().paths())) >= len(paths) - 2, "sorted files stay"


def test_a_file_is_rewritten_piece_by_piece_and_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    for number in (3, 0, 2, 1):
        masks = mask_rows(f"v{number}", frames=4000)
        writer.commit([write_mask_object(storage, root, ok(f"v{number}"), masks)])
    table = writer._log.masks
    read, seen = compaction.read_files, list[int]()

    def watched(*args: Any) -> pa.Table:
        rows = read(*args)
        seen.append(rows.num_rows)
        return rows

    monkeypatch.setattr(compaction, "read_files", watched)
    monkeypatch.setattr(
        compaction, "PIECE_BYTES", 10_000 * bytes_a_row(storage, table.folder, table.paths())
    )
    compact(storage, root)
    files = table.refresh().files()
    assert files["num_rows"].to_pylist() == [32_000]
    assert 8_000 in seen and max(seen) <= 16_000
    (rows,) = (pq.read_table(f"{root}/masks/{path}") for path in table.paths())
    assert rows.equals(sorted_rows(rows))
    (told,) = pa.table(table.table.get_add_actions(flatten=True)).to_pylist()
    assert (told["min.video_id"], told["max.video_id"]) == ("v0", "v3")
    assert (told["min.frame_index"], told["max.frame_index"]) == (0, 3999)


def test_rows_that_a_compactor_cannot_read_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    writer.commit([put(storage, root, ok("a"))])
    writer.commit([put(storage, root, ok("b"))])
    before = contents(storage, root)
    read = compaction.read_files
    monkeypatch.setattr(compaction, "read_files", lambda *args: read(*args).slice(1))
    with pytest.raises(StorageError, match="11 rows"):
        compact(storage, root)
    assert contents(storage, root) == before


def test_the_log_forgets_replaced_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        TABLE_CONFIGURATION, "delta.deletedFileRetentionDuration", "interval 0 days"
    )
    monkeypatch.setitem(TABLE_CONFIGURATION, "delta.checkpointInterval", "4")
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    for number in range(10):
        writer.commit([put(storage, root, ok(f"v{number}"))])
        compact_one_batch(writer._log.masks.refresh())
    checkpoints = sorted(Path(root, "masks/_delta_log").glob("*.checkpoint.parquet"))
    actions = pq.read_table(checkpoints[-1]).to_pylist()
    assert sum(action["remove"] is not None for action in actions) <= 2
    assert sum(action["add"] is not None for action in actions) <= 2


def test_of_two_compactors_with_one_view_the_second_changes_nothing(tmp_path: Path) -> None:
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    writer.commit([put(storage, root, ok("a")), put(storage, root, ok("b"))])
    before = contents(storage, root)
    first, second = DatasetLog(storage, root).masks, DatasetLog(storage, root).masks
    first.refresh()
    second.refresh()
    writer.commit([put(storage, root, ok("c"))])
    assert compact_one_batch(first)
    assert not compact_one_batch(second)
    assert len(contents(storage, root)["masks"]) == len(before["masks"]) + 6


def test_a_long_job_merges_its_small_files_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.results.SMALL_MASK_FILES", 6)
    monkeypatch.setattr("workflows.results.SMALL_ROW_FILES", 4)
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    for number in range(12):
        writer.commit([put(storage, root, ok(f"v{number}"))])
    tables = writer._log
    assert tables.masks.refresh().files().num_rows <= 6
    assert tables.tracks.refresh().files().num_rows <= 4
    assert tables.videos.refresh().files().num_rows <= 4
    seen = contents(storage, root)
    assert (len(seen["videos"]), len(seen["masks"])) == (12, 72)


def test_a_pending_commit_is_completed_before_its_files_could_be_deleted(tmp_path: Path) -> None:
    storage, root = Storage(), str(tmp_path / "set")
    writer = DatasetWriter(storage, root)
    outcome = put(storage, root, ok("a"))
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 4, before=True)
        with pytest.raises(Killed):
            writer.commit([outcome])
    assert contents(storage, root)["videos"] == []
    age(root, hours=2)
    compact(storage, root, keep_replaced_hours=1)
    assert len(contents(storage, root)["masks"]) == 6


PEAK = """
import resource, sys
from workflows.results import DatasetWriter
from workflows.storage import Storage
finished = DatasetWriter(Storage(), sys.argv[1]).finished()
ids = [f"video-{number:08d}" for number in range(999_900, 1_000_100)]
print(finished.contains(ids, ["f" * 32] * 200).sum())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_what_a_million_videos_finished_is_known_within_a_gigabyte(tmp_path: Path) -> None:
    root = str(tmp_path / "set")
    tables = DatasetWriter(Storage(), root)._log
    row = outcomes_to_table([failed("video")]).select(VIDEOS_SCHEMA.names)
    for start in range(0, 1_000_000, 10_000):
        ids = pa.array([f"video-{number:08d}" for number in range(start, start + 10_000)])
        rows = row.take(pa.array([0] * 10_000)).set_column(0, "video_id", ids)
        change = Change(masks=(), tracks=TRACKS_SCHEMA.empty_table(), videos=rows)
        assert tables.commit(lambda _, change=change: change)
    command = [sys.executable, "-c", PEAK, root]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, peak_bytes = map(int, done.stdout.split())
    assert found == 100 and peak_bytes < 10**9
