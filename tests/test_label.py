"""The bulk job, from a manifest of real files to a dataset that SQL reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bulk import Row, click, settings_of, video_row, words_of, write_rows

from jobs import label as label_job
from workflows.query import Dataset

pytest_plugins = ["local_ray"]

pytestmark = pytest.mark.cluster

WIDTH = 128


@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path) -> dict[str, Any]:
    return settings_of(tmp_path, checkpoint)


def run_job(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, Row, str]:
    """`maskmill label`: exit code, summary, and everything printed."""
    code = label_job.main(words_of(settings))
    out = capsys.readouterr().out
    return code, json.loads(out.splitlines()[-1]), out


def test_a_manifest_becomes_masks_and_a_second_run_labels_nothing(
    local_ray: None,
    tmp_path: Path,
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_rows(
        settings,
        [
            video_row(tmp_path, "a", prompts=[click(0), click(7, x=100.0)]),
            video_row(tmp_path, "b", prompts=[click(3, frame_index=2)]),
        ],
    )
    code, summary, printed = run_job(settings, capsys)
    assert (code, summary["ok"], summary["failed"]) == (0, 2, 0)
    assert "2 rows in the manifest = 2 ok + 0 failed" in printed
    dataset = Dataset(str(settings["output"]))
    counted = dataset.sql("SELECT video_id, count(*) n FROM current_masks GROUP BY 1 ORDER BY 1")
    assert counted.to_pylist() == [{"video_id": "a", "n": 12}, {"video_id": "b", "n": 6}]
    masks = dataset.masks("b", [3]).to_pylist()
    assert [row["frame_index"] for row in masks] == list(range(6))
    assert [row["is_prompt"] for row in masks] == [False, False, True, False, False, False]

    version = dataset.version
    code, summary, _ = run_job(settings, capsys)
    assert (code, summary["skipped"], summary["labelled"]) == (0, 2, 0)
    assert dataset.refresh().version == version


def test_bad_videos_fail_with_a_reason_and_the_others_are_labelled(
    local_ray: None,
    tmp_path: Path,
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "corrupt.mp4").write_bytes(b"not a video at all")
    rows = [
        video_row(tmp_path, "good"),
        video_row(tmp_path, "corrupt"),
        {**video_row(tmp_path, "good"), "video_id": "gone", "video_uri": str(tmp_path / "gone")},
        video_row(tmp_path, "outside", prompts=[click(x=WIDTH + 1.0)]),
        video_row(tmp_path, "late", prompts=[click(frame_index=6)]),
        video_row(tmp_path, "elsewhere", video_uri="ftp://host/v.mp4"),
    ]
    write_rows(settings, rows)
    code, summary, printed = run_job(settings, capsys)
    assert (code, summary.get("ok"), summary.get("failed")) == (3, 1, 5), summary
    assert "6 rows in the manifest = 1 ok + 5 failed" in printed
    found = Dataset(str(settings["output"])).videos().to_pylist()
    assert {row["video_id"]: row["reason"] for row in found} == {
        "good": None,
        "corrupt": "undecodable",
        "gone": "not_found",
        "outside": "prompt_out_of_range",
        "late": "prompt_out_of_range",
        "elsewhere": "uri_not_allowed",
    }
    assert all(row["detail"] for row in found if row["reason"])
    # What was mended is taken again when asked for, and nothing else is.
    video_row(tmp_path, "mended")
    (tmp_path / "mended.mp4").replace(tmp_path / "corrupt.mp4")
    assert label_job.main([*words_of(settings), "--retry", "reason=undecodable,timeout"]) == 3
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["skipped"], summary["labelled"], summary["ok"]) == (5, 1, 2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"compute.actor": 1}, "compute.actors"),
        ({"manifest": "nowhere.parquet"}, "nowhere.parquet"),
        ({"manifest": __file__}, "test_label.py"),
        ({"model.checkpoint": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_what_the_caller_can_mend_exits_2_and_writes_nothing(
    change: Row,
    complaint: str,
    tmp_path: Path,
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_rows(settings, [video_row(tmp_path, "a")])
    code, summary, _ = run_job({**settings, **change}, capsys)
    assert code == 2
    assert complaint in summary["error"]["message"]
    assert not Path(settings["output"]).exists()


def test_two_actors_label_real_videos(
    local_ray: None,
    real_data: Callable[[str], Path],
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    clicks = {"02_cups.mp4": (400.0, 464.0), "bedroom.mp4": (236.0, 393.0)}
    rows = [
        {
            "video_id": name,
            "video_uri": str(real_data(name)),
            "prompts": [click(1, x=x, y=y)],
            "first_frame": 0,
            "last_frame": 9,
        }
        for name, (x, y) in clicks.items()
    ]
    write_rows(settings, rows)
    code, summary, _ = run_job({**settings, "compute.actors": 2}, capsys)
    assert (code, summary["ok"]) == (0, 2)
    sql = "SELECT video_id, count(*) n FROM current_masks GROUP BY 1 ORDER BY 1"
    counted = Dataset(str(settings["output"])).sql(sql).to_pylist()
    assert counted == [{"video_id": name, "n": 10} for name in sorted(clicks)]
