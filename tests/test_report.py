"""A report says what the tables say, in one page that needs nothing and trusts no text."""

import dataclasses
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled import (
    HEIGHT,
    WIDTH,
    blank,
    disk,
    label,
    mask_table,
    relabel,
    scene,
    tracks_of,
)
from PIL import Image
from videos import square_mask, write_moving_square

from jobs.report import main
from workflows.mask_objects import write_mask_object
from workflows.mask_sources import Rle
from workflows.query import Dataset
from workflows.report import ReportError, gather, worst_tracks
from workflows.report_page import _duration, render
from workflows.report_thumbnails import thumbnails
from workflows.results import DatasetWriter
from workflows.rows import FailureReason, Review, Status, VideoOutcome
from workflows.storage import Storage
from workflows.synthetic_dataset import SyntheticSize, make_dataset

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
DOUBTS = {1: 0.9, 2: 0.1, 7: 0.5}


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


def outcome(root: str, video_id: str, minute: int, uri: str = "", **more: Any) -> VideoOutcome:
    """A labelled video whose tracks have doubts and flags."""
    flags = ({"frame_index": 1, "kind": "area_jump", "doubt": 0.2},)
    worse = ({"frame_index": 4, "kind": "lost", "doubt": 0.9}, *flags)
    objects = more.pop("objects", scene())
    tracks = tuple(
        dataclasses.replace(
            track,
            doubt=DOUBTS[track.object_id],
            iou_pred_min=0.6,
            flags=worse if track.object_id == 1 else flags if track.object_id == 2 else (),
            run_id="label-1",
        )
        for track in tracks_of(video_id, objects, {1: "wheel"})
    )
    done = VideoOutcome(
        video_id=video_id,
        video_uri=uri or f"s3://b/{video_id}.mp4",
        fingerprint=f"{abs(hash(video_id)):032x}"[:32],
        status=Status.OK,
        run_id="label-1",
        finished_at=START + timedelta(minutes=minute),
        num_frames_decoded=6,
        duration_s=1800.0,
        fps=8.0,
        objects=3,
        seconds_by_stage={"decode": 1.0, "track": 4.0 + minute},
        tracks=tracks,
    )
    return write_mask_object(Storage(), root, done, mask_table(video_id, objects))


def failure(video_id: str, reason: FailureReason, detail: str, minute: int) -> VideoOutcome:
    return VideoOutcome(
        video_id=video_id,
        video_uri="s3://b/x.mp4",
        fingerprint="0" * 32,
        status=Status.FAILED,
        reason=reason,
        detail=detail,
        run_id="label-1",
        finished_at=START + timedelta(minutes=minute),
    )


def run_row(**changes: Any) -> dict[str, Any]:
    return {
        "run_id": "label-1",
        "job": "label",
        "started_at": START,
        "finished_at": START + timedelta(hours=1),
        "videos_requested": 6,
        "videos_skipped": 0,
        "videos_ok": 2,
        "videos_failed": 3,
        "frames": 12,
        "object_frames": 30,
        "video_s": 3600.0,
        "wall_s": 600.0,
        "device_s": 1200.0,
        "cost": 3.0,
        "currency": "EUR",
        **changes,
    }


def busy(root: str) -> Dataset:
    """Two labelled videos and three failed ones, of one run."""
    writer = DatasetWriter(Storage(), root)
    writer.commit(
        [
            outcome(root, "a", 0),
            outcome(root, "b", 10),
            failure("x", FailureReason.NOT_FOUND, "nothing there", 20),
            failure("y", FailureReason.NOT_FOUND, "nor there", 30),
            failure("z", FailureReason.TIMEOUT, "<script>alert(1)</script>", 40),
        ]
    )
    writer.record_run(run_row())
    return Dataset(root)


def test_progress_counts_videos_and_masks(root: str) -> None:
    busy(root)
    DatasetWriter(Storage(), root).review("a", 1, Review.ACCEPTED, "me", [1])
    relabel(root, "b", {2: {0: blank(), 1: disk(9, 9, 3)}})
    progress = gather(Dataset(root))["progress"]
    assert progress == {
        "videos_ok": 2,
        "videos_failed": 3,
        "frames": 12,
        "video_hours": 1.0,
        "objects": 6,
        "object_frames": 2 * (6 + 6 + 3) - 4,
        "masks_not_empty": 2 * (6 + 5 + 3) - 4,
        "objects_reviewed": 1,
        "objects_corrected": 1,
        "videos_in_manifest": 6,
    }


def test_a_dataset_without_runs_claims_no_speed(root: str) -> None:
    label(root, {"a": scene()})
    report = gather(Dataset(root))
    assert report["progress"]["frames"] == 6
    text = parse(render(report, [], {})).text
    assert "6frames labelled" in text and "price" not in text and "a second" not in text


