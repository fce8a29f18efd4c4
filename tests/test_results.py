"""A labelling is in the dataset whole or not at all, once, whoever dies or races."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labels import contents, failed, mask_rows, ok, put, track

from workflows.dataset_log import DatasetLog
from workflows.delta_log import Conflict, TableLog
from workflows.mask_objects import find_mask_object, mask_object_path, write_mask_object
from workflows.results import DatasetWriter, merge_masks
from workflows.revisions import StaleRevision
from workflows.rows import FailureReason, Review, Source, VideoOutcome
from workflows.storage import NotFound, Storage, StorageError

if TYPE_CHECKING:
    from object_store import ObjectStore

pytest_plugins = ["object_store"]

F, G = "f" * 32, "0" * 32  # two fingerprints


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data set")


@pytest.fixture
def writer(storage: Storage, root: str) -> DatasetWriter:
    return DatasetWriter(storage, root)


def keys(seen: dict[str, list[tuple[Any, ...]]], table: str, *columns: int) -> list[Any]:
    picked = {tuple(row[c] for c in columns) for row in seen[table]}
    return sorted(picked, key=str)


def test_a_commit_adds_masks_tracks_and_a_row_of_every_video(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    report = writer.commit([put(storage, root, ok("a")), failed("b")])
    assert (report.committed, report.already) == (("a", "b"), ())
    seen = contents(storage, root)
    assert len(seen["masks"]) == 6
    assert keys(seen, "tracks", 0, 1, 2, 3) == [("a", 0, 1, None), ("a", 1, 1, None)]
    assert seen["videos"] == [("a", F, "ok", None), ("b", F, "failed", "timeout")]


def test_a_labelling_is_committed_once_however_often_it_is_tried(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    outcomes = [put(storage, root, ok("a")), failed("b"), put(storage, root, ok("c"))]
    writer.commit(outcomes[:2])
    once = contents(storage, root)
    assert writer.commit(outcomes[:2]).already == ("a", "b")
    assert DatasetWriter(storage, root).commit(outcomes[:2]).committed == ()
    assert contents(storage, root) == once
    assert writer.commit([*outcomes, outcomes[2]]).committed == ("c",)
    assert len(contents(storage, root)["videos"]) == 3


def test_a_failure_may_be_followed_by_another_attempt(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([failed("a", run="r1")])
    writer.commit([failed("a", run="r2")])
    writer.commit([put(storage, root, ok("a", run="r3"))])
    writer.commit([failed("a", run="r4")])
    statuses = [row[2] for row in contents(storage, root)["videos"]]
    assert statuses == ["failed", "failed", "ok"], "nothing follows success"


def test_two_writers_who_take_turns_see_each_other(storage: Storage, root: str) -> None:
    first, second = DatasetWriter(storage, root), DatasetWriter(storage, root)
    for number in range(3):
        outcome = put(storage, root, ok(f"v{number}"))
        assert first.commit([outcome]).committed == (f"v{number}",)
        assert second.commit([outcome]).already == (f"v{number}",)
    assert len(contents(storage, root)["tracks"]) == 6


def test_a_video_without_objects_is_a_row_and_no_file(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([ok("a", objects=())])
    seen = contents(storage, root)
    assert (len(seen["videos"]), seen["tracks"], seen["masks"]) == (1, [], [])


def test_tracks_whose_masks_were_not_put_are_refused(writer: DatasetWriter) -> None:
    with pytest.raises(ValueError, match="tracks without masks"):
        writer.commit([ok("a")])


def test_nothing_is_read_where_there_is_no_dataset(storage: Storage, root: str) -> None:
    with pytest.raises(NotFound, match="no table of a dataset here"):
        contents(storage, root)


class Killed(BaseException):
    """The process ended here."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, before: bool) -> list[str]:
    """Die before or after the step-th change to storage; the changes asked for are listed."""
    steps: list[str] = []

    def mortal(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            steps.append(name)
            if before and len(steps) == step:
                raise Killed
            result = original(self, *args, **kwargs)
            if not before and len(steps) == step:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, call)

    mortal(Storage, "put")
    mortal(Storage, "put_if_absent")
    mortal(TableLog, "_commit")
    return steps


