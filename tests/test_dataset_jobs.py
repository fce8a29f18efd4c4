"""`maskmill query` and `maskmill compact` over a small dataset on disk."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from labels import ok, put

from jobs import compact, query
from workflows.query import Dataset
from workflows.results import DatasetWriter
from workflows.storage import Storage


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    root = str(tmp_path / "labels")
    storage = Storage()
    outcomes = [put(storage, root, ok("cats")), put(storage, root, ok("dogs"))]
    DatasetWriter(storage, root).commit(outcomes)
    return root


def test_without_sql_it_prints_the_masks_of_each_video(
    dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert query.main(["--dataset", dataset]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["video_id", "objects", "frames", "masks"]
    assert [line.split()[:4] for line in table[2:]] == [
        ["cats", "2", "3", "6"],
        ["dogs", "2", "3", "6"],
    ]
    assert json.loads(last)["rows"] == 2


def test_answers_go_to_a_file_in_the_format_asked_for(dataset: str, tmp_path: Path) -> None:
    sql = "SELECT video_id, object_id FROM current_tracks ORDER BY 1, 2"
    for kind in ("csv", "jsonl", "parquet"):
        assert (
            query.main(
                [sql, "--dataset", dataset, "--format", kind, "--output", str(tmp_path / kind)]
            )
            == 0
        )
    assert (tmp_path / "csv").read_text().splitlines()[1] == '"cats",0'
    assert json.loads((tmp_path / "jsonl").read_text().splitlines()[-1]) == {
        "video_id": "dogs",
        "object_id": 1,
    }
    assert pq.read_table(tmp_path / "parquet").num_rows == 4


def test_a_statement_that_writes_is_refused(
    dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert query.main(["DROP VIEW masks", "--dataset", dataset]) == 2
    assert "wanted one SELECT" in capsys.readouterr().err


def test_labels_can_be_read_as_they_were_before_there_were_any(
    dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert query.main(["--dataset", dataset, "--at", "2000-01-01T00:00:00"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 0
    assert query.main(["--dataset", dataset, "--at", "yesterday"]) == 2


def test_a_dataset_that_is_not_there_exits_2(tmp_path: Path) -> None:
    assert query.main(["--dataset", str(tmp_path / "nothing")]) == 2
    assert not (tmp_path / "nothing").exists()


def test_compact_merges_the_files_of_a_dataset_and_keeps_its_rows(
    dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Dataset(dataset).masks("cats")
    assert compact.main(["--dataset", dataset]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["files_after"] < report["files_before"]
    assert Dataset(dataset).masks("cats") == before
