"""How long each video will probably take, so that long ones can go first. Opens no video.

Order is all that rests on this: a wrong estimate costs time at the end of a run, never a mask.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workflows.retry import Retry
from workflows.storage import Storage, StorageError
from workflows.task_spool import TaskSpool
from workflows.uris import is_local

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

BYTES_OF_A_FRAME = 10_000  # 720p at 2 to 3 Mbit/s
ASKERS = 64  # requests at once; each waits for the store, not for a core
ASKING_S = 60.0  # for sizes; what is not known then counts as the median of what is
WINDOW = 4096  # requests handed out ahead of the oldest one's answer


def estimate_costs(tasks: TaskSpool, storage: Storage, asking_s: float = ASKING_S) -> FloatArray:
    """Frames times objects of each task, a frame itself counting as one object for its encoding."""
    columns = [_columns(tasks.batch(index)) for index in range(tasks.num_batches)]
    if not columns:
        return np.empty(0)
    frames = np.concatenate([frames for frames, _ in columns])
    objects = np.concatenate([objects for _, objects in columns])
    unknown = np.flatnonzero(np.isnan(frames))
    if len(unknown):
        uris = _uris(tasks, unknown)
        frames[unknown] = _sizes_bytes(uris, len(unknown), storage, asking_s) / BYTES_OF_A_FRAME
        known = frames[np.isfinite(frames)]
        frames[np.isnan(frames)] = np.median(known) if len(known) else 1.0
    cost: FloatArray = frames * (1 + objects)
    return cost


def _columns(batch: pa.RecordBatch) -> tuple[FloatArray, FloatArray]:
    """Frames where the span says how many, else NaN; and objects."""
    last = _floats(batch["last_frame"])
    first = np.nan_to_num(_floats(batch["first_frame"]))
    prompts = batch["prompts"]
    objects = pa.table(
        {
            "task": pc.list_parent_indices(prompts),
            "object_id": pc.struct_field(prompts.flatten(), "object_id"),
        }
    )
    counts = objects.group_by("task").aggregate([("object_id", "count_distinct")])
    number = np.zeros(batch.num_rows)
    number[counts["task"].to_numpy()] = counts["object_id_count_distinct"].to_numpy()
    return np.maximum(last - first + 1, 1), number


def _floats(array: pa.Array) -> FloatArray:
    values: FloatArray = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _uris(tasks: TaskSpool, numbers: npt.NDArray[np.int64]) -> Iterator[str | None]:
    for start in range(0, len(numbers), WINDOW):
        yield from tasks.take(numbers[start : start + WINDOW])["video_uri"].to_pylist()


def _sizes_bytes(
    uris: Iterable[str | None], count: int, storage: Storage, asking_s: float
) -> FloatArray:
    """Of each video; NaN where there was no time to ask, infinite where there was no answer.

    Infinite, so that what is wrong with many videos shows at the beginning of a run.
    """
    asker = Storage(storage.config, Retry(attempts=1, deadline_s=10.0))
    give_up_at = time.monotonic() + asking_s
    sizes = np.full(count, np.nan)
    pool = ThreadPoolExecutor(ASKERS, thread_name_prefix="sizes")
    waiting: list[tuple[int, Future[float]]] = []
    try:
        for index, uri in enumerate(uris):
            if time.monotonic() > give_up_at:
                log.info("asked for %d of %d video sizes; the others are guessed", index, count)
                break
            if uri is not None and is_local(uri):
                sizes[index] = _size_bytes(asker, uri)  # at once: faster than handing it over
                continue
            waiting.append((index, pool.submit(_size_bytes, asker, uri)))
            if len(waiting) == WINDOW:
                _collect(waiting, sizes, give_up_at)
        _collect(waiting, sizes, give_up_at)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return sizes


def _collect(
    waiting: list[tuple[int, "Future[float]"]], sizes: FloatArray, give_up_at: float
) -> None:
    for index, future in waiting:
        try:
            sizes[index] = future.result(max(give_up_at - time.monotonic(), 0))
        except TimeoutError:
            break
    waiting.clear()


def _size_bytes(storage: Storage, uri: str | None) -> float:
    if uri is None:
        return np.inf
    try:
        storage.check_allowed(uri)
        return float(storage.size(uri))
    except StorageError:
        return np.inf
