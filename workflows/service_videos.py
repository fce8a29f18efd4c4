"""The list of a dataset's videos, a page at a time. Knows nothing of HTTP or models."""

import base64
import binascii
import json
import threading
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from workflows.query import Dataset
from workflows.refine_types import RefinementError
from workflows.rows import Review, Status
from workflows.storage import Storage

Sort = Literal["doubt", "video_id"]

# A video's last attempt, and what its current tracks say of it. doubt is null where nothing was
# scored; such videos come after those that were.
PAGE = """
WITH attempts AS (
    SELECT video_id, arg_max(struct_pack(
        status := status, reason := reason, num_frames := num_frames_decoded, width := width,
        height := height, fps := fps), finished_at) AS last
    FROM videos WHERE contains(video_id, $search) GROUP BY video_id
), labelled AS (
    SELECT video_id, max(revision) AS revision, count(*) AS objects, max(doubt) AS doubt,
           count(*) FILTER (review = 'accepted') AS accepted,
           count(*) FILTER (review = 'rejected') AS rejected,
           sum(len(flags)) AS flags, list_distinct(list(category)) AS categories
    FROM current_tracks WHERE contains(video_id, $search) GROUP BY video_id
), listed AS (
    SELECT video_id, last.status AS status, last.reason AS reason, last.num_frames AS num_frames,
           last.width AS width, last.height AS height, last.fps AS fps, revision,
           coalesce(objects, 0) AS objects, coalesce(accepted, 0) AS accepted,
           coalesce(rejected, 0) AS rejected, coalesce(flags, 0)::BIGINT AS flags,
           doubt, coalesce(doubt, -1.0) AS rank, categories
    FROM attempts LEFT JOIN labelled USING (video_id)
)
SELECT * FROM listed WHERE {conditions} ORDER BY {order} LIMIT $limit
"""
OF_REVIEW = {
    Review.OPEN: "accepted + rejected < objects",
    Review.ACCEPTED: "accepted > 0",
    Review.REJECTED: "rejected > 0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoQuery:
    """Which videos, in which order, from where on.

    search: part of the id. review: with an object that is open, accepted or rejected. cursor: as
    the page before gave it.
    """

    search: str = ""
    status: Status | None = None
    review: Review | None = None
    category: str | None = None
    min_doubt: float | None = None
    sort: Sort = "doubt"
    limit: int = 100
    cursor: str | None = None


class VideoPages(Protocol):
    """What a library needs of a list of videos; `VideoList` is the real one."""

    def page(self, wanted: VideoQuery) -> dict[str, Any]: ...


class VideoList:
    """Pages of a dataset as it is now. Safe among threads."""

    def __init__(self, uri: str, storage: Storage) -> None:
        self._uri = uri
        self._storage = storage
        self._dataset: Dataset | None = None
        self._lock = threading.Lock()

    def page(self, wanted: VideoQuery) -> dict[str, Any]:
        """Videos, and the cursor of the next page, None on the last.

        Raises RefinementError for a cursor that none of ours is.
        """
        conditions, order = ["true"], "video_id"
        values: dict[str, Any] = {"search": wanted.search, "limit": wanted.limit + 1}
        if wanted.status is not None:
            conditions.append("status = $status")
            values["status"] = str(wanted.status)
        if wanted.review is not None:
            conditions.append(OF_REVIEW[wanted.review])
        if wanted.category is not None:
            conditions.append("list_contains(categories, $category)")
            values["category"] = wanted.category
        if wanted.min_doubt is not None:
            conditions.append("doubt >= $min_doubt")
            values["min_doubt"] = wanted.min_doubt
        if wanted.sort == "doubt":
            order = "rank DESC, video_id"
        if wanted.cursor is not None:
            values["after_rank"], values["after_id"] = _position(wanted.cursor)
            later = "video_id > $after_id"
            if wanted.sort == "doubt":
                later = f"(rank < $after_rank OR (rank = $after_rank AND {later}))"
            else:
                later += " AND $after_rank IS NOT NULL"
            conditions.append(later)
        query = PAGE.format(conditions=" AND ".join(conditions), order=order)
        rows = self._newest().sql(query, values).to_pylist()
        shown = rows[: wanted.limit]
        last = shown[-1] if len(rows) > wanted.limit else None
        cursor = None if last is None else _cursor(last["rank"], last["video_id"])
        hidden = ("rank", "categories")
        videos = [{k: v for k, v in row.items() if k not in hidden} for row in shown]
        return {"videos": videos, "next": cursor}

    def _newest(self) -> Dataset:
        with self._lock:
            if self._dataset is None:
                self._dataset = Dataset(self._uri, self._storage)
                return self._dataset
            return self._dataset.refresh()


def _cursor(rank: float, video_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([rank, video_id]).encode()).decode()


def _position(cursor: str) -> tuple[float, str]:
    try:
        rank, video_id = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
        if not isinstance(video_id, str):
            raise TypeError("no text")
        return float(rank), video_id
    except (binascii.Error, ValueError, TypeError) as error:
        raise RefinementError(f"cursor {cursor!r}: wanted one that a page gave") from error
