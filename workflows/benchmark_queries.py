"""Seconds of usual questions to datasets of millions of mask rows, compacted, on this disk."""

import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch

from sam2model.rle import encode_masks
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_timing import Turns, peak_bytes
from workflows.compaction import compact
from workflows.mask_sources import Rle
from workflows.query import Dataset
from workflows.storage import Storage
from workflows.synthetic_dataset import SyntheticSize, make_dataset, video_name

REPEATS = 3
HEIGHT, WIDTH = 480, 848
DRAWN = 64  # different masks, repeated through the dataset

BEST = "SELECT video_id, object_id, max(object_score) FROM current_masks GROUP BY ALL"
DOUBTFUL = "SELECT video_id, object_id FROM current_tracks ORDER BY object_score_min LIMIT 20"


def measure_queries(config: BenchConfig) -> Iterator[Row]:
    """Best of a few, with a connection of its own each; the files are in the system's cache.

    peak_MB: of this process since it began, so a step adds what it has beyond the one before.
    """
    for rows in config.query_rows:
        yield from _measure(rows)


def _measure(rows: int) -> Iterator[Row]:
    turns = Turns(torch.device("cpu"))
    per_video = SyntheticSize(videos=1, refined_every=0).mask_rows
    size = SyntheticSize(videos=max(1, rows * 8 // (9 * per_video)))  # an object in 8 is refined
    with tempfile.TemporaryDirectory() as root:
        storage = Storage()
        peak_mb: dict[str, int] = {}

        def take(what: str, ask: Callable[[], object]) -> None:
            turns.time(what, ask)
            peak_mb[what] = round(peak_bytes() / 1e6)

        take("make", lambda: make_dataset(storage, root, _discs(), size))
        take("compact", lambda: compact(storage, root))
        dataset = Dataset(root)
        asked: dict[str, Callable[[], pa.Table]] = {
            "open": lambda: Dataset(root).tracks([video_name(0)]),
            "masks of one video": lambda: dataset.masks(video_name(size.videos // 2)),
            "mean area of all": lambda: dataset.sql("SELECT avg(area_px) FROM current_masks"),
            "best frame of every object": lambda: dataset.sql(BEST),
            "20 most doubtful tracks": lambda: dataset.sql(DOUBTFUL),
        }
        for _ in range(REPEATS):
            for ask in asked.items():
                take(*ask)
    for what in turns.wall_s:
        yield {
            "rows": size.mask_rows,
            "what": what,
            "s": round(turns.best_s(what), 4),
            "process_s": round(min(turns.cpu_s[what]), 4),
            "peak_MB": peak_mb[what],
        }


def _discs() -> list[Rle]:
    """A disc that moves, so that neighbours resemble each other as frames do."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    masks = np.stack(
        [(columns - 100 - 10 * i) ** 2 + (rows - 200 - i) ** 2 < 60**2 for i in range(DRAWN)]
    )
    return [Rle(counts, HEIGHT, WIDTH) for counts in encode_masks(masks)]
