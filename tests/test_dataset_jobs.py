"""`maskmill query` and `maskmill compact` over a small dataset on disk."""

import csv
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


@pytest.mark.parametrize("options", [["--format", "{kind}"], []], ids=["named", "by its ending"])
def test_answers_go_to_a_file_in_the_format_asked_for(
    dataset: str, tmp_path: Path, options: list[str]
) -> None:
    sql = "SELECT video_id, object_id FROM current_tracks ORDER BY 1, 2"
    for kind in ("csv", "jsonl", "parquet"):
        words = [word.replace("{kind}", kind) for word in options]
        output = str(tmp_path / f"new/answer.{kind}")
        assert query.main([sql, "--dataset", dataset, "--output", output, *words]) == 0
    folder = tmp_path / "new"
    assert (folder / "answer.csv").read_text().splitlines()[1] == '"cats",0'
    assert json.loads((folder / "answer.jsonl").read_text().splitlines()[-1]) == {
        "video_id": "dogs",
        "object_id": 1,
    }
    assert pq.read_table(folder / "answer.parquet").num_rows == 4
    assert len(list(folder.iterdir())) == 3, "nothing half-written lies beside"


def test_values_that_a_format_has_no_form_for_are_written_all_the_same(
    dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = (
        "SELECT sum(area_px) AS area, 1 / 0 AS share, {'a': [1.5]} AS nested, NULL AS nothing, "
        "TIMESTAMP '2026-01-02 03:04:05' AS moment, 'ab'::BLOB AS bytes, 'ä' AS ä FROM masks"
    )
    assert query.main([sql, "--dataset", dataset, "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == {
        "area": 12,
        "share": None,
        "nested": {"a": [1.5]},
        "nothing": None,
        "moment": "2026-01-02T03:04:05",
        "bytes": "YWI=",
        "ä": "ä",
    }
    assert query.main(["SELECT * FROM tracks", "--dataset", dataset, "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()[:-1]))
    assert json.loads(rows[0]["prompts"])[0]["points"] == [{"x": 1.5, "y": 2.0, "positive": True}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_two_columns_of_one_name_are_refused_where_one_would_be_lost(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    output = tmp_path / f"answer.{kind}"
    words = ["--dataset", dataset, "--output", str(output)]
    assert query.main(["SELECT 1 AS x, 2 AS x", *words]) == 2
    assert "two columns are called x" in capsys.readouterr().err
    assert not output.exists()


def test_where_nothing_can_be_written_one_line_says_so(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    output = str(tmp_path / "file/answer.csv")
    assert query.main(["SELECT 1", "--dataset", dataset, "--output", output]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert output in line


def test_a_long_table_is_cut_and_says_how_much_is_left(
    dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = "SELECT r, repeat('x', 100) AS wide FROM range(100000) t(r)"
    assert query.main([sql, "--dataset", dataset]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 200 + 1 and max(map(len, table)) < 80
    assert table[-1].startswith("… 99,800 more rows")
    assert json.loads(last)["rows"] == 100_000


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
