"""Which revision each video's masks will have. Knows nothing of manifests or models.

A wrong one costs a copy of the masks at commit, no more; so that a labelling of everything anew
does not copy everything, they are looked up beforehand, all at once.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workflows.data_files import stream_files
from workflows.delta_log import TableLog
from workflows.rows import TRACKS_SCHEMA

COLUMNS = pa.schema([TRACKS_SCHEMA.field(name) for name in ("video_id", "revision")])
MERGE_AT_ROWS = 1_000_000


def next_revisions(tracks: TableLog, video_ids: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """One more than the newest of each of these videos, from the tracks table as it is seen now."""
    newest = COLUMNS.empty_table()
    unmerged: list[pa.Table] = []
    for batch in stream_files(tracks.storage, tracks.folder, tracks.paths(), COLUMNS):
        unmerged.append(_newest(pa.Table.from_batches([batch])))
        if sum(table.num_rows for table in unmerged) >= MERGE_AT_ROWS:
            newest, unmerged = _newest(pa.concat_tables([newest, *unmerged])), []
    newest = _newest(pa.concat_tables([newest, *unmerged]))
    places = pc.index_in(video_ids, value_set=newest["video_id"].combine_chunks())
    found = newest["revision"].combine_chunks().take(places)
    revisions: npt.NDArray[np.int32] = pc.fill_null(found, 0).to_numpy() + np.int32(1)
    return revisions


def _newest(rows: pa.Table) -> pa.Table:
    grouped = rows.group_by("video_id", use_threads=False).aggregate([("revision", "max")])
    return grouped.rename_columns(["video_id", "revision"]).cast(COLUMNS)
