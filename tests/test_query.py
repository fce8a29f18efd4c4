"""SQL and Python read the same current labels, any earlier state, and only the files they need."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from labels import failed, mask_rows, ok, put, track

from workflows.compaction import compact
from workflows.query import Dataset, QueryError
from workflows.results import DatasetWriter
from workflows.rows import MASKS_SCHEMA, Review, Source
from workflows.storage import NotFound, Storage, Unreadable

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["object_store"]

REFINED_SCORE = 7.0


def fill(storage: Storage, root: str) -> dict[str, datetime]:
    """Videos a, b and a failed c; a's object 1 refined, then its object 0 accepted; when each."""
    writer = DatasetWriter(storage, root)
    moments = {"empty": datetime.now(UTC)}
    writer.commit([put(storage, root, ok("a")), put(storage, root, ok("b")), failed("c")])
    moments["labelled"] = datetime.now(UTC)
    refined = [track("a", 1, Source.REFINE, author="ann")]
    writer.commit_revision("a", 1, refined, mask_rows("a", (1,), score=REFINED_SCORE))
    moments["refined"] = datetime.now(UTC)
    writer.review("a", 2, Review.ACCEPTED, "bob", [0])
    writer.record_run({"run_id": "r", "videos_ok": 2})
    return moments


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.cluster)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    if request.param == "disk":
        return Storage(), str(tmp_path / "data set")
    store: ObjectStore = request.getfixturevalue("object_store")
    return store.storage, "s3://maskmill-test/set"


def values(table: pa.Table) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


CURRENT = (
    "SELECT video_id, object_id, revision, count(*) FROM current_masks GROUP BY ALL ORDER BY ALL"
)


def test_sql_sees_the_current_labels_on_every_store(place: tuple[Storage, str]) -> None:
    fill(*place)
    dataset = Dataset(place[1], place[0])
    assert values(dataset.sql(CURRENT)) == [
        ("a", 0, 1, 3),
        ("a", 1, 2, 3),
        ("b", 0, 1, 3),
        ("b", 1, 1, 3),
    ]
    tracks = "SELECT object_id, revision, masks_revision, review, source FROM current_tracks"
    assert values(dataset.sql(tracks + " WHERE video_id = ? ORDER BY ALL", ["a"])) == [
        (0, 3, 1, "accepted", "bulk"),
        (1, 2, 2, "open", "refine"),
    ]
    counts = "SELECT (SELECT count(*) FROM masks), (SELECT count(*) FROM tracks), (FROM runs)"
    assert values(dataset.sql(counts.replace("(FROM runs)", "(SELECT run_id FROM runs)"))) == [
        (15, 6, "r")
    ]
    reasons = "SELECT status, reason, count(*) FROM videos GROUP BY ALL ORDER BY ALL"
    assert values(dataset.sql(reasons)) == [("failed", "timeout", 1), ("ok", None, 2)]


def test_python_gives_the_same_masks_as_sql(place: tuple[Storage, str]) -> None:
    fill(*place)
    dataset = Dataset(place[1], place[0])
    from_sql = dataset.sql("SELECT * FROM current_masks WHERE video_id = 'a' ORDER BY 2, 3")
    masks = dataset.masks("a")
    assert masks.schema.equals(MASKS_SCHEMA)
    assert masks.to_pylist() == from_sql.to_pylist()
    assert set(masks["object_score"].to_pylist()[3:]) == {REFINED_SCORE}


def test_masks_may_be_asked_by_object_and_by_frames(tmp_path: Path) -> None:
    fill(Storage(), str(tmp_path))
    dataset = Dataset(str(tmp_path))
    some = dataset.masks("a", object_ids=[1], frames=(1, 2))
    assert values(some.select(["object_id", "frame_index"])) == [(1, 1), (1, 2)]
    assert dataset.masks("a", object_ids=[]).num_rows == 0
    assert dataset.masks("a", object_ids=[9]).num_rows == 0
    assert dataset.masks("nobody").schema.equals(MASKS_SCHEMA)


