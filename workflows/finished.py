"""What a resumed job need not do again. Knows nothing of manifests or jobs."""

from collections.abc import Collection, Iterable
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workflows.data_files import stream_files
from workflows.delta_log import TableLog
from workflows.key_index import KeyIndex, digests_of
from workflows.rows import VIDEOS_SCHEMA, FailureReason, Status

COLUMNS = pa.schema(
    [
        VIDEOS_SCHEMA.field(name)
        for name in ("video_id", "fingerprint", "status", "reason", "finished_at")
    ]
)
KEY = ("video_id", "fingerprint")


class FinishedVideos:
    """Labellings that ended: labelled, or failed for a reason that is not to be retried."""

    def __init__(self, labelled: KeyIndex, failed: KeyIndex) -> None:
        self._labelled, self._failed = labelled, failed

    def contains(
        self, video_ids: Iterable[str], fingerprints: Iterable[str]
    ) -> npt.NDArray[np.bool_]:
        """For each pair, whether it ended."""
        is_labelled, is_failed = self.endings(video_ids, fingerprints)
        return is_labelled | is_failed

    def endings(
        self, video_ids: Iterable[str], fingerprints: Iterable[str]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """For each pair, whether it was labelled, and whether it only ever failed."""
        digests = digests_of(zip(video_ids, fingerprints, strict=True))
        is_labelled = self._labelled.holds(digests)
        return is_labelled, self._failed.holds(digests) & ~is_labelled


def read_finished(videos: TableLog, retry_reasons: Collection[FailureReason]) -> FinishedVideos:
    """From the videos table as it is seen now; streams it, 16 bytes stay of each row.

    A labelling that only failed goes by its last attempt.
    """
    labelled, failed = KeyIndex(), KeyIndex()
    last_failure: dict[tuple[str, str], tuple[datetime, str]] = {}
    for batch in stream_files(videos.storage, videos.folder, videos.paths(), COLUMNS):
        is_ok = pc.equal(batch["status"], str(Status.OK))
        ok = batch.filter(is_ok)
        labelled.add(zip(*(ok[name].to_pylist() for name in KEY), strict=True))
        rest = batch.filter(pc.invert(is_ok))
        for video_id, print_, reason, finished_at in zip(
            *(rest[name].to_pylist() for name in (*KEY, "reason", "finished_at")), strict=True
        ):
            attempt = (finished_at, reason)
            known = last_failure.get((video_id, print_), attempt)
            last_failure[video_id, print_] = max(known, attempt)
    failed.add(key for key, (_, reason) in last_failure.items() if reason not in set(retry_reasons))
    return FinishedVideos(labelled, failed)