def test_rates_and_costs_are_of_whole_runs(root: str) -> None:
    dataset = busy(root)
    report = gather(dataset)
    (run,) = report["runs"]
    for row in (run, report["totals"]):
        assert row["frames_per_s"] == 12 / 600
        assert row["masks_per_s"] == 30 / 600
        assert row["times_real_time"] == 6
        assert (row["cost_per_video_hour"], row["currency"]) == (3.0, "EUR")
    assert run["cost_per_1000_frames"] == 250
    assert run["finished_at"] == "2026-01-05T09:00:00+00:00"


@pytest.mark.parametrize("other", [{"cost": None, "currency": None}, {"currency": "USD"}])
def test_costs_that_do_not_add_up_are_left_out(root: str, other: dict[str, Any]) -> None:
    busy(root)
    DatasetWriter(Storage(), root).record_run(run_row(run_id="label-2", **other))
    totals = gather(Dataset(root))["totals"]
    assert totals["cost"] is totals["currency"] is totals["cost_per_video_hour"] is None
    assert totals["frames"] == 24


def test_failures_are_counted_by_reason_with_an_example(root: str) -> None:
    assert gather(busy(root))["failures"] == [
        {
            "reason": "not_found",
            "videos": 2,
            "example_video": "x",
            "example_detail": "nothing there",
        },
        {
            "reason": "timeout",
            "videos": 1,
            "example_video": "z",
            "example_detail": "<script>alert(1)</script>",
        },
    ]


def test_a_video_that_succeeded_later_is_no_failure(root: str) -> None:
    busy(root)
    DatasetWriter(Storage(), root).commit([outcome(root, "x", 50)])
    report = gather(Dataset(root))
    assert report["progress"]["videos_ok"] == 3
    assert [row["videos"] for row in report["failures"]] == [1, 1]


def test_stages_and_slowest_videos_add_up_the_seconds(root: str) -> None:
    report = gather(busy(root))
    assert report["stages"] == [
        {"stage": "track", "seconds": 18.0},
        {"stage": "decode", "seconds": 2.0},
    ]
    assert [(row["video_id"], row["seconds"]) for row in report["slowest"]] == [
        ("b", 15.0),
        ("a", 5.0),
    ]


def test_videos_over_time_end_with_all_of_them(root: str) -> None:
    points = gather(busy(root))["over_time"]
    assert [point["videos"] for point in points] == [1, 2, 3, 4, 5]
    assert points[-1]["at"] == "2026-01-05T08:40:00+00:00"


def test_distributions_count_every_track_once(root: str) -> None:
    report = gather(busy(root))
    doubt = report["scores"]["doubt"]
    assert (doubt["tracks"], doubt["mean"]) == (6, pytest.approx(0.5))
    assert {n: count for n, count in enumerate(doubt["counts"]) if count} == {2: 2, 12: 2, 22: 2}
    constant = report["scores"]["iou_pred_min"]
    assert sum(constant["counts"]) == 6
    assert report["scores"]["stability_mean"]["tracks"] == 0
    assert (report["reviews"], report["sources"]) == ({"open": 6}, {"bulk": 6})
    assert report["categories"] == {"none": 4, "wheel": 2}
    assert report["flags"] == {"area_jump": 4, "lost": 2}


def test_the_worst_tracks_come_first_and_rejected_ones_last(root: str) -> None:
    busy(root)
    DatasetWriter(Storage(), root).review("a", 1, Review.REJECTED, "me", [1])
    worst = worst_tracks(Dataset(root), 10)
    assert [(row["video_id"], row["object_id"]) for row in worst] == [
        ("b", 1),
        ("a", 7),
        ("b", 7),
        ("a", 2),
        ("b", 2),
        ("a", 1),
    ]
    assert [flag["frame_index"] for flag in worst[0]["flags"]] == [4, 1]
    assert len(worst_tracks(Dataset(root), 2)) == 2


def test_a_run_is_reported_without_what_others_did(root: str) -> None:
    busy(root)
    DatasetWriter(Storage(), root).record_run(run_row(run_id="label-2", frames=1000))
    relabel(root, "a", {1: {0: blank()}}, run_id="refine-1")
    label(root, {"c": scene()}, run_id="label-2")
    report = gather(Dataset(root), "label-1")
    assert [run["run_id"] for run in report["runs"]] == ["label-1"]
    assert (report["totals"]["frames"], report["progress"]["objects"]) == (12, 6)
    assert (report["progress"]["videos_ok"], report["progress"]["videos_failed"]) == (2, 3)
    assert report["progress"]["objects_corrected"] == 0


def test_an_unknown_run_is_refused_with_those_there_are(root: str) -> None:
    with pytest.raises(ReportError, match="no run '; DROP; the newest are label-1"):
        gather(busy(root), "'; DROP")


def test_an_empty_dataset_has_a_report_too(root: str) -> None:
    DatasetWriter(Storage(), root)
    report = gather(Dataset(root))
    assert report["progress"]["videos_ok"] == 0
    parse(render(report, [], {}))