def test_any_earlier_state_can_be_read_by_time_and_by_revision(place: tuple[Storage, str]) -> None:
    moments = fill(*place)
    dataset = Dataset(place[1], place[0])

    def revisions(at: datetime | int | None) -> list[tuple[object, ...]]:
        tracks = dataset.tracks(at=at)
        by_sql = dataset.sql("SELECT * FROM current_tracks ORDER BY video_id, object_id", at=at)
        assert tracks.to_pylist() == by_sql.to_pylist()
        return values(tracks.select(["video_id", "object_id", "revision"]))

    first = [("a", 0, 1), ("a", 1, 1), ("b", 0, 1), ("b", 1, 1)]
    then = [("a", 0, 1), ("a", 1, 2), ("b", 0, 1), ("b", 1, 1)]
    now = [("a", 0, 3), ("a", 1, 2), ("b", 0, 1), ("b", 1, 1)]
    assert revisions(moments["empty"]) == []
    assert revisions(moments["labelled"]) == revisions(1) == first
    assert revisions(moments["refined"]) == revisions(2) == then
    assert revisions(3) == revisions(None) == now
    for at, score in ((moments["labelled"], 1.0), (1, 1.0), (2, REFINED_SCORE)):
        masks = dataset.masks("a", [1], at=at)
        assert set(masks["object_score"].to_pylist()) == {score}
        query = "SELECT DISTINCT object_score FROM current_masks WHERE video_id='a' AND object_id=1"
        assert values(dataset.sql(query, at=at)) == [(score,)]
    assert values(dataset.sql("SELECT count(*) FROM masks", at=1)) == [(12,)]
    assert values(dataset.sql("SELECT count(*) FROM videos", at=moments["empty"])) == [(0,)]
    with pytest.raises(QueryError, match="time zone"):
        dataset.tracks(at=datetime(2026, 1, 1))


def test_a_dataset_stays_as_it_was_until_it_is_refreshed(tmp_path: Path) -> None:
    storage, root = Storage(), str(tmp_path)
    writer = DatasetWriter(storage, root)
    dataset = Dataset(root)
    assert (dataset.version, dataset.tracks().num_rows) == (0, 0)
    assert values(dataset.sql(CURRENT)) == []
    writer.commit([put(storage, root, ok("a"))])
    assert (dataset.version, dataset.tracks().num_rows) == (0, 0)
    assert (dataset.refresh().version, dataset.tracks().num_rows) == (1, 2)
    writer.commit([put(storage, root, ok("b"))])
    compact(storage, root)
    assert dataset.masks("b").num_rows == 0 and dataset.masks("a").num_rows == 6
    assert dataset.refresh().masks("b").num_rows == 6


def test_the_last_attempt_tells_how_a_video_went(tmp_path: Path) -> None:
    storage, root = Storage(), str(tmp_path)
    writer = DatasetWriter(storage, root)
    writer.commit([failed("a", run="r1"), failed("b")])
    writer.commit([put(storage, root, ok("a", run="r2"))])
    dataset = Dataset(root)
    assert values(dataset.videos().select(["video_id", "status"])) == [("a", "ok"), ("b", "failed")]
    assert values(dataset.sql("SELECT count(*) FROM videos")) == [(3,)]
    assert dataset.video("a")["video_uri"] == "s3://videos/a.mp4"
    with pytest.raises(NotFound, match="no video 'z'"):
        dataset.video("z")


def test_where_there_is_no_dataset_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=str(tmp_path)):
        Dataset(str(tmp_path))


