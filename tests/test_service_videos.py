"""The list of a dataset's videos: what stands in it, in which order, page by page."""

from pathlib import Path
from typing import Any

import pytest
from labelled import label, scene
from labels import failed

from workflows.refine_types import RefinementError
from workflows.results import DatasetWriter
from workflows.rows import FailureReason, Review, Status
from workflows.service_videos import VideoList, VideoQuery
from workflows.storage import NotFound, Storage

DOUBTS = {"a": 0.2, "b": None, "c": 0.9, "d/1": 0.2}


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    root = str(tmp_path / "labels")
    for video_id, doubt in DOUBTS.items():
        flags = ({"frame_index": 1, "kind": "area_jump", "doubt": 0.2},) if doubt else ()
        of_tracks = {"doubt": doubt, "flags": flags}
        label(root, {video_id: scene(4)}, categories={1: "ring"}, of_tracks=of_tracks)
    return root


@pytest.fixture
def videos(dataset: str) -> VideoList:
    return VideoList(dataset, Storage())


def ids(page: dict[str, Any]) -> list[str]:
    return [video["video_id"] for video in page["videos"]]


def test_the_most_doubtful_come_first_and_those_never_scored_last(videos: VideoList) -> None:
    page = videos.page(VideoQuery())
    assert ids(page) == ["c", "a", "d/1", "b"] and page["next"] is None
    first = page["videos"][0]
    assert (first["objects"], first["flags"], first["accepted"], first["revision"]) == (3, 3, 0, 1)
    assert first["status"] == "ok" and first["doubt"] == pytest.approx(0.9)
    assert page["videos"][-1]["doubt"] is None
    assert "rank" not in first


@pytest.mark.parametrize("sort", ["doubt", "video_id"])
@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_pages_follow_one_another_without_a_gap(videos: VideoList, sort: Any, limit: int) -> None:
    whole = ids(videos.page(VideoQuery(sort=sort)))
    seen: list[str] = []
    cursor = None
    while True:
        page = videos.page(VideoQuery(sort=sort, limit=limit, cursor=cursor))
        assert 1 <= len(page["videos"]) <= limit
        seen += ids(page)
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == whole == sorted(whole, key=whole.index)


def test_filters_keep_what_fits(videos: VideoList, dataset: str) -> None:
    assert ids(videos.page(VideoQuery(search="d/"))) == ["d/1"]
    assert ids(videos.page(VideoQuery(search="%"))) == []
    assert ids(videos.page(VideoQuery(min_doubt=0.5))) == ["c"]
    assert len(ids(videos.page(VideoQuery(category="ring")))) == 4
    assert ids(videos.page(VideoQuery(category="'; DROP"))) == []
    DatasetWriter(Storage(), dataset).review("a", 1, Review.ACCEPTED, "ada", [1])
    page = videos.page(VideoQuery(review=Review.ACCEPTED))
    assert ids(page) == ["a"] and page["videos"][0]["accepted"] == 1
    assert page["videos"][0]["revision"] == 2
    assert ids(videos.page(VideoQuery(review=Review.REJECTED))) == []
    assert len(ids(videos.page(VideoQuery(review=Review.OPEN)))) == 4


def test_a_video_that_failed_is_listed_with_its_reason(videos: VideoList, dataset: str) -> None:
    DatasetWriter(Storage(), dataset).commit([failed("x", FailureReason.NOT_FOUND)])
    (row,) = videos.page(VideoQuery(status=Status.FAILED))["videos"]
    assert (row["video_id"], row["reason"], row["objects"]) == ("x", "not_found", 0)
    assert "x" not in ids(videos.page(VideoQuery(status=Status.OK)))


@pytest.mark.parametrize("cursor", ["x", "bnVsbA==", "WzEsMl0=", "é", "e30="])
def test_a_cursor_that_no_page_gave_is_refused(videos: VideoList, cursor: str) -> None:
    with pytest.raises(RefinementError, match="cursor .*: wanted one that a page gave"):
        videos.page(VideoQuery(cursor=cursor))


def test_a_dataset_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        VideoList(str(tmp_path / "nowhere"), Storage()).page(VideoQuery())
