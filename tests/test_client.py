"""The client against the whole app on a real port: every word of the API, errors, retries."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from refining import FRAMES, click, label_video, labels, sessions, version
from serving import ADMIN, TOKENS, app_over, served

from workflows.client import ApiError, MaskmillClient, RevisionConflict
from workflows.refine_sessions import RefineSessions
from workflows.refine_types import RefinedFrame, RefinementResult, Span
from workflows.rows import Review, Source
from workflows.service_videos import VideoList
from workflows.storage import Storage

CORRECTION = click(1, 12, 80.0)


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path) -> Path:
    label_video(tmp_path, checkpoint, [click(1, 4, 20.0), click(2, 0, 100.0)])
    return tmp_path


@pytest.fixture
def opened(folder: Path, checkpoint: Path) -> Iterator[RefineSessions]:
    with sessions(folder, checkpoint) as opened:
        yield opened


@pytest.fixture
def url(opened: RefineSessions, folder: Path) -> Iterator[str]:
    videos = VideoList(str(folder / "labels"), Storage())
    with served(app_over(opened, videos)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[MaskmillClient]:
    with MaskmillClient(url, TOKENS["ada"], timeout_s=60, attempts=2) as client:
        yield client


def result_of(steps: Any) -> RefinementResult:
    result = list(steps)[-1]
    assert isinstance(result, RefinementResult)
    return result


def test_what_is_there_is_told_as_the_sessions_tell_it(
    client: MaskmillClient, opened: RefineSessions
) -> None:
    (listed,) = client.videos()
    assert (listed["video_id"], listed["objects"]) == ("v", 2)
    video = client.video("v")
    assert (video["revision"], video["num_frames"], len(video["tracks"])) == (1, FRAMES, 2)
    assert client.frame("v", 3)[:3] == b"\xff\xd8\xff"
    assert list(client.masks("v")) == list(opened.masks("v"))
    some = client.masks("v", [2], Span(3, 5), at=1)
    assert [f.frame_index for f in some] == [3, 4, 5]
    queue = client.queue(limit=10)
    assert {item.object_id for item in queue} == {1, 2}
    assert queue[0].source == Source.BULK
    assert client.queue(category=["dog", "cat"]) == []
    assert client.revisions("v") == list(opened.history("v"))


def test_a_click_becomes_a_revision(client: MaskmillClient, folder: Path) -> None:
    seen = client.preview("v", 1, 12, [CORRECTION], client="a", sequence=4)
    assert seen.sequence == 4
    steps = list(client.refine("v", 1, [CORRECTION]))
    frames = {s.frame_index: s.masks[0].counts for s in steps if isinstance(s, RefinedFrame)}
    result = result_of(iter(steps))
    assert (result.revision, result.objects[0].object_id) == (2, 1)
    after = labels(folder)
    assert after[12] == seen.masks[0].counts == frames[12]
    assert frames == {t: after[t] for t in frames}
    assert client.video("v")["tracks"][0]["author"] == "ada"


def test_the_same_request_is_committed_once(client: MaskmillClient, folder: Path) -> None:
    first = result_of(client.refine("v", 1, [CORRECTION], request_id="r"))
    committed = version(folder)
    again = result_of(client.refine("v", 1, [CORRECTION], request_id="r"))
    assert again.revision == first.revision
    assert version(folder) == committed


def test_drafts_reviews_and_earlier_revisions(client: MaskmillClient, folder: Path) -> None:
    before = labels(folder)
    draft_id = result_of(client.refine("v", 1, [CORRECTION], draft=True)).draft_id
    (draft,) = client.drafts("v")
    assert (draft.draft_id, draft.author, draft.is_stale) == (draft_id, "ada", False)
    drawn = {f.frame_index: f.masks[0].counts for f in client.draft_masks("v", draft.draft_id)}
    assert client.commit_draft("v", draft.draft_id).revision == 2
    assert labels(folder) == drawn != before
    assert client.accept("v", 2, object_ids=[1]) == 3
    assert client.accept("v", 3, Review.REJECTED, [2]) == 4
    assert client.restore("v", 4, 1, [1]).revision == 5
    assert labels(folder) == before
    kept = result_of(client.refine("v", 5, [CORRECTION], draft=True)).draft_id
    assert kept is not None
    client.discard_draft("v", kept)
    client.discard_draft("v", kept)
    assert client.drafts("v") == []
    gone = result_of(client.refine("v", 5, remove_object_ids=[2]))
    assert gone.objects[0].removed


def test_leaving_the_iterator_stops_the_work_and_commits_nothing(
    client: MaskmillClient, folder: Path
) -> None:
    committed = version(folder)
    steps = client.refine("v", 1, [CORRECTION])
    next(steps)
    steps.close()
    assert version(folder) == committed
    assert result_of(client.refine("v", 1, [CORRECTION])).revision == 2


def test_errors_are_exceptions_with_code_message_and_detail(
    client: MaskmillClient, url: str
) -> None:
    result_of(client.refine("v", 1, [CORRECTION]))
    with pytest.raises(RevisionConflict) as conflict:
        list(client.refine("v", 1, [click(1, 9, 30.0)]))
    assert (conflict.value.status, conflict.value.code) == (409, "conflict")
    assert conflict.value.detail["newest_revision"] == 2
    assert conflict.value.detail["author"] == "ada"
    with pytest.raises(ApiError, match="the video has frames 0 to 19") as wrong:
        client.preview("v", 2, 99, [click(1, 99, 1.0)])
    assert (wrong.value.status, wrong.value.code) == (422, "prompt_invalid")
    with pytest.raises(ApiError) as missing:
        client.video("a/b?c")
    assert (missing.value.status, missing.value.code) == (404, "not_found")
    with MaskmillClient(url, "no such token, however long") as stranger:
        with pytest.raises(ApiError) as refused:
            stranger.queue()
    assert refused.value.status == 401


def test_batches_are_submitted_and_asked_after(url: str) -> None:
    with MaskmillClient(url, ADMIN) as admin:
        job = admin.submit_job("s3://bucket/r.parquet", "night-7")
        assert job["job_id"] == "refine-night-7"
        assert admin.job(job["job_id"])["status"] == "RUNNING"


# A service that is busy, away or leaves midway.


@contextmanager
def scripted(answers: list[tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers in order, and what it was asked. -1: hangs up."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, body = answers[min(len(asked), len(answers)) - 1]
            if status < 0:
                self.close_connection = True
                return
            self.send_response(status)
            framing = {"content-length": str(len(body)), "connection": "close"}
            for name, value in {**framing, **headers}.items():
                self.send_header(name, value)  # `connection: close` hangs up behind the answer
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


BUSY = (
    503,
    {"retry-after": "3"},
    b'{"error": {"code": "busy", "message": "full", "detail": null}}',
)
EMPTY_QUEUE = (200, {}, b'{"items": []}')
AWAY = (-1, {}, b"")


def client_of(url: str, waited: list[float], attempts: int = 3) -> MaskmillClient:
    return MaskmillClient(url, "t", attempts=attempts, sleep=waited.append)


def test_a_busy_service_is_asked_again_when_it_says() -> None:
    waited: list[float] = []
    with scripted([BUSY, BUSY, EMPTY_QUEUE]) as (url, asked), client_of(url, waited) as client:
        assert client.queue(limit=5) == []
    assert waited == [3.0, 3.0]
    assert asked == ["GET /v1/queue?limit=5"] * 3


def test_after_the_last_attempt_the_answer_is_an_error() -> None:
    waited: list[float] = []
    with scripted([BUSY]) as (url, asked), client_of(url, waited) as client:
        with pytest.raises(ApiError, match="busy: full") as caught:
            client.queue()
    assert (caught.value.status, len(asked)) == (503, 3)


def test_what_may_be_sent_twice_survives_a_broken_connection_and_the_rest_does_not() -> None:
    waited: list[float] = []
    with scripted([AWAY, EMPTY_QUEUE]) as (url, asked), client_of(url, waited) as client:
        assert client.queue() == []
    with scripted([AWAY]) as (url, asked), client_of(url, waited) as client:
        with pytest.raises(ApiError) as caught:
            client.accept("v", 1)
    assert (caught.value.status, caught.value.code, len(asked)) == (0, "unreachable", 1)


def test_an_answer_that_is_not_of_this_api_is_told_as_it_is() -> None:
    with scripted([(502, {}, b"<h1>Bad gateway</h1>")]) as (url, _), client_of(url, []) as client:
        with pytest.raises(ApiError, match="Bad gateway") as caught:
            client.queue()
    assert (caught.value.status, caught.value.code) == (502, "unknown")


FRAME = {"frame_index": 0, "pts_s": 0.0, "height": 4, "width": 5, "masks": [], "sequence": None}


@pytest.mark.parametrize(
    ("last", "error", "said"),
    [
        (None, ApiError, "connection_lost"),
        ({"code": "conflict", "message": "v: newer", "detail": {}}, RevisionConflict, "v: newer"),
        ({"code": "internal", "message": "failed", "detail": None}, ApiError, "internal: failed"),
    ],
)
def test_a_stream_that_does_not_end_with_a_result_raises(
    last: dict[str, Any] | None, error: type[ApiError], said: str
) -> None:
    lines = [{"frame": FRAME}] + ([{"error": last}] if last else [])
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    with scripted([(200, {}, body)]) as (url, _), client_of(url, []) as client:
        steps = client.refine("v", 1, [CORRECTION])
        first = next(steps)
        assert isinstance(first, RefinedFrame) and first == replace(first, masks=())
        with pytest.raises(error, match=said):
            next(steps)