class Page(HTMLParser):
    """The tags of a page, refusing what does not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_the_page_needs_nothing_and_runs_nothing(root: str) -> None:
    dataset = busy(root)
    html = render(gather(dataset), worst_tracks(dataset, 5), {("a", 1): (4, b"jpeg")})
    page = parse(html)
    assert "<script>alert(1)</script>" in page.text
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    values = [str(value) for _, attributes in page.tags for value in attributes.values()]
    addresses = {value for value in values if re.search("//", value)}
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    (picture,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert str(picture["src"]).startswith("data:image/jpeg;base64,")
    assert picture["alt"] == "a · object 1, frame 4, its mask drawn"


def test_values_that_nobody_knows_leave_gaps_in_the_page(root: str) -> None:
    masks = [Rle("06", 2, 3)]
    make_dataset(Storage(), root, masks, SyntheticSize(videos=3, frames=2))
    dataset = Dataset(root)
    (first, *_) = worst = worst_tracks(dataset, 5)
    assert first["flags"] == [] and first["doubt"] == max(track["doubt"] for track in worst)
    page = render(gather(dataset), worst, {})
    assert "<h2>Worst tracks</h2>" in page
    assert "hardware" not in page, "a column of which no run says anything"


def test_every_number_of_the_page_comes_from_the_report(root: str) -> None:
    dataset = busy(root)
    text = parse(render(gather(dataset), worst_tracks(dataset, 5), {})).text
    for words in (
        "2videos labelled",
        "3videos failed",
        "6times real time",
        "3EUR an hour of video",
    ):
        assert words in text
    assert "lost at 4, area_jump at 1" in text and "no picture" in text


def test_thumbnails_show_the_most_doubtful_frame(root: str, tmp_path: Path) -> None:
    path = write_moving_square(tmp_path / "v.mp4", 6, 96, 128)
    objects = {1: {t: square_mask(t, 96, 128) for t in range(6)}}
    uris = {"v": str(path), "gone": str(tmp_path / "absent.mp4")}
    outcomes = [outcome(root, name, 0, uri, objects=objects) for name, uri in uris.items()]
    DatasetWriter(Storage(), root).commit(outcomes)
    dataset = Dataset(root)
    pictures = thumbnails(dataset, worst_tracks(dataset, 10))
    assert pictures.keys() == {("v", 1)}
    frame_index, jpeg = pictures["v", 1]
    assert frame_index == 4
    (tmp_path / "t.jpg").write_bytes(jpeg)
    with Image.open(tmp_path / "t.jpg") as opened:
        picture = np.asarray(opened).astype(int)
    assert picture.shape[1] == 128
    # a line through the middle of the square, below the caption: red where it is on frame 4
    columns = np.flatnonzero(picture[19 + 52, :, 0] > 100)
    wanted = np.flatnonzero(square_mask(4, 96, 128).any(axis=0))
    assert abs(int(columns.min()) - int(wanted.min())) <= 3


def test_without_flags_the_lowest_predicted_iou_is_shown(root: str, tmp_path: Path) -> None:
    path = write_moving_square(tmp_path / "v.mp4", 6, HEIGHT * 2, WIDTH * 2)
    masks = {t: square_mask(t, HEIGHT * 2, WIDTH * 2) for t in range(6)}
    label(root, {"v": {1: masks}}, video_uri=str(path))
    writer = DatasetWriter(Storage(), root)
    table = mask_table("v", {1: masks})
    scores = [0.9, 0.8, 0.7, 0.2, 0.8, None]
    rows = [{**row, "iou_pred": s} for row, s in zip(table.to_pylist(), scores, strict=True)]
    tracks = tracks_of("v", {1: masks})
    writer.commit_revision("v", 1, tracks, table.from_pylist(rows, schema=table.schema))
    dataset = Dataset(root)
    assert thumbnails(dataset, worst_tracks(dataset, 1))["v", 1][0] == 3


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_job_writes_a_page_and_the_numbers(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    busy(root)
    out = tmp_path / "r/report.html"
    words = ["--dataset", root, "--output", str(out), "--no-pictures", "--worst", "2"]
    assert main([*words, "--run", "label-1"]) == 0
    summary = last_line(capsys)
    assert (summary["videos_ok"], summary["cost_per_video_hour"]) == (2, 3.0)
    parse(out.read_text())
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["run_id"] == "label-1" and len(numbers["worst"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "report.pdf"], "wanted a name in .html"),
        (["--run", "label-9"], "no run label-9"),
        (["--worst", "-1"], "--worst -1: wanted 0 or more"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    busy(root)
    monkeypatch.chdir(tmp_path)
    assert main(["--dataset", root, *words]) == 2
    assert message in last_line(capsys)["error"]["message"]
    assert not list(tmp_path.glob("report*"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (1.5, "1.5 s"),
        (90.0, "90 s"),
        (150.0, "2.5 min"),
        (7200.0, "2 h"),
        (1e6, "11.6 days"),
    ],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
