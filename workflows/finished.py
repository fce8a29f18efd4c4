"""What a resumed job need not do again. Knows nothing of manifests or jobs."""

from collections.abc import Collection, Iterable
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workflows.data_files import stream_files
from workflows.delta_log import TableLog
from workflows.key_index import KeyIndex
from workflows.rows import VIDEOS_SCHEMA, FailureReason, Status

COLUMNS = pa.schema(
    [
        VIDEOS_SCHEMA.field(name)
        for name in ("video_id", "fingerprint", "status", "reason", "finished_at")
    ]
)


class FinishedVideos:
    """Labellings that ended: labelled, or failed for a reason that is not to be retried."""

    def __init__(self, keys: KeyIndex) -> None:
        self._keys = keys

    def contains(
        self, video_ids: Iterable[str], fingerprints: Iterable[str]
    ) -> npt.NDArray[np.bool_]:
        """For each pair, whether it ended."""
        return self._keys.contains(zip(video_ids, fingerprints, strict=True))


def read_finished(videos: TableLog, retry_reasons: Collection[FailureReason]) -> FinishedVideos:
    """From the videos table as it is seen now; streams it, 16 bytes stay of each row.

    A labelling that only failed goes by its last attempt.
    """
    keys = KeyIndex()
    last_failure: dict[tuple[str, str], tuple[datetime, str]] = {}
    for batch in stream_files(videos.storage, videos.folder, videos.paths(), COLUMNS):
        rows = list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        keys.add((video_id, print_) for video_id, print_, status, *_ in rows if status == Status.OK)
        for video_id, print_, status, reason, finished_at in rows:
            if status == Status.FAILED:
                attempt = (finished_at, reason)
                known = last_failure.get((video_id, print_), attempt)
                last_failure[video_id, print_] = max(known, attempt)
    keys.add(key for key, (_, reason) in last_failure.items() if reason not in set(retry_reasons))
    return FinishedVideos(keys)
