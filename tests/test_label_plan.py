"""Rows of a manifest to tasks: what is skipped, what is at fault, and which goes first."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk import Row, click

from workflows import video_costs
from workflows.finished import FinishedVideos
from workflows.key_index import KeyIndex
from workflows.label_plan import TASK_SCHEMA, Labelling, LabelPlan
from workflows.manifest import write_manifest
from workflows.rows import MANIFEST_SCHEMA, FailureReason
from workflows.storage import Storage
from workflows.task_spool import TaskSpool

LABELLING = Labelling("w" * 64, {"dtype": "float32"})


def row(video_id: str, **changes: Any) -> Row:
    values = {"video_id": video_id, "video_uri": f"/videos/{video_id}.mp4", "prompts": [click()]}
    return {**values, **changes}


def finished(keys: Iterable[tuple[str, str]] = ()) -> FinishedVideos:
    index = KeyIndex()
    index.add(keys)
    return FinishedVideos(index, KeyIndex())


def plan_of(
    folder: Path, rows: list[Row], done: Iterable[tuple[str, str]] = (), checked: bool = True
) -> LabelPlan:
    uri = str(folder / "manifest.parquet")
    if checked:
        write_manifest(rows, uri, Storage())
    else:  # as a stranger wrote it
        pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), uri)
    return LabelPlan(uri, Storage(), LABELLING, finished(done))


def ids_in_order(plan: LabelPlan) -> list[str]:
    return [i for piece in plan.tasks(plan.order) for i in piece["video_id"].to_pylist()]


def fingerprint(**changes: Any) -> str:
    values = {"prompts": [click()], "first_frame": None, "last_frame": None}
    return LABELLING.fingerprint({**values, **changes})


def test_the_longest_go_first_and_a_priority_before_them(tmp_path: Path) -> None:
    rows = [
        row("short", last_frame=9),
        row("long", last_frame=999),
        row("many objects", last_frame=99, prompts=[click(i) for i in range(30)]),
        row("urgent", last_frame=0, priority=1),
        row("late", last_frame=9999, priority=-1),
    ]
    with plan_of(tmp_path, rows) as plan:
        assert ids_in_order(plan) == ["urgent", "many objects", "long", "short", "late"]


def test_without_a_span_a_file_is_as_long_as_it_is_large(tmp_path: Path) -> None:
    sizes = {"small": 10_000, "large": 900_000, "middle": 300_000}
    for name, size_bytes in sizes.items():
        (tmp_path / name).write_bytes(bytes(size_bytes))
    rows = [row(name, video_uri=str(tmp_path / name)) for name in sizes]
    rows.append(row("gone", video_uri=str(tmp_path / "gone")))
    with plan_of(tmp_path, rows) as plan:
        # What cannot even be asked for its size fails first, so that somebody can look into it.
        assert ids_in_order(plan) == ["gone", "large", "middle", "small"]
        assert plan.costs[plan.order[1]] == pytest.approx(90 * 2)
        assert plan.work[plan.order].tolist() == pytest.approx([0.0, 180.0, 60.0, 2.0])


def test_only_what_is_missing_or_changed_is_left(tmp_path: Path) -> None:
    moved = click(x=21.0)
    done = [("same", fingerprint()), ("other prompt", fingerprint()), ("other span", fingerprint())]
    rows = [
        row("same"),
        row("other prompt", prompts=[moved]),
        row("other span", last_frame=5),
        row("new"),
    ]
    with plan_of(tmp_path, rows, done) as plan:
        assert (plan.videos, plan.skipped, plan.num_tasks) == (4, 1, 3)
        assert sorted(ids_in_order(plan)) == ["new", "other prompt", "other span"]
        (ids, prints) = next(plan.keys())
        assert ids == ["same", "other prompt", "other span", "new"]
        assert prints[1] == fingerprint(prompts=[moved])


def test_the_weights_and_the_settings_are_part_of_what_was_done() -> None:
    values = {"prompts": [click()], "first_frame": None, "last_frame": None}
    others = [Labelling("v" * 64, {"dtype": "float32"}), Labelling("w" * 64, {"dtype": "float16"})]
    assert len({labelling.fingerprint(values) for labelling in [LABELLING, *others]}) == 3


def test_a_row_at_fault_is_a_task_that_says_why_and_is_not_labelled(tmp_path: Path) -> None:
    rows = [
        row("good", last_frame=1),
        row("no uri", video_uri=""),
        row("no prompts", prompts=[]),
        row("ends early", first_frame=5, last_frame=4),
        row("good", last_frame=1),
        row(
            "null inside",
            prompts=[{**click(), "points": [{"x": 1.0, "y": None, "positive": True}]}],
        ),
        row("", last_frame=1),
    ]
    with plan_of(tmp_path, rows, checked=False) as plan:
        faults = [task for piece in plan.at_fault() for task in piece.to_pylist()]
        # Prompts that the engine itself can judge, such as none, are left to it.
        assert ids_in_order(plan)[:1] == ["good"] or "good" in ids_in_order(plan)
        assert plan.videos == plan.num_tasks == 7
        assert len(plan.order) + len(faults) == 7
        assert np.isfinite(plan.work).all()
    found = {(task["video_id"], task["reason"]) for task in faults}
    assert ("no uri", FailureReason.NOT_FOUND) in found
    assert ("ends early", FailureReason.PROMPT_OUT_OF_RANGE) in found
    assert ("good", FailureReason.PROMPT_INVALID) in found  # the second of that name
    assert ("", FailureReason.PROMPT_INVALID) in found
    assert all(task["detail"] for task in faults)


def test_faults_of_rows_with_one_name_are_told_apart(tmp_path: Path) -> None:
    rows = [row("a"), row("a"), row("a", video_uri="")]
    with plan_of(tmp_path, rows, checked=False) as plan:
        (ids, prints) = next(plan.keys())
    assert ids == ["a"] * 3
    assert len(set(prints)) == 3


def test_a_plan_leaves_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    with plan_of(tmp_path, [row("a")]):
        assert list((tmp_path / "spool").iterdir())
    assert not list((tmp_path / "spool").iterdir())


def spool_of(folder: Path, sizes: list[int]) -> TaskSpool:
    spool = TaskSpool(folder / "tasks.arrow", TASK_SCHEMA)
    number = 0
    for size in sizes:
        rows = [{"video_id": str(number + i), "priority": number + i} for i in range(size)]
        spool.append(pa.RecordBatch.from_pylist(rows, TASK_SCHEMA))
        number += size
    spool.seal()
    return spool


def test_rows_are_taken_back_in_any_order(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [3, 0, 5, 1])
    assert (len(spool), spool.num_batches) == (9, 3)
    wanted = np.array([8, 0, 5, 5, 2, 3])
    assert spool.take(wanted)["priority"].to_pylist() == wanted.tolist()
    assert spool.take(np.array([], np.int64)).num_rows == 0
    spool.close()


def test_sizes_that_take_too_long_are_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(str(index), video_uri=f"s3://videos/{index}.mp4") for index in range(3)]
    asked: list[str] = []

    def slow(storage: Storage, uri: str | None) -> float:
        asked.append(str(uri))
        return 20_000.0

    monkeypatch.setattr(video_costs, "_size_bytes", slow)
    spool = TaskSpool(tmp_path / "tasks.arrow", TASK_SCHEMA)
    spool.append(pa.RecordBatch.from_pylist(rows, TASK_SCHEMA))
    spool.seal()
    assert video_costs.estimate_costs(spool, Storage()).tolist() == [4.0] * 3
    assert len(asked) == 3
    # No time at all: every video counts alike.
    assert video_costs.estimate_costs(spool, Storage(), asking_s=-1.0).tolist() == [2.0] * 3
    spool.close()
