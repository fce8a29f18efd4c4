"""An object can be taken out of the labels and brought back; earlier revisions keep it."""

from pathlib import Path

import pytest
from labels import mask_rows, ok, put, track

from workflows.query import Dataset
from workflows.results import DatasetWriter
from workflows.rows import MASKS_SCHEMA, Review, Source
from workflows.storage import Storage

NO_MASKS = MASKS_SCHEMA.empty_table()


@pytest.fixture
def writer(tmp_path: Path) -> DatasetWriter:
    """Revision 1: objects 0 and 1. Revision 2: object 1 removed by ann."""
    writer = DatasetWriter(Storage(), str(tmp_path / "set"))
    writer.commit([put(writer.storage, writer.root, ok("a"))])
    gone = track("a", 1, Source.REFINE, author="ann", removed=True, frames_present=0)
    assert writer.commit_revision("a", 1, [gone], NO_MASKS) == 2
    return writer


def objects(dataset: Dataset, at: int | None = None) -> list[int]:
    in_sql = "SELECT object_id FROM current_tracks ORDER BY 1"
    found: list[int] = dataset.sql(in_sql, at=at)[0].to_pylist()
    assert dataset.tracks(["a"], at)["object_id"].to_pylist() == found
    in_masks = "SELECT DISTINCT object_id FROM current_masks ORDER BY 1"
    assert dataset.sql(in_masks, at=at)[0].to_pylist() == found
    assert sorted(set(dataset.masks("a", at=at)["object_id"].to_pylist())) == found
    return found


def test_no_view_shows_a_removed_object_but_earlier_ones_do(writer: DatasetWriter) -> None:
    dataset = Dataset(writer.root)
    assert objects(dataset) == [0]
    assert objects(dataset, at=1) == [0, 1]
    assert dataset.tracks(["a"], with_removed=True)["removed"].to_pylist() == [False, True]
    assert writer.newest_revisions(["a"]) == {"a": 2}


def test_a_removed_object_comes_back_with_the_masks_it_had(writer: DatasetWriter) -> None:
    back = track("a", 1, Source.REFINE, author="bob", masks_revision=1)
    assert writer.commit_revision("a", 2, [back], NO_MASKS) == 3
    dataset = Dataset(writer.root)
    assert objects(dataset) == [0, 1]
    before = dataset.masks("a", [1], at=1)
    assert dataset.masks("a", [1]).equals(before) and before.num_rows == 3
    rows = dataset.tracks(["a"]).to_pylist()
    assert [(r["revision"], r["parent_revision"], r["masks_revision"]) for r in rows] == [
        (1, None, 1),
        (3, 2, 1),
    ]


def test_a_bulk_run_does_not_bring_back_what_a_person_removed(writer: DatasetWriter) -> None:
    writer.commit([put(writer.storage, writer.root, ok("a", "e" * 32), revision=3)])
    assert objects(Dataset(writer.root)) == [0]


def test_judging_all_objects_leaves_removed_ones_alone(writer: DatasetWriter) -> None:
    writer.review("a", 2, Review.ACCEPTED, "bob")
    assert objects(Dataset(writer.root)) == [0]
    with pytest.raises(ValueError, match=r"\[1\] to review; wanted some of \[0\]"):
        writer.review("a", 3, Review.ACCEPTED, "bob", [1])


def test_masks_that_a_track_does_not_bring_are_refused(writer: DatasetWriter) -> None:
    back = track("a", 1, Source.REFINE, masks_revision=1)
    with pytest.raises(ValueError, match=r"masks of objects \[1\], tracks of \[\]"):
        writer.commit_revision("a", 2, [back], mask_rows("a", (1,)))
    assert writer.newest_revisions(["a"]) == {"a": 2}
