"""What to look at first: objects by doubt, each with the frame to click on. Only reads a dataset.

Knows nothing of how doubt comes about. The frame is that of the most doubtful flag, the earlier of
equals: a failure goes on from where it began, and so does its correction.
"""

from typing import Any

from workflows.query import Dataset
from workflows.refine_types import QueueFilter, QueueItem
from workflows.rows import Review, Source

ITEMS = """
    SELECT video_id, object_id, revision, category, source, review, doubt, flags,
           first_frame, last_frame
    FROM current_tracks WHERE {conditions}
    ORDER BY coalesce(doubt, 0) DESC, video_id, object_id LIMIT $limit OFFSET $offset
"""


def review_queue(dataset: Dataset, wanted: QueueFilter) -> list[QueueItem]:
    """Objects that the filter lets through, the most doubtful first."""
    conditions = ["list_contains($reviews, review)", "coalesce(doubt, 0) >= $min_doubt"]
    values: dict[str, Any] = {
        "reviews": [str(review) for review in wanted.reviews],
        "min_doubt": wanted.min_doubt,
        "limit": wanted.limit,
        "offset": wanted.offset,
    }
    for name, column in (("video_ids", "video_id"), ("categories", "category")):
        chosen = getattr(wanted, name)
        if chosen is not None:
            conditions.append(f"list_contains(${name}, {column})")
            values[name] = list(chosen)
    if wanted.sources is not None:
        conditions.append("list_contains($sources, source)")
        values["sources"] = [str(source) for source in wanted.sources]
    if wanted.kinds is not None:
        conditions.append("list_has_any(list_transform(flags, lambda f: f.kind), $kinds)")
        values["kinds"] = list(wanted.kinds)
    query = ITEMS.format(conditions=" AND ".join(conditions))
    return [_item(row) for row in dataset.sql(query, values).to_pylist()]


def _item(row: dict[str, Any]) -> QueueItem:
    flags = tuple(row["flags"] or ())
    worst = min(flags, key=lambda flag: (-flag["doubt"], flag["frame_index"]), default=None)
    middle = (row["first_frame"] + row["last_frame"]) // 2
    return QueueItem(
        video_id=row["video_id"],
        object_id=row["object_id"],
        frame_index=worst["frame_index"] if worst else middle,
        kind=worst["kind"] if worst else None,
        doubt=row["doubt"],
        revision=row["revision"],
        category=row["category"],
        source=Source(row["source"]),
        review=Review(row["review"]),
        flags=flags,
    )