@pytest.mark.parametrize("before", [True, False])
def test_a_driver_killed_between_any_two_steps_leaves_whole_videos_and_is_resumed(
    storage: Storage, tmp_path: Path, before: bool
) -> None:
    def job(root: str) -> None:
        writer = DatasetWriter(storage, root)
        if not writer.finished().contains(["a", "b"], [F, F]).all():
            writer.adopt([("a", F)])
            writer.commit([put(storage, root, ok("a")), failed("b")])
        if writer.newest_revisions(["a"]) == {"a": 1}:
            refined = [track("a", 1, Source.REFINE)]
            writer.commit_revision("a", 1, refined, mask_rows("a", (1,)))

    job(str(tmp_path / "undisturbed"))
    expected = contents(storage, str(tmp_path / "undisturbed"))
    kinds: set[str] = set()
    for step in range(1, 100):
        root = str(tmp_path / f"killed at {step}")
        DatasetWriter(storage, root)  # so that a reader finds tables, however early the death
        with pytest.MonkeyPatch.context() as patch:
            steps = kill_at(patch, step, before)
            try:
                job(root)
            except Killed:
                kinds.add(steps[-1])
            else:
                break
        seen = contents(storage, root)
        done = keys(seen, "videos", 0, 2)
        labelled = [(video_id,) for video_id, status in done if status == "ok"]
        assert keys(seen, "masks", 0) == keys(seen, "tracks", 0) == labelled
        assert keys(seen, "masks", 0, 1, 3) == keys(seen, "tracks", 0, 1, 2), "a half revision"
        job(root)
        assert contents(storage, root) == expected, f"killed at step {step}"
    assert step == 12 and kinds == {"put", "put_if_absent", "_commit"}


