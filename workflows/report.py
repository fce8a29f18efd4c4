"""The numbers of a report, of a dataset or of one run: what was done, how fast, how well.

Knows nothing of pages or pictures: all is counted in SQL, so that memory does not follow the size
of the dataset, and comes as values for JSON. Times are UTC; rates are of whole runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from workflows.query import Dataset

RUNS_SHOWN, FAILURES_SHOWN, SLOWEST_SHOWN = 50, 20, 10
BINS = 25
# column of tracks → what it is called, and its span (None: as far as the values go)
SCORES: dict[str, tuple[str, float | None, float | None]] = {
    "doubt": ("Doubt", 0.0, 1.0),
    "iou_pred_mean": ("Predicted IoU, mean of a track", 0.0, 1.0),
    "iou_pred_min": ("Predicted IoU, lowest of a track", 0.0, 1.0),
    "stability_mean": ("Stability, mean of a track", 0.0, 1.0),
    "object_score_mean": ("Object score, mean of a track (logit)", None, None),
}

Json = dict[str, Any]


class ReportError(ValueError):
    """A report that cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Scope:
    """All of a dataset, or what one run did. Raises ReportError for a run that is not recorded."""

    dataset: Dataset
    run_id: str | None = None

    def __post_init__(self) -> None:
        if self.run_id is not None and not self.rows("SELECT run_id FROM ({runs})"):
            known = [row["run_id"] for row in self.dataset.sql(RUN_IDS).to_pylist()]
            raise ReportError(f"no run {self.run_id}; the newest are {', '.join(known) or 'none'}")

    def rows(self, query: str) -> list[Json]:
        """The rows of a query over {runs}, {attempts}, {videos} and {tracks}.

        attempts: all that were made; videos: the last of each video; tracks: the current ones, or
        those that the run made.
        """
        here = "true" if self.run_id is None else "run_id = $run"
        tables = {
            "runs": f"SELECT * FROM runs WHERE {here}",
            "attempts": f"SELECT * FROM videos WHERE {here}",
            "videos": f"SELECT * FROM videos WHERE {here} QUALIFY row_number() OVER "
            "(PARTITION BY video_id ORDER BY finished_at DESC) = 1",
            "tracks": "SELECT * FROM current_tracks"
            if self.run_id is None
            else "SELECT * FROM tracks WHERE run_id = $run AND revision = masks_revision",
        }
        text = query.format(**tables)
        if self.run_id is not None:
            text = text.replace("$run", "'" + self.run_id.replace("'", "''") + "'")
        rows: list[Json] = self.dataset.sql(text).to_pylist()
        return rows

    def row(self, query: str) -> Json:
        (row,) = self.rows(query)
        return row


RUN_IDS = "SELECT run_id FROM runs ORDER BY finished_at DESC LIMIT 5"


def gather(dataset: Dataset, run_id: str | None = None) -> Json:
    """Everything a report says but its pictures. Raises ReportError for an unknown run."""
    scope = Scope(dataset, run_id)
    numbers: Json = {
        "dataset": dataset.uri,
        "dataset_version": dataset.version,
        "run_id": run_id,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "progress": _progress(scope),
        "runs": [_run(row) for row in scope.rows(RUNS)],
        "totals": _totals(scope),
        "failures": scope.rows(FAILURES),
        "stages": scope.rows(STAGES),
        "over_time": _over_time(scope),
        "slowest": scope.rows(SLOWEST),
        "scores": {name: _distribution(scope, name) for name in SCORES},
        "reviews": _counts(scope, "review"),
        "sources": _counts(scope, "source"),
        "categories": _counts(scope, "coalesce(category, 'none')"),
        "flags": _named(scope.rows(FLAGS)),
    }
    return dict(finite(numbers))


def worst_tracks(dataset: Dataset, count: int, run_id: str | None = None) -> list[Json]:
    """The tracks to look at first: by doubt, then by lowest predicted IoU; rejected ones last."""
    rows = Scope(dataset, run_id).rows(WORST + f" LIMIT {count}")
    return [dict(finite(row)) for row in rows]


