"""Many files in the order of arrival into few in the order of videos, without anyone noticing.

Knows nothing of revisions: every row is kept. A compaction is one commit that removes files and
adds their rows again; compactors number theirs (delta_log.py), so that two at once cannot both put
back what each removed. Replaced files stay in storage for those who still read an earlier version.
"""

import bisect
import itertools
import logging
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflows.data_files import bytes_a_row, read_files, stream_files, write_in_pieces
from workflows.dataset_log import DatasetLog
from workflows.delta_log import Conflict, TableLog
from workflows.rows import DataFile
from workflows.storage import Storage, StorageError

log = logging.getLogger(__name__)

TARGET_BYTES = 128 * 2**20  # of a file
PIECE_BYTES = 256 * 2**20  # of rows decoded at once; rewriting takes some 4 times that in memory
PASS_BYTES = 64 * 2**30  # rewritten in one commit: what is lost if the compactor dies
MAX_OVERLAP = 8  # files that may hold one video before they are sorted anew
SAMPLED_ROWS = 256  # of a pass over 64 GiB of masks, a million rows are looked at
FIRST, LAST = "", "\U0010ffff"  # before and after every video, for files without statistics


@dataclass(frozen=True, slots=True)
class CompactionReport:
    files_before: int
    files_after: int
    files_deleted: int  # from storage, of no use to any version that is kept


def compact(
    storage: Storage,
    root: str,
    *,
    target_bytes: int = TARGET_BYTES,
    keep_replaced_hours: float | None = 168.0,
) -> CompactionReport:
    """Merge and sort the files of every table of a dataset.

    keep_replaced_hours: files that the newest version does not name, replaced ones and those put
    but never committed, are deleted when they are older; None keeps them for ever.
    Raises ValueError for less than an hour: a running job's masks wait for their commit.
    """
    if keep_replaced_hours is not None and keep_replaced_hours < 1:
        raise ValueError(f"keep_replaced_hours is {keep_replaced_hours}; wanted 1 or more")
    tables = DatasetLog(storage, root)
    tables.catch_up()  # else a pending commit's files would look forgotten
    before = after = deleted = 0
    for table in (tables.masks, tables.tracks, tables.videos, tables.runs):
        files = table.refresh().files()
        before += files.num_rows
        for batch in _batches(_out_of_order(files, target_bytes), PASS_BYTES):
            _rewrite(table, batch, target_bytes)
        after += table.refresh().files().num_rows
        if keep_replaced_hours is not None:
            deleted += table.vacuum(keep_replaced_hours)
    return CompactionReport(before, after, deleted)


