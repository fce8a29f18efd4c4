"""An export spread over a Ray cluster: batches of videos as tasks. Knows nothing of formats.

Tasks are independent and may be repeated: a video is done when its marker is there. Few are under
way at once, so that a driver with 10^7 videos holds little more than their names.
"""

import itertools
from collections.abc import Iterator, Sequence

import ray

from workflows.export import ExportPlan, VideoResult, export_videos
from workflows.labelled_videos import VideoObjects

VIDEOS_A_TASK = 16  # opening the dataset costs as much as a short video or two
TASKS_A_WORKER = 2  # one at work, one waiting


def export_on_ray(
    plan: ExportPlan, videos: Sequence[VideoObjects], workers: int
) -> Iterator[VideoResult]:
    """Results as tasks finish, in any order; up to `workers` tasks of one core at once."""
    task = ray.remote(num_cpus=1, max_retries=3)(_export_batch)
    batches = (videos[n : n + VIDEOS_A_TASK] for n in range(0, len(videos), VIDEOS_A_TASK))
    under_way = [
        task.remote(plan, batch) for batch in itertools.islice(batches, workers * TASKS_A_WORKER)
    ]
    while under_way:
        done, under_way = ray.wait(under_way, num_returns=1)
        under_way += [task.remote(plan, batch) for batch in itertools.islice(batches, len(done))]
        for finished in done:
            yield from ray.get(finished)


def _export_batch(plan: ExportPlan, videos: Sequence[VideoObjects]) -> list[VideoResult]:
    return list(export_videos(plan, videos))
