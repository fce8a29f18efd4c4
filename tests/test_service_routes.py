"""What each route answers, over workers of this process."""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scripted_refinements import Scene, ScriptedRefinements, ScriptedVideos
from serving import ADMIN, READER, TOKENS, NoJobs, app_over, bearer
from starlette.testclient import TestClient

from sam2model import rle
from workflows import service_bodies as bodies
from workflows.rows import Source

CLICK = {"object_id": 1, "frame_index": 5, "points": [{"x": 76, "y": 102, "positive": True}]}
AT_FIVE = {**CLICK, "points": [*CLICK["points"], *CLICK["points"]]}  # type: ignore[misc]


@pytest.fixture
def refinements() -> ScriptedRefinements:
    made = ScriptedRefinements({"v1": Scene(num_frames=12), "a/b c": Scene(num_frames=40)})
    for video_id in ("v1", "a/b c"):
        made.label(video_id)
    made.flag("a/b c", 1, [{"frame_index": 9, "kind": "area_jump", "doubt": 0.8}])
    return made


@pytest.fixture
def jobs() -> NoJobs:
    return NoJobs()


@pytest.fixture
def client(refinements: ScriptedRefinements, jobs: NoJobs) -> Iterator[TestClient]:
    app = app_over(refinements, ScriptedVideos(refinements), jobs=jobs)
    with TestClient(app, headers=bearer()) as made:
        yield made


def lines_of(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def refine(client: TestClient, video_id: str = "v1", **body: Any) -> Any:
    wanted = {"base_revision": 1, "prompts": [AT_FIVE], **body}
    return client.post(f"/v1/videos/{video_id}/refinements", json=wanted)


def area(client: TestClient, frame: int, object_id: int = 1, **query: Any) -> int:
    query = {"frames": f"{frame}:{frame}", "objects": object_id, **query}
    (line,) = lines_of(client.get("/v1/videos/v1/masks", params=query))
    return int(line["masks"][0]["area_px"])


def test_a_video_is_told_with_its_labels(client: TestClient) -> None:
    answer = client.get("/v1/videos/v1").json()
    bodies.VideoAnswer.model_validate(answer)
    assert (answer["num_frames"], answer["revision"], answer["height"]) == (12, 1, 240)
    assert [track["object_id"] for track in answer["tracks"]] == [1, 2]
    assert answer["tracks"][0]["prompts"][0]["points"] == [{"x": 60, "y": 100, "positive": True}]


def test_ids_with_slashes_and_spaces_are_ids(client: TestClient) -> None:
    for path in ("/v1/videos/a/b c", "/v1/videos/a%2Fb%20c"):
        assert client.get(path).json()["video_id"] == "a/b c"
        assert client.get(f"{path}/frames/3.jpg").status_code == 200
        assert len(lines_of(client.get(f"{path}/masks?frames=0:2"))) == 3
    assert client.get("/v1/videos/a").status_code == 404


def test_frames_are_jpeg_that_may_be_kept_for_ever(client: TestClient) -> None:
    answer = client.get("/v1/videos/v1/frames/3.jpg")
    assert answer.headers["content-type"] == "image/jpeg"
    kept = answer.headers["cache-control"]
    assert "immutable" in kept and "private" in kept and "max-age=31536000" in kept
    with Image.open(io.BytesIO(answer.content)) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown - Scene().picture(3)).mean() < 6
    assert client.get("/v1/videos/v1/frames/12.jpg").status_code == 422
    assert client.get("/v1/videos/v1/frames/-1.jpg").status_code == 422
    assert client.get("/v1/videos/nope/frames/0.jpg").status_code == 404


def test_masks_come_a_line_a_frame(client: TestClient) -> None:
    lines = lines_of(client.get("/v1/videos/v1/masks?frames=2:4"))
    for line in lines:
        bodies.FrameLine.model_validate(line)
    assert [line["frame_index"] for line in lines] == [2, 3, 4]
    mask = lines[0]["masks"][0]
    decoded = rle.decode(mask["counts"], 240, 320)
    assert np.array_equal(decoded, Scene().disc(0, 2)) and mask["area_px"] == decoded.sum()


@pytest.mark.parametrize(
    ("query", "frames", "objects"),
    [
        ("", 12, {1, 2}),
        ("frames=8:", 4, {1, 2}),
        ("frames=0:99", 12, {1, 2}),
        ("frames=50:60", 0, set()),
        ("objects=2", 12, {2}),
        ("objects=2,1&frames=0:0", 1, {1, 2}),
        ("objects=7", 12, set()),
    ],
)
def test_masks_may_be_picked(
    client: TestClient, query: str, frames: int, objects: set[int]
) -> None:
    lines = lines_of(client.get(f"/v1/videos/v1/masks?{query}"))
    assert len(lines) == frames
    assert {mask["object_id"] for line in lines for mask in line["masks"]} == objects


