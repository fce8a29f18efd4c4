"""Many small files into few sorted ones, without a reader or a writer noticing.

Knows nothing of revisions: every row is kept. A compaction is one commit that removes files and
adds their rows again; compactors number theirs (delta_log.py), so that two at once cannot both put
back what each removed. Replaced files stay on disk for readers of earlier versions, until `vacuum`.
"""

import logging
import uuid
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from workflows.data_files import read_files, write_data_file
from workflows.dataset_log import DatasetLog
from workflows.delta_log import Conflict, TableLog
from workflows.storage import Storage

log = logging.getLogger(__name__)

TARGET_BYTES = 128 * 2**20  # of a compacted file; its rows take about 3 times that in memory


@dataclass(frozen=True, slots=True)
class CompactionReport:
    files_before: int
    files_after: int
    files_deleted: int  # from storage, no longer needed by any version kept


def compact(
    storage: Storage,
    root: str,
    *,
    target_bytes: int = TARGET_BYTES,
    keep_replaced_hours: float | None = 168.0,
) -> CompactionReport:
    """Merge the small files of every table of a dataset.

    keep_replaced_hours: how long files that no current version needs stay readable, also those that
    were put but never committed; None keeps them for ever.
    """
    tables = DatasetLog(storage, root)
    tables.catch_up()  # else a pending commit's files would look forgotten
    before = after = deleted = 0
    for table in (tables.masks, tables.tracks, tables.videos, tables.runs):
        before += table.refresh().files().num_rows
        while compact_one_batch(table, target_bytes=target_bytes):
            log.info("%s: %d files", table.folder, table.refresh().files().num_rows)
        after += table.files().num_rows
        if keep_replaced_hours is not None:
            deleted += table.vacuum(keep_replaced_hours)
    return CompactionReport(before, after, deleted)


def compact_one_batch(
    table: TableLog, *, target_bytes: int = TARGET_BYTES, min_small_files: int = 2
) -> bool:
    """Merge the first files, in the order of videos, that make one of target_bytes together.

    Of the files seen at the last refresh, and only if min_small_files of them are small; returns
    whether it merged some.
    """
    batch = _next_batch(table.files(), target_bytes, min_small_files)
    if not batch:
        return False
    rows = read_files(table.storage, table.folder, batch, table.schema)
    merged = write_data_file(
        table.storage, table.folder, f"compacted/{uuid.uuid4().hex}.parquet", rows
    )
    try:
        table.replace(batch, [merged])
    except Conflict as e:
        log.info("%s: another compactor was faster: %s", table.folder, e)
        return False
    return True


def _next_batch(files: pa.Table, target_bytes: int, min_small_files: int) -> list[str]:
    small = files.filter(pc.less(files["size_bytes"], target_bytes // 2))
    if small.num_rows < max(min_small_files, 2):
        return []
    small = small.sort_by([("min_video_id", "ascending"), ("max_video_id", "ascending")])
    sizes = small["size_bytes"].to_pylist()
    total = count = 0
    while count < len(sizes) and (count < 2 or total + sizes[count] <= target_bytes):
        total += sizes[count]
        count += 1
    batch: list[str] = small["path"].slice(0, count).to_pylist()
    return batch
