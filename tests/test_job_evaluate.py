"""`maskmill evaluate`: a dataset against folders and against itself as it was."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.csv
import pytest
from labelled import blank, disk, label, relabel
from test_export import export
from test_import import separate

from jobs._labels import time_or_revision
from jobs.evaluate import main
from workflows.export_davis import Davis
from workflows.export_sav import Sav
from workflows.export_youtube_vis import YoutubeVis
from workflows.mask_views import DatasetMasks, Layer, View, parse_view
from workflows.query import Dataset
from workflows.results import DatasetWriter
from workflows.rows import Review
from workflows.storage import Storage


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def spoilt() -> Any:
    """Object 2 gone from frame 3 on, as a tracker that lost it."""
    frames = {**separate()[2], **{t: blank() for t in (3, 4, 5)}}
    return {**separate(), 2: frames}


def test_auto_against_corrected_scores_only_what_people_touched(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label(root, {"v": spoilt(), "w": separate()})
    relabel(root, "v", {2: separate()[2]})
    words = ["--dataset", root, "--truth", "corrected", "--predicted", "auto"]
    assert main(words) == 0
    summary = last_line(capsys)
    # of six frames two show it right, one is rightly empty, three are missed
    assert (summary["objects"], summary["frames"]) == (1, 6)
    assert summary["j_mean"] == summary["f_mean"] == summary["j_recall"] == 0.5
    assert summary["omissions"] == {"predicted, but unknown to the truth": 2}


def test_the_current_labels_against_themselves_are_perfect(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label(root, {"v": spoilt()})
    assert main(["--dataset", root, "--truth", "current"]) == 0
    assert last_line(capsys)["j_and_f"] == 1.0


def test_an_earlier_revision_is_a_source(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    label(root, {"v": spoilt()})
    relabel(root, "v", {2: separate()[2]})
    assert main(["--dataset", root, "--truth", "current", "--predicted", "1"]) == 0
    assert last_line(capsys)["j_mean"] == pytest.approx((1 + 0.5 + 1) / 3)


@pytest.mark.parametrize(
    ("export_format", "path"),
    [
        (Davis(), ""),
        (Davis(), "Annotations/480p"),
        (Sav(), "train"),
        (YoutubeVis(), "train/instances.json"),
    ],
)
@pytest.mark.parametrize("side", ["--truth", "--predicted"])
def test_a_folder_on_either_side_gives_the_same_scores(
    root: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    export_format: Any,
    path: str,
    side: str,
) -> None:
    label(root, {"v": separate()})
    export(root, tmp_path / "out", export_format)
    relabel(root, "v", {2: spoilt()[2]})
    other = "--predicted" if side == "--truth" else "--truth"
    words = ["--dataset", root, side, str(tmp_path / "out" / path), other, "current"]
    assert main(words) == 0
    summary = last_line(capsys)
    expected = (1 + 0.5 + 1) / 3
    assert summary["j_mean"] == pytest.approx(expected)


def test_scores_and_plots_are_written(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label(root, {"v": spoilt(), "w": separate()})
    relabel(root, "v", {2: separate()[2]})
    out = tmp_path / "scores"
    words = ["--dataset", root, "--truth", "current", "--predicted", "auto", "--output", str(out)]
    assert main([*words, "--protocol", "sav"]) == 0
    captured = capsys.readouterr()
    printed = captured.out
    assert "2 of 2 videos" in captured.err
    assert "all 6 objects" in printed and "v · 2" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["protocol"], scores["truth"], scores["predicted"]) == ("sav", "current", "auto")
    printed_scores = json.loads(printed.splitlines()[-1])
    assert {name: scores[name] for name in printed_scores if name != "output"} == {
        name: value for name, value in printed_scores.items() if name != "output"
    }
    objects = pyarrow.csv.read_csv(out / "objects.csv").to_pylist()
    assert len(objects) == 6
    lowest = min(objects, key=lambda row: row["j_and_f"])
    assert (lowest["video_id"], lowest["object_id"]) == ("v", 2)
    for name in ("j_and_f", "j_against_f", "decay", "worst"):
        ElementTree.parse(out / f"{name}.svg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--truth", "current"], "wanted --dataset"),
        (["--truth", "corected"], "corected: no layer and no path; wanted current, corrected"),
        (["--truth", "current", "--protocol", "coco"], "davis"),
    ],
)
def test_mistakes_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in last_line(capsys)["error"]["message"]


def test_videos_without_prediction_fail_unless_told(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label(root, {"v": separate()})
    export(root, tmp_path / "out", Davis())
    label(root, {"v2": separate()})
    words = ["--dataset", root, "--truth", "current", "--predicted", str(tmp_path / "out")]
    assert main(words) == 2
    assert "the first is v2" in last_line(capsys)["error"]["message"]
    assert main([*words, "--missing", "empty"]) == 0
    assert last_line(capsys)["objects"] == 6


def test_layers_are_what_they_are_called(root: str) -> None:
    label(root, {"v": separate()})
    relabel(root, "v", {1: {0: disk(9, 9, 2)}})
    DatasetWriter(Storage(), root).review("v", 2, Review.ACCEPTED, "me", [7])
    dataset = Dataset(root)
    corrected = DatasetMasks(dataset, View(Layer.CORRECTED))["v"]
    assert {i: len(frames) for i, frames in corrected.items()} == {1: 1, 7: 6}
    auto = DatasetMasks(dataset, View(Layer.AUTO))["v"]
    assert {i: len(frames) for i, frames in auto.items()} == {1: 6, 2: 6, 7: 6}
    current = DatasetMasks(dataset, View())["v"]
    assert {i: len(frames) for i, frames in current.items()} == {1: 1, 2: 6, 7: 6}


def test_a_view_is_a_layer_or_a_state_and_nothing_else() -> None:
    assert parse_view("auto") == View(Layer.AUTO)
    assert parse_view("3") == View(at=3)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for text in ("2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00", "2026-01-01T02:00:00+02:00"):
        view = parse_view(text)
        assert view is not None and view.at == time_or_revision(text) == moment
        assert view.title == "as of 2026-01-01 00:00:00 UTC"
    assert parse_view("autos") is parse_view(str(2**31)) is None