def test_scores_come_without_run_lengths_where_these_are_not_wanted(client: TestClient) -> None:
    lines = lines_of(client.get("/v1/videos/v1/masks?counts=false"))
    masks = [mask for line in lines for mask in line["masks"]]
    assert {mask["counts"] for mask in masks} == {None} and masks[0]["area_px"] > 0


@pytest.mark.parametrize(
    "query",
    [
        *("frames=1", "frames=a:b", "frames=-1:2", "frames=3:2", "frames=1:2:3", "frames=١:٢"),
        *("objects=", "objects=a", "objects=1,,2", "at=yesterday", "at=2020-13-01T00:00:00"),
        "counts=perhaps",
    ],
)
def test_a_selection_of_masks_that_is_wrong_is_refused(client: TestClient, query: str) -> None:
    response = client.get(f"/v1/videos/v1/masks?{query}")
    assert response.status_code == 422 and response.json()["error"]["code"] == "invalid"


def test_a_preview_shows_what_would_be_and_keeps_nothing(client: TestClient) -> None:
    body = {"base_revision": 1, "frame_index": 5, "prompts": [AT_FIVE], "sequence": 3}
    answer = client.post("/v1/videos/v1/preview", json=body).json()
    bodies.FrameLine.model_validate(answer)
    assert answer["sequence"] == 3 and answer["frame_index"] == 5
    assert answer["masks"][0]["area_px"] == Scene().disc(0, 5, 3).sum()
    assert client.get("/v1/videos/v1").json()["revision"] == 1
    assert area(client, 5) == Scene().disc(0, 5).sum()


def test_a_refinement_streams_frames_and_ends_with_its_revision(client: TestClient) -> None:
    *frames, last = lines_of(refine(client, span={"first_frame": 4, "last_frame": 8}))
    for line in [*frames, last]:
        bodies.RefinementLine.model_validate(line)
    assert [line["frame"]["frame_index"] for line in frames] == [4, 5, 6, 7, 8]
    assert last["result"]["revision"] == 2 and last["result"]["draft_id"] is None
    assert area(client, 8) == Scene().disc(0, 8, 3).sum()
    assert area(client, 9) == Scene().disc(0, 9).sum()
    assert area(client, 8, at=1) == Scene().disc(0, 8).sum()
    track = client.get("/v1/videos/v1").json()["tracks"][0]
    assert (track["author"], track["source"]) == ("ada", Source.REFINE)


def test_the_author_is_whose_token_it_is(client: TestClient) -> None:
    body = {"base_revision": 1, "prompts": [CLICK], "author": "root"}
    assert client.post("/v1/videos/v1/refinements", json=body).status_code == 422
    del body["author"]
    bobs = bearer(TOKENS["bob"])
    assert client.post("/v1/videos/v1/refinements", json=body, headers=bobs).status_code == 200
    assert client.get("/v1/videos/v1").json()["tracks"][0]["author"] == "bob"


def test_a_stale_base_is_a_conflict_that_names_the_newer_revision(client: TestClient) -> None:
    assert refine(client).status_code == 200
    response = refine(client)
    assert response.status_code == 409  # the status, not a line in a stream
    error = response.json()["error"]
    assert error["code"] == "conflict"
    detail = error["detail"]
    assert (detail["newest_revision"], detail["base_revision"]) == (2, 1)
    assert (detail["author"], detail["object_id"]) == ("ada", 1)
    assert client.get("/v1/videos/v1").json()["revision"] == 2


def test_the_same_request_is_committed_once(client: TestClient) -> None:
    first = lines_of(refine(client, request_id="r-1"))[-1]
    again = lines_of(refine(client, request_id="r-1"))
    assert again == [first]
    assert client.get("/v1/videos/v1").json()["revision"] == 2