def test_a_reader_sees_nothing_of_a_commit_that_is_not_complete(
    storage: Storage, root: str, writer: DatasetWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.commit([put(storage, root, ok("a"))])
    before = contents(storage, root)
    commit, seen = TableLog._commit, []

    def look_round(self: TableLog, *args: Any) -> None:
        commit(self, *args)
        seen.append((self.name, contents(storage, root)))

    monkeypatch.setattr(TableLog, "_commit", look_round)
    writer.commit([put(storage, root, ok("b"))])
    assert [name for name, _ in seen] == ["masks", "tracks", "videos"]
    assert seen[0][1] == seen[1][1] == before
    assert seen[2][1] == contents(storage, root) != before


def test_masks_put_by_a_job_that_died_are_adopted(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    put(storage, root, ok("a"))
    put(storage, root, ok("b"))
    writer.commit([put(storage, root, ok("c"))])
    report = writer.adopt([("a", F), ("a", G), ("b", F), ("c", F), ("d", F)])
    assert (report.committed, report.already) == (("a", "b"), ("c",))
    assert keys(contents(storage, root), "masks", 0) == [("a",), ("b",), ("c",)]


def test_the_first_masks_of_a_labelling_stay_and_speak_for_themselves(
    storage: Storage, root: str
) -> None:
    first = put(storage, root, ok("a"))
    assert first.mask_object is not None
    before = storage.read_bytes(f"{root}/masks/{first.mask_object.path}")
    later = ok("a", run="another", objects=(0,))
    returned = write_mask_object(storage, root, later, mask_rows("a", (0,), score=0.5))
    assert returned == first
    assert storage.read_bytes(f"{root}/masks/{first.mask_object.path}") == before
    assert find_mask_object(storage, root, "a", F) == first
    assert find_mask_object(storage, root, "a", G) is None


@pytest.mark.parametrize(
    "video_id",
    ["", ".", "..", "../../etc/passwd", "a/b\\c", "ü 日本", "%2F?#&=+", "x" * 5000, "_delta_log"],
)
def test_any_text_names_a_video(
    storage: Storage, root: str, writer: DatasetWriter, video_id: str
) -> None:
    writer.commit([put(storage, root, ok(video_id))])
    assert keys(contents(storage, root), "masks", 0) == [(video_id,)]
    assert writer.finished().contains([video_id], [F]).tolist() == [True]
    assert find_mask_object(storage, root, video_id, F) is not None
    assert len(mask_object_path(video_id, F).split("/")[1]) < 255


def test_similar_names_have_different_paths() -> None:
    names = ["a/b", "a-b", "A-B", "a b", "x" * 500, "x" * 501]
    assert len({mask_object_path(name, F).lower() for name in names}) == len(names)


def test_a_mask_file_is_sorted_compressed_and_split_in_row_groups(
    storage: Storage, root: str
) -> None:
    masks = mask_rows("a", tuple(range(20)), frames=1000)
    shuffled = masks.take(pa.array(range(masks.num_rows - 1, -1, -1)))
    outcome = write_mask_object(storage, root, ok("a", objects=tuple(range(20))), shuffled)
    assert outcome.mask_object is not None
    file = pq.ParquetFile(f"{root}/masks/{outcome.mask_object.path}")
    assert outcome.mask_object.num_rows == file.metadata.num_rows == 20_000
    assert outcome.mask_object.size_bytes == storage.size(
        f"{root}/masks/{outcome.mask_object.path}"
    )
    groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [16_384, 3_616]
    assert {groups[0].column(c).compression for c in range(5)} == {"ZSTD"}
    read = file.read().select(["object_id", "frame_index"])
    assert read.equals(masks.select(["object_id", "frame_index"]))
    assert set(file.read(["revision"])["revision"].to_pylist()) == {1}


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (mask_rows("b"), "masks of \\['b'\\]"),
        (mask_rows("a", (0,)), "masks of objects \\[0\\], tracks of \\[0, 1\\]"),
        (pa.concat_tables([mask_rows("a"), mask_rows("a", (1,), frames=1)]), "two masks"),
    ],
)
def test_masks_that_contradict_the_outcome_are_refused_and_not_put(
    storage: Storage, root: str, masks: pa.Table, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_mask_object(storage, root, ok("a"), masks)
    assert list(storage.list(root)) == []


def current(writer: DatasetWriter, video_id: str) -> dict[int, tuple[int | None, ...]]:
    """Of each object: revision, parent and whose masks."""
    writer.newest_revisions([video_id])
    tracks = writer._current([video_id])[video_id].by_object
    return {o: (t.revision, t.parent_revision, t.masks_revision) for o, t in tracks.items()}


def test_a_refinement_is_the_next_revision_of_the_objects_it_names(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([put(storage, root, ok("a"))])
    refined = [track("a", 1, Source.REFINE, author="ann")]
    assert writer.commit_revision("a", 1, refined, mask_rows("a", (1,))) == 2
    assert current(writer, "a") == {0: (1, None, 1), 1: (2, 1, 2)}
    assert keys(contents(storage, root), "masks", 1, 3) == [(0, 1), (1, 1), (1, 2)]


def test_a_refinement_from_a_stale_base_names_the_newer_revision_and_adds_nothing(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([put(storage, root, ok("a"))])
    refined = [track("a", 1, Source.REFINE)]
    writer.commit_revision("a", 1, refined, mask_rows("a", (1,)))
    before = contents(storage, root)
    with pytest.raises(StaleRevision, match="object 1 is at revision 2") as error:
        writer.commit_revision("a", 1, refined, mask_rows("a", (1,)))
    assert (error.value.base_revision, error.value.newest_revision) == (1, 2)
    with pytest.raises(StaleRevision):
        writer.review("a", 1, Review.ACCEPTED, "ann")
    with pytest.raises(ValueError, match="base revision 3; its newest is 2"):
        writer.commit_revision("a", 3, refined, mask_rows("a", (1,)))
    assert contents(storage, root) == before


def test_two_people_may_refine_different_objects_from_one_base(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([put(storage, root, ok("a"))])
    for object_id, revision in ((0, 2), (1, 3)):
        refined = [track("a", object_id, Source.REFINE)]
        assert writer.commit_revision("a", 1, refined, mask_rows("a", (object_id,))) == revision
    assert current(writer, "a") == {0: (2, 1, 2), 1: (3, 1, 3)}


def test_an_import_may_be_the_first_revision(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    attempt = replace(ok("a"), tracks=())
    imported = [track("a", 4, Source.IMPORT)]
    assert writer.commit_revision("a", 0, imported, mask_rows("a", (4,)), attempt) == 1
    assert contents(storage, root)["videos"] == [("a", F, "ok", None)]
    assert current(writer, "a") == {4: (1, None, 1)}


def test_a_review_is_a_revision_that_shows_the_same_masks(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([put(storage, root, ok("a"))])
    masks = contents(storage, root)["masks"]
    assert writer.review("a", 1, Review.ACCEPTED, "ann", [0]) == 2
    assert current(writer, "a") == {0: (2, 1, 1), 1: (1, None, 1)}
    assert contents(storage, root)["masks"] == masks
    for video_id, base, objects in (("a", 2, [1, 7]), ("a", 2, []), ("nobody", 0, None)):
        with pytest.raises(ValueError, match="to review; wanted some of"):
            writer.review(video_id, base, Review.ACCEPTED, "ann", objects)
    with pytest.raises(ValueError, match="without tracks"):
        writer.commit_revision("a", 2, [], mask_rows("a", ()))


def test_a_new_labelling_supersedes_the_old_but_not_what_a_person_did(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([put(storage, root, ok("a", objects=(0, 1, 2)))])
    writer.commit_revision("a", 1, [track("a", 1, Source.REFINE)], mask_rows("a", (1,)))
    writer.review("a", 2, Review.ACCEPTED, "ann", [2])
    writer.commit([put(storage, root, ok("a", G, objects=(0, 1, 2)), revision=2)])
    assert current(writer, "a") == {0: (4, 1, 4), 1: (2, 1, 2), 2: (3, 1, 1)}
    seen = contents(storage, root)
    assert (0, 4) in keys(seen, "masks", 1, 3) and (1, 4) not in keys(seen, "masks", 1, 3)
    assert ("a", G, "ok", None) in seen["videos"]


def test_what_a_person_did_is_superseded_when_asked(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([put(storage, root, ok("a"))])
    writer.commit_revision("a", 1, [track("a", 1, Source.REFINE)], mask_rows("a", (1,)))
    again = put(storage, root, ok("a", G), revision=3)
    writer.commit([again], supersede_reviewed=True)
    assert current(writer, "a") == {0: (3, 1, 3), 1: (3, 2, 3)}
    assert again.mask_object is not None
    assert again.mask_object.path in writer._log.masks.refresh().paths(), "no copy was needed"


def test_a_rejected_label_may_be_superseded(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([put(storage, root, ok("a"))])
    writer.review("a", 1, Review.REJECTED, "ann")
    writer.commit([put(storage, root, ok("a", G), revision=3)])
    assert current(writer, "a") == {0: (3, 2, 3), 1: (3, 2, 3)}


def test_changed_masks_replace_only_their_own_frames() -> None:
    before, changed = mask_rows("a", (0, 1), frames=4), mask_rows("a", (1,), 2, score=9.0)
    merged = merge_masks(before, changed)
    assert merged.select(["object_id", "frame_index"]).equals(
        before.select(["object_id", "frame_index"])
    )
    assert merged["object_score"].to_pylist() == [1.0] * 4 + [9.0, 9.0, 1.0, 1.0]


def test_a_failure_is_finished_unless_its_last_reason_is_to_be_retried(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    timeout, absent = FailureReason.TIMEOUT, FailureReason.NOT_FOUND
    writer.commit([failed("a", absent, run="r1"), failed("b", timeout, run="r1")])
    writer.commit([failed("a", timeout, run="r2"), put(storage, root, ok("c"))])
    writer.commit([failed("d", timeout), failed("d", timeout, fingerprint=G)])
    writer.commit([put(storage, root, ok("d", run="r3"))])
    names = ["a", "b", "c", "d", "e"]

    def finished(*reasons: FailureReason) -> str:
        done = writer.finished(reasons).contains(names, [F] * 5)
        return "".join(name for name, is_done in zip(names, done, strict=True) if is_done)

    assert finished() == "abcd"
    assert finished(timeout) == "cd"
    assert finished(absent) == "abcd", "the last attempt at a timed out"
    assert not writer.finished().contains(["a", "e"], [G, F]).any()


def test_a_run_is_recorded_once(storage: Storage, root: str, writer: DatasetWriter) -> None:
    for _ in range(2):
        writer.record_run({"run_id": "r1", "videos_ok": 3, "failures": [("timeout", 1)]})
    writer.record_run({"run_id": "r2"})
    runs = writer._log.runs.refresh()
    assert sum(runs.files()["num_rows"].to_pylist()) == 2
    with pytest.raises(ValueError, match="unknown columns \\['vidoes_ok'\\]"):
        writer.record_run({"run_id": "r3", "vidoes_ok": 3})


def test_old_commits_are_completed_by_whoever_comes_next(
    storage: Storage, root: str, writer: DatasetWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.commit([put(storage, root, ok("a"))])
    next_steps: list[Callable[[DatasetWriter], object]] = [
        lambda w: w.finished(),
        lambda w: w.newest_revisions(["a"]),
        lambda w: w.review("a", 1, Review.ACCEPTED, "ann"),
        lambda w: w.commit([failed("z")]),
    ]
    for number, take in enumerate(next_steps):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, 5, before=True)  # masks are committed, tracks are not
            with pytest.raises(Killed):
                writer.commit([put(storage, root, ok(f"b{number}"))])
        assert (f"b{number}",) not in keys(contents(storage, root), "videos", 0)
        writer = DatasetWriter(storage, root)
        take(writer)
        assert (f"b{number}",) in keys(contents(storage, root), "videos", 0)


def test_a_commit_must_follow_the_one_its_author_saw(
    storage: Storage, root: str, writer: DatasetWriter
) -> None:
    writer.commit([failed("a")])
    early, late = DatasetLog(storage, root).masks.refresh(), DatasetLog(storage, root).masks
    early.commit(2, [], {"id": "early"})
    with pytest.raises(Conflict, match="is at 2; wanted 1"):
        late.refresh().commit(2, [], {"id": "late"})  # seen too late: a repetition
    with pytest.raises(Conflict, match="Concurrent transaction"):
        early.commit(2, [], {"id": "again"})  # seen too early: a race
    assert late.refresh().note(2)["id"] == "early"


@pytest.mark.cluster
def test_commits_to_an_object_store_survive_lost_answers(object_store: ObjectStore) -> None:
    storage, root = object_store.storage, "s3://maskmill-test/set"
    writer = DatasetWriter(storage, root)
    for table in ("masks", "tracks", "videos"):
        outcomes: list[VideoOutcome] = [put(storage, root, ok(table)), failed(f"not {table}")]
        log = f"PUT /maskmill-test/set/{table}/_delta_log"
        object_store.misbehave(log, lost=4)
        writer.commit(outcomes)
        assert object_store.faults_left < 4
        object_store.misbehave(log, lost=4)
        refined = [track(table, 1, Source.REFINE)]
        assert writer.commit_revision(table, 1, refined, mask_rows(table, (1,))) == 2
        assert object_store.faults_left < 4
        object_store.behave()
    seen = contents(storage, root)
    assert len(seen["videos"]) == 6 and len(seen["tracks"]) == 9 and len(seen["masks"]) == 27


@pytest.mark.cluster
def test_a_store_that_overwrites_whatever_is_asked_is_refused(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(self: Storage, uri: str, data: bytes) -> bool:
        self.put(uri, data)
        return True

    monkeypatch.setattr(Storage, "put_if_absent", overwrite)
    with pytest.raises(StorageError, match="overwrites in spite of If-None-Match"):
        DatasetWriter(object_store.storage, "s3://maskmill-test/set")
    assert list(object_store.storage.list("s3://maskmill-test/set")) == []