@pytest.mark.cluster
def test_a_bucket_that_is_not_there_is_named_at_once_and_in_one_line(
    object_store: ObjectStore,
) -> None:
    storage = object_store.storage
    for look in (lambda uri: Dataset(uri, storage), lambda uri: DatasetWriter(storage, uri)):
        object_store.behave()
        with pytest.raises(Unreadable, match="^s3://no-bucket/set/.*NoSuchBucket[^\n]*$"):
            look("s3://no-bucket/set")
        assert len(object_store.requests) <= 4, "not tried again"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT * FROM nothing", "nothing does not exist"),
        ("SELEC 1", "syntax error"),
        ("SELECT no_such_column FROM masks", "no_such_column"),
        ("SELECT video_id::INTEGER FROM masks", "Could not convert"),
        ("SELECT * FROM masks WHERE video_id = ?", "not provided"),
    ],
)
def test_a_wrong_query_is_explained(tmp_path: Path, query: str, message: str) -> None:
    storage, root = Storage(), str(tmp_path)
    DatasetWriter(storage, root).commit([put(storage, root, ok("a"))])
    with pytest.raises(QueryError, match=message):
        Dataset(root).sql(query)


def test_an_answer_comes_in_batches_and_may_fail_late(tmp_path: Path) -> None:
    DatasetWriter(Storage(), str(tmp_path))
    dataset = Dataset(str(tmp_path))
    with dataset.answer("SELECT r FROM range(200000) t(r)") as answer:
        batches = list(answer)
    assert len(batches) > 1 and sum(batch.num_rows for batch in batches) == 200_000
    late = "SELECT CASE WHEN r > 150000 THEN error('too late') END FROM range(200000) t(r)"
    with pytest.raises(QueryError, match="too late"), dataset.answer(late) as answer:
        list(answer)


def only_files_of(root: str, video_id: str) -> None:
    """Delete the mask files of every other video, so that opening one would fail."""
    for path in Path(root, "masks").rglob("*.parquet"):
        if "_delta_log" not in path.parts and not path.name.startswith(video_id + "-"):
            path.unlink()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM masks WHERE video_id = 'v07'",
        "SELECT * FROM current_masks WHERE video_id = 'v07' AND frame_index > 0",
        "SELECT * FROM current_masks WHERE video_id IN ('v07', 'v07x')",
        "SELECT m.* FROM current_masks m JOIN current_tracks t USING (video_id, object_id)"
        " WHERE t.video_id = 'v07'",
    ],
)
def test_a_query_for_one_video_opens_only_its_files(tmp_path: Path, query: str) -> None:
    storage, root = Storage(), str(tmp_path)
    writer = DatasetWriter(storage, root)
    writer.commit([put(storage, root, ok(f"v{number:02d}")) for number in range(20)])
    only_files_of(root, "v07")
    dataset = Dataset(root)
    assert dataset.masks("v07").num_rows == 6
    assert dataset.sql(query).num_rows > 0
    with pytest.raises(Exception, match="v0"):
        dataset.sql("SELECT sum(area_px) FROM masks")


@pytest.mark.cluster
def test_one_videos_masks_cost_few_requests_to_an_object_store(object_store: ObjectStore) -> None:
    storage, root = object_store.storage, "s3://maskmill-test/set"
    writer = DatasetWriter(storage, root)
    writer.commit([put(storage, root, ok(f"v{number:02d}")) for number in range(20)])
    dataset = Dataset(root, storage)
    object_store.behave()
    assert dataset.masks("v07").num_rows == 6
    touched = {request.split()[1] for request in object_store.requests}
    assert len([path for path in touched if "/masks/" in path]) == 1
    assert len(object_store.requests) <= 6


def test_many_threads_may_read_one_dataset_while_it_is_refreshed(tmp_path: Path) -> None:
    storage, root = Storage(), str(tmp_path)
    writer = DatasetWriter(storage, root)
    writer.commit([put(storage, root, ok("a"))])
    dataset = Dataset(root)
    wrong: list[object] = []

    def read() -> None:
        for _ in range(5):
            rows = dataset.masks("a").num_rows, dataset.sql(CURRENT).num_rows % 2
            if rows != (6, 0):
                wrong.append(rows)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(5):
        writer.commit([put(storage, root, ok(f"b{number}"))])
        dataset.refresh()
    for thread in threads:
        thread.join()
    assert wrong == []