def compact_one_batch(
    table: TableLog, *, target_bytes: int = TARGET_BYTES, min_small_files: int = 2
) -> bool:
    """Merge the first small files, in the order of videos, that make one of target_bytes.

    Of the files seen at the last refresh, and only if min_small_files of them are small; returns
    whether it merged some.
    """
    small = _in_order(table.files().filter(pc.less(pc.field("size_bytes"), target_bytes // 2)))
    if small.num_rows < max(min_small_files, 2):
        return False
    return _rewrite(table, next(_batches(small, target_bytes)), target_bytes)


def _in_order(files: pa.Table) -> pa.Table:
    return files.sort_by([("min_video_id", "ascending"), ("max_video_id", "ascending")])


def _out_of_order(files: pa.Table, target_bytes: int) -> pa.Table:
    """The files worth rewriting: small ones, and those whose videos may lie in many others."""
    is_small = pc.less(files["size_bytes"], target_bytes // 2)
    is_buried = pc.greater(_overlap(files), MAX_OVERLAP)
    return _in_order(files.filter(pc.or_(is_small, is_buried)))


def _overlap(files: pa.Table) -> pa.Array:
    """For each file, how many files one of its videos may lie in, at worst."""
    low, high = files["min_video_id"].to_pylist(), files["max_video_id"].to_pylist()
    low, high = [a or FIRST for a in low], [LAST if b is None else b for b in high]
    starts, ends = sorted(low), sorted(high)
    depths = np.array([i + 1 - bisect.bisect_left(ends, start) for i, start in enumerate(starts)])
    first = (bisect.bisect_left(starts, a) for a in low)
    end = (bisect.bisect_right(starts, b) for b in high)
    return pa.array([depths[i:j].max() for i, j in zip(first, end, strict=True)], pa.int64())


def _batches(files: pa.Table, max_bytes: int) -> Iterator[pa.Table]:
    """Neighbours of max_bytes together, or of two files; a file left alone stays as it is."""
    start = total_bytes = 0
    for index, size_bytes in enumerate(files["size_bytes"].to_pylist()):
        if index - start >= 2 and total_bytes + size_bytes > max_bytes:
            yield files.slice(start, index - start)
            start, total_bytes = index, 0
        total_bytes += size_bytes
    if files.num_rows - start >= 2:
        yield files.slice(start)


def _rewrite(table: TableLog, files: pa.Table, target_bytes: int) -> bool:
    """Exchange files for sorted ones; False if another compactor was faster."""
    paths = files["path"].to_pylist()
    written: list[DataFile] = []
    for bounds in _bounds(table, files, target_bytes):
        path = f"compacted/{uuid.uuid4().hex}.parquet"
        pieces = _pieces(table, paths, bounds)
        written.append(write_in_pieces(table.storage, table.folder, path, table.schema, pieces))
    num_rows = sum(file.num_rows for file in written)
    if num_rows != sum(files["num_rows"].to_pylist()):
        raise StorageError(f"{table.folder}: {num_rows} rows of {files['num_rows']} were read")
    try:
        table.replace(paths, written)
    except Conflict as e:
        log.info("%s: another compactor was faster: %s", table.folder, e)
        return False
    log.info("%s: %d files are now %d", table.folder, len(paths), len(written))
    return True


def _pieces(table: TableLog, paths: list[str], bounds: Sequence[str | None]) -> Iterator[pa.Table]:
    for first, end in itertools.pairwise(bounds):
        yield read_files(table.storage, table.folder, paths, table.schema, _between(first, end))


def _bounds(table: TableLog, files: pa.Table, target_bytes: int) -> list[list[str | None]]:
    """For each new file of about target_bytes the videos where its pieces begin and it ends."""
    paths = files["path"].to_pylist()
    total_bytes = sum(files["size_bytes"].to_pylist())
    total_rows = sum(files["num_rows"].to_pylist())
    rows_per_file = min(1.0, target_bytes / total_bytes) * total_rows
    rows_at_once = PIECE_BYTES / bytes_a_row(table.storage, table.folder, paths)
    if total_rows <= min(rows_per_file, rows_at_once):
        return [[None, None]]
    rows_per_piece = rows_per_file / math.ceil(rows_per_file / rows_at_once)
    bounds: list[list[str | None]] = [[None]]
    in_file = in_piece = 0
    for video_id, count in sorted(_sampled_videos(table, paths)):
        if in_piece >= rows_per_piece and video_id != bounds[-1][-1]:
            bounds[-1].append(video_id)
            in_piece = 0
            if in_file >= rows_per_file:
                bounds.append([video_id])
                in_file = 0
        in_piece += count
        in_file += count
    bounds[-1].append(None)
    return bounds


def _sampled_videos(table: TableLog, paths: list[str]) -> Iterator[tuple[str, int]]:
    """Videos of every SAMPLED_ROWS-th row, and the rows each stands for."""
    schema = pa.schema([table.schema.field("video_id")])
    for batch in stream_files(table.storage, table.folder, paths, schema):
        for start in range(0, batch.num_rows, SAMPLED_ROWS):
            yield batch.column(0)[start].as_py(), min(SAMPLED_ROWS, batch.num_rows - start)


def _between(first: str | None, end: str | None) -> pc.Expression | None:
    where = None if first is None else pc.field("video_id") >= first
    below = None if end is None else pc.field("video_id") < end
    return below if where is None else where if below is None else where & below