def test_a_draft_is_seen_by_its_author_only_until_it_is_committed(client: TestClient) -> None:
    result = lines_of(refine(client, draft=True))[-1]["result"]
    assert result["revision"] is None
    draft_id = result["draft_id"]
    assert client.get("/v1/videos/v1").json()["revision"] == 1
    drafts = client.get("/v1/videos/v1/drafts").json()
    bodies.DraftsAnswer.model_validate(drafts)
    assert [draft["draft_id"] for draft in drafts["drafts"]] == [draft_id]
    assert client.get("/v1/videos/v1/drafts", headers=bearer(READER)).json() == {"drafts": []}
    masks = lines_of(client.get(f"/v1/videos/v1/drafts/{draft_id}/masks"))
    assert masks[5]["masks"][0]["area_px"] == Scene().disc(0, 5, 3).sum()
    committed = client.post(f"/v1/videos/v1/drafts/{draft_id}/commit").json()
    bodies.ResultAnswer.model_validate(committed)
    assert committed["revision"] == 2
    assert client.post(f"/v1/videos/v1/drafts/{draft_id}/commit").status_code == 404


def test_a_draft_may_be_dropped_and_dropped_again(client: TestClient) -> None:
    draft_id = lines_of(refine(client, draft=True))[-1]["result"]["draft_id"]
    for _ in range(2):
        assert client.delete(f"/v1/videos/v1/drafts/{draft_id}").status_code == 204
    assert client.get(f"/v1/videos/v1/drafts/{draft_id}/masks").status_code == 404


def test_objects_are_accepted_as_a_new_revision(client: TestClient) -> None:
    body = {"base_revision": 1, "review": "accepted", "object_ids": [2]}
    answer = client.post("/v1/videos/v1/accept", json=body).json()
    assert answer == {"video_id": "v1", "revision": 2}
    reviews = {t["object_id"]: t["review"] for t in client.get("/v1/videos/v1").json()["tracks"]}
    assert reviews == {1: "open", 2: "accepted"}
    assert client.post("/v1/videos/v1/accept", json=body).status_code == 409
    wrong = {"base_revision": 2, "object_ids": [9]}
    assert client.post("/v1/videos/v1/accept", json=wrong).status_code == 422


def test_an_earlier_revision_may_be_shown_again(client: TestClient) -> None:
    lines_of(refine(client))
    revisions = client.get("/v1/videos/v1/revisions").json()
    bodies.RevisionsAnswer.model_validate(revisions)
    assert [one["revision"] for one in revisions["revisions"]] == [2, 1]
    body = {"base_revision": 2, "revision": 1}
    assert client.post("/v1/videos/v1/restore", json=body).json()["revision"] == 3
    assert area(client, 5) == Scene().disc(0, 5).sum()


def test_an_object_may_be_removed(client: TestClient) -> None:
    last = lines_of(refine(client, prompts=[], remove_object_ids=[2]))[-1]
    assert last["result"]["revision"] == 2
    tracks = client.get("/v1/videos/v1").json()["tracks"]
    assert [track["object_id"] for track in tracks] == [1]


def test_the_queue_is_ranked_and_filtered(client: TestClient) -> None:
    answer = client.get("/v1/queue").json()
    bodies.QueueAnswer.model_validate(answer)
    first = answer["items"][0]
    assert (first["video_id"], first["frame_index"], first["kind"]) == ("a/b c", 9, "area_jump")
    assert len(client.get("/v1/queue?kind=area_jump").json()["items"]) == 1
    assert client.get("/v1/queue?review=accepted").json()["items"] == []
    assert client.get("/v1/queue?review=perhaps").status_code == 422


def test_videos_are_listed(client: TestClient) -> None:
    answer = client.get("/v1/videos?search=v").json()
    bodies.VideosAnswer.model_validate(answer)
    assert [video["video_id"] for video in answer["videos"]] == ["v1"]
    assert client.get("/v1/videos?sort=colour").status_code == 422


def test_a_batch_is_submitted_once_and_followed(client: TestClient, jobs: NoJobs) -> None:
    body = {"requests": "s3://b/requests.parquet", "request_id": "night-7"}
    for _ in range(2):
        answer = client.post("/v1/jobs", json=body, headers=bearer(ADMIN))
        assert answer.status_code == 202
        bodies.JobAnswer.model_validate(answer.json())
    assert jobs.submitted == {"refine-night-7": "s3://b/requests.parquet"}
    followed = client.get("/v1/jobs/refine-night-7", headers=bearer(ADMIN)).json()
    assert followed["status"] == "RUNNING"
    assert client.get("/v1/jobs/refine-x", headers=bearer(ADMIN)).status_code == 404
    wrong = {"requests": "s3://b/r.parquet", "request_id": "a b; rm -rf"}
    assert client.post("/v1/jobs", json=wrong, headers=bearer(ADMIN)).status_code == 422
