"""README.md's questions have the right answers, and its commands run, as they stand there."""

import importlib
import json
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from labelled import blank, disk, label, mask_table, relabel, tracks_of
from labels import failed, ok, put
from videos import square_mask, write_moving_square

from workflows.query import Dataset
from workflows.results import DatasetWriter
from workflows.rows import FailureReason, Source
from workflows.storage import Storage

README = Path(__file__).parents[1] / "README.md"


def questions() -> dict[str, str]:
    """What each asks → its SQL."""
    (block,) = re.findall(r"```sql\n(.*?)```", README.read_text(), re.DOTALL)
    found = re.findall(r"^-- (.*?)\n(.*?;)\n", block, re.DOTALL | re.MULTILINE)
    assert len(found) == block.count("-- ") == block.count(";") > 4
    return dict(found)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """a: object 1 keeps its size, object 2 grows on frame 2, object 3 shrank and is refined since.

    Object 1 is doubtful on frame 1, object 3 as a whole.
    Videos f0 and f1 failed for good, video b at first only.
    """
    root = str(tmp_path_factory.mktemp("readme") / "labels")
    steady = {t: disk(20, 16, 5) for t in range(4)}
    jump = {t: disk(20, 16, 9 if t > 1 else 4) for t in range(4)}
    half = {t: disk(40, 16, 4 if t > 1 else 9) for t in range(4)}
    label(root, {"a": {1: steady, 2: jump, 3: half}})
    mended = {3: {t: disk(40, 16, 9) if t else blank() for t in range(4)}}
    relabel(root, "a", mended, object_score_min=-2.5, iou_pred_min=0.25)
    storage, writer = Storage(), DatasetWriter(Storage(), root)
    masks = mask_table("a", {1: steady})
    doubtful = pa.array([0.9, 0.25, 0.9, 0.9], pa.float32())
    masks = masks.set_column(masks.schema.get_field_index("iou_pred"), "iou_pred", doubtful)
    writer.commit_revision("a", 2, tracks_of("a", {1: steady}, source=Source.REFINE), masks)
    writer.commit([failed("f0"), failed("f1", FailureReason.TRUNCATED), failed("b", run="early")])
    writer.commit([put(storage, root, ok("b", run="late"))])
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for number, run_id in enumerate(("first", "second")):
        writer.record_run(
            {
                "run_id": run_id,
                "job": "label",
                "finished_at": began + timedelta(hours=number),
                "frames": 600,
                "object_frames": 1800,
                "video_s": 60.0 * number,
                "wall_s": 30.0,
                "cost": 2.0,
                "currency": "EUR",
            }
        )
    return Dataset(root)


def answer(dataset: Dataset, words: str) -> list[tuple[Any, ...]]:
    (query,) = (query for asked, query in questions().items() if words in asked)
    return [tuple(row.values()) for row in dataset.sql(query).to_pylist()]


def test_every_question_has_an_answer(dataset: Dataset) -> None:
    for asked, query in questions().items():
        assert dataset.sql(query).num_rows > 0, asked


def test_unsure_objects_come_worst_first(dataset: Dataset) -> None:
    first, *others = answer(dataset, "least sure")
    assert first == ("a", 3, -2.5, 0.25)
    assert {row[:2] for row in others} == {("a", 1), ("a", 2), ("b", 0), ("b", 1)}


def test_doubtful_frames_are_those_that_show_something(dataset: Dataset) -> None:
    assert answer(dataset, "doubt") == [("a", 1, 1, 0.25, 5.0)]


def test_jumps_of_area_are_those_of_the_current_masks(dataset: Dataset) -> None:
    small, large = int(disk(20, 16, 4).sum()), int(disk(20, 16, 9).sum())
    assert ("a", 2, 2, small, large) in answer(dataset, "double or halve")
    assert not [row for row in answer(dataset, "double or halve") if row[:2] == ("a", 3)]


def test_videos_that_failed_and_were_labelled_later_are_no_failures(dataset: Dataset) -> None:
    assert sorted(answer(dataset, "no labels yet")) == [
        ("timeout", 1, "f0"),
        ("truncated", 1, "f1"),
    ]


def test_cost_and_speed_are_those_of_each_run(dataset: Dataset) -> None:
    assert answer(dataset, "cost") == [("first", 2.0, "EUR", None), ("second", 2.0, "EUR", 120.0)]
    assert answer(dataset, "fast") == [("first", 20.0, 60.0, 0.0), ("second", 20.0, 60.0, 2.0)]


def commands() -> list[list[str]]:
    """The words of every `maskmill …` line of README's blocks, comments dropped."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    blocks = [text for language, text in fenced if not language]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("maskmill ")]
    assert len(found) > 8
    return found


def test_every_option_of_a_command_is_one_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    for name, *words in commands():
        if name == "submit":  # refine --requests …: the options are that command's own
            name, *words = words
        options = {word for word in words if word.startswith("--")}
        with pytest.raises(SystemExit):
            nested = [word for word in words[:1] if word in ("build", "check")]
            importlib.import_module(f"jobs.{name}").main([*nested, "--help"])
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert options <= known, f"{name}: {options - known}"


def test_commands_that_only_read_labels_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    video = write_moving_square(tmp_path / "v.mp4", 4)
    square = {t: square_mask(t) for t in range(4)}
    label("labels", {"video-1": {1: square}}, video_uri=str(video))
    relabel("labels", "video-1", {1: {**square, 2: ~square_mask(2)}})
    names = ("query", "overlay", "report", "export", "import", "evaluate", "compact")
    ran = [words for words in commands() if words[0] in names]
    assert {words[0] for words in ran} == set(names)
    for name, *words in ran:
        assert importlib.import_module(f"jobs.{name}").main(words) == 0, (name, words)
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        if name == "evaluate":
            assert summary["objects"] == 1 and 0.5 < summary["j_mean"] < 1
    assert (tmp_path / "report.html").stat().st_size > 1000