RUNS = f"SELECT * FROM ({{runs}}) ORDER BY finished_at DESC LIMIT {RUNS_SHOWN}"
FAILURES = f"""
    SELECT reason, count(*) AS videos, min(video_id) AS example_video,
           arg_min(detail, video_id) AS example_detail
    FROM ({{videos}}) WHERE status = 'failed'
    GROUP BY reason ORDER BY videos DESC LIMIT {FAILURES_SHOWN}
"""
STAGES = """
    SELECT stage.key AS stage, sum(stage.value) AS seconds
    FROM (SELECT unnest(map_entries(seconds_by_stage)) AS stage FROM ({attempts}))
    GROUP BY ALL ORDER BY seconds DESC
"""
SLOWEST = f"""
    SELECT video_id, num_frames_decoded AS frames, objects, duration_s,
           list_sum(map_values(seconds_by_stage)) AS seconds
    FROM ({{videos}}) WHERE status = 'ok' AND cardinality(seconds_by_stage) > 0
    ORDER BY seconds DESC LIMIT {SLOWEST_SHOWN}
"""
FLAGS = """
    SELECT flag.kind AS name, count(*) AS count
    FROM (SELECT unnest(flags) AS flag FROM ({tracks})) GROUP BY ALL ORDER BY count DESC
"""
WORST = """
    SELECT video_id, object_id, revision, masks_revision, category, doubt, iou_pred_mean,
           iou_pred_min, object_score_min, stability_min, frames_present, first_frame, last_frame,
           review, source,
           list_transform(list_reverse_sort(list_transform(coalesce(flags, []),
               lambda flag: struct_pack(doubt := flag.doubt, frame_index := flag.frame_index,
                                   kind := flag.kind))),
               lambda flag: struct_pack(frame_index := flag.frame_index, kind := flag.kind,
                                   doubt := flag.doubt)) AS flags
    FROM ({tracks})
    ORDER BY review = 'rejected', coalesce(doubt, -1) DESC, coalesce(iou_pred_min, 2), video_id,
             object_id
"""


def _progress(scope: Scope) -> Json:
    """Videos by how they ended, and what is labelled of them.

    frames: from a video's first labelled one to its last, whatever number of objects they show.
    """
    videos = scope.row(
        """
        SELECT count(*) FILTER (status = 'ok') AS videos_ok,
               count(*) FILTER (status = 'failed') AS videos_failed,
               coalesce(sum(duration_s) FILTER (status = 'ok'), 0)::DOUBLE / 3600 AS video_hours
        FROM ({videos})
        """
    )
    tracks = scope.row(
        """
        SELECT (
                   SELECT coalesce(sum(frames), 0)::BIGINT FROM (
                       SELECT max(last_frame) - min(first_frame) + 1 AS frames FROM ({tracks})
                       GROUP BY video_id
                   )
               ) AS frames,
               count(*) AS objects,
               coalesce(sum(last_frame - first_frame + 1), 0)::BIGINT AS object_frames,
               coalesce(sum(frames_present), 0)::BIGINT AS masks_not_empty,
               count(*) FILTER (review <> 'open') AS objects_reviewed,
               count(*) FILTER (source <> 'bulk') AS objects_corrected
        FROM ({tracks})
        """
    )
    requested = scope.rows(
        "SELECT videos_requested FROM ({runs}) WHERE job = 'label' "
        "ORDER BY finished_at DESC LIMIT 1"
    )
    return {
        **videos,
        **tracks,
        "videos_in_manifest": requested[0]["videos_requested"] if requested else None,
    }


def _run(row: Mapping[str, Any]) -> Json:
    """A row of runs with its rates; without its configuration, which is long."""
    wall_s, cost, video_s = row["wall_s"], row["cost"], row["video_s"]
    kept = {name: value for name, value in row.items() if name not in ("config", "failures")}
    return {
        **kept,
        "started_at": _iso(row["started_at"]),
        "finished_at": _iso(row["finished_at"]),
        "failures": dict(row["failures"] or ()),
        "frames_per_s": _ratio(row["frames"], wall_s),
        "masks_per_s": _ratio(row["object_frames"], wall_s),
        "times_real_time": _ratio(video_s, wall_s),
        "cost_per_video_hour": _ratio(cost, video_s and video_s / 3600),
        "cost_per_1000_frames": _ratio(cost, row["frames"] and row["frames"] / 1000),
    }


