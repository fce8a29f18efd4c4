"""A driver for tests to race and kill: labels the same videos as its rivals, in its own order.

python racing_writer.py ROOT STORAGE_CONFIG_JSON SEED; prints a line after each step.
"""

import json
import random
import sys

from labels import failed, mask_rows, ok, put, track

from workflows.compaction import compact_one_batch
from workflows.results import DatasetWriter
from workflows.revisions import StaleRevision
from workflows.rows import Source
from workflows.storage import Storage, StorageConfig

VIDEOS = [f"v{number:02d}" for number in range(24)]
FAILING = VIDEOS[::8]
REFINED = VIDEOS[1::8]
BATCH = 4


def main(root: str, config: str, seed: str) -> None:
    values = json.loads(config)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    storage = Storage(StorageConfig(**values))
    writer = DatasetWriter(storage, root, merge_small_files=False)
    order = random.Random(seed).sample(VIDEOS, len(VIDEOS))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        writer.commit([failed(v) if v in FAILING else put(storage, root, ok(v)) for v in batch])
        print("committed", flush=True)
        for table in (writer._log.masks, writer._log.tracks, writer._log.videos):
            compact_one_batch(table.refresh(), min_small_files=4)
        print("compacted", flush=True)
    for video_id in REFINED:
        try:
            refined = [track(video_id, 1, Source.REFINE)]
            writer.commit_revision(video_id, 1, refined, mask_rows(video_id, (1,)))
        except StaleRevision as e:
            print(e.newest_revision, flush=True)
        print("refined", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
