"""What a resumed job need not do again. Knows nothing of manifests or jobs."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workflows.data_files import stream_files
from workflows.delta_log import TableLog
from workflows.key_index import KeyIndex, digest_array, digests_of
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
    """From the videos table as it is seen now; streams it, some 25 bytes stay of each row.

    A labelling that only failed goes by its last attempt.
    """
    labelled, failed = KeyIndex(), KeyIndex()
    retried = pa.array([str(reason) for reason in retry_reasons], pa.string())
    failures = [_Failures.of([], retried)]
    for batch in stream_files(videos.storage, videos.folder, videos.paths(), COLUMNS):
        is_ok = pc.equal(batch["status"], str(Status.OK))
        labelled.add(_keys(batch.filter(is_ok)))
        failures.append(_Failures.of([batch.filter(pc.invert(is_ok))], retried))
    failed.add_digests(_lasting(failures))
    return FinishedVideos(labelled, failed)


@dataclass(frozen=True, slots=True)
class _Failures:
    """Of some failed attempts: what was tried, when, and whether it is not to be tried again."""

    digests: npt.NDArray[np.bytes_]
    finished_at: npt.NDArray[np.int64]
    is_final: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, batches: Sequence[pa.RecordBatch], retried: pa.Array) -> "_Failures":
        rows = pa.Table.from_batches(batches, COLUMNS)
        is_retried = pc.is_in(rows["reason"], retried)
        return cls(
            digest_array(digests_of(_keys(rows))),
            rows["finished_at"].cast(pa.int64()).to_numpy(),
            pc.invert(is_retried).to_numpy().astype(bool),
        )


def _lasting(failures: Sequence[_Failures]) -> npt.NDArray[np.bytes_]:
    """Digests whose last attempt is final."""
    digests = np.concatenate([f.digests for f in failures])
    order = np.lexsort((np.concatenate([f.finished_at for f in failures]), digests))
    ordered = digests[order]
    is_last = np.ones(len(ordered), bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    is_final = np.concatenate([f.is_final for f in failures])[order]
    lasting: npt.NDArray[np.bytes_] = ordered[is_last & is_final]
    return lasting


def _keys(rows: pa.Table | pa.RecordBatch) -> Iterator[tuple[str, ...]]:
    return zip(*(rows[name].to_pylist() for name in KEY), strict=True)