def _totals(scope: Scope) -> Json:
    """Over the labelling runs; cost where every one of them has the same currency and a price."""
    row = scope.row(
        """
        SELECT coalesce(sum(frames), 0)::BIGINT AS frames,
               coalesce(sum(object_frames), 0)::BIGINT AS masks,
               coalesce(sum(video_s), 0)::DOUBLE AS video_s,
               coalesce(sum(wall_s), 0)::DOUBLE AS wall_s,
               coalesce(sum(device_s), 0)::DOUBLE AS device_s,
               sum(cost)::DOUBLE AS cost, count(*) FILTER (cost IS NULL) AS unpriced,
               count(DISTINCT currency) AS currencies, min(currency) AS currency
        FROM ({runs}) WHERE job = 'label'
        """
    )
    priced = row["cost"] is not None and not row.pop("unpriced") and row.pop("currencies") == 1
    row = {
        name: row[name]
        for name in ("frames", "masks", "video_s", "wall_s", "device_s", "cost", "currency")
    }
    if not priced:
        row["cost"] = row["currency"] = None
    return {
        **row,
        "frames_per_s": _ratio(row["frames"], row["wall_s"]),
        "masks_per_s": _ratio(row["masks"], row["wall_s"]),
        "times_real_time": _ratio(row["video_s"], row["wall_s"]),
        "cost_per_video_hour": _ratio(row["cost"], row["video_s"] / 3600),
    }


def _over_time(scope: Scope) -> list[Json]:
    """Videos ended by then, at most a hundred times evenly spread."""
    rows = scope.rows(
        """
        WITH ended AS (
            SELECT finished_at, row_number() OVER (ORDER BY finished_at) AS videos,
                   count(*) OVER () AS total
            FROM ({videos})
        )
        SELECT max(finished_at) AS moment, max(videos) AS videos FROM ended
        GROUP BY (videos * 100) // total ORDER BY moment
        """
    )
    return [{"at": _iso(row["moment"]), "videos": row["videos"]} for row in rows]


def _distribution(scope: Scope, column: str) -> Json:
    """Counts of tracks in equal bins from low to high; values beyond are in those at the ends."""
    _, low, high = SCORES[column]
    span = scope.row(
        f"SELECT min({column}) AS low, max({column}) AS high, count({column}) AS tracks, "
        f"avg({column}) AS mean, approx_quantile({column}, [0.05, 0.5, 0.95]) AS quantiles "
        "FROM ({tracks})"
    )
    low = span["low"] if low is None else low
    high = span["high"] if high is None else high
    counts = [0] * BINS
    if span["tracks"]:
        width = (high - low) or 1.0
        place = f"greatest(least(floor(({column} - {low}) / {width} * {BINS}), {BINS - 1}), 0)"
        for row in scope.rows(
            f"SELECT {place}::INTEGER AS place, count(*) AS count FROM ({{tracks}}) "
            f"WHERE {column} IS NOT NULL GROUP BY ALL"
        ):
            counts[row["place"]] = row["count"]
    return {
        "tracks": span["tracks"],
        "mean": span["mean"],
        "quantiles_5_50_95": span["quantiles"],
        "low": low,
        "high": high,
        "counts": counts,
    }


def _counts(scope: Scope, column: str) -> dict[str, int]:
    return _named(
        scope.rows(
            f"SELECT {column} AS name, count(*) AS count FROM ({{tracks}}) GROUP BY ALL "
            "ORDER BY count DESC, name LIMIT 20"
        )
    )


def _named(rows: list[Json]) -> dict[str, int]:
    return {row["name"]: row["count"] for row in rows}


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def finite(value: Any) -> Any:
    """The same values for JSON: what is no number becomes null."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
