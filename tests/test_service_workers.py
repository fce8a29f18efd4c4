"""Workers by themselves: clicks that were overtaken, streams that nobody reads, turns."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
import requests
from scripted_refinements import Scene, ScriptedRefinements, ScriptedVideos
from serving import app_over, bearer, known_tokens, served

from workflows.prompt_rows import PromptRow
from workflows.refine_types import PreviewRequest, RefinedFrame, RefinementRequest
from workflows.service_config import RequestLimits
from workflows.service_errors import ServiceError, busy
from workflows.service_http import make_app
from workflows.service_routes import Backend
from workflows.service_workers import ModelWorker

CLICK: PromptRow = {
    "object_id": 1,
    "frame_index": 5,
    "points": [{"x": 76.0, "y": 102.0, "positive": True}],
}


FRAMES = 60


class Gated(ScriptedRefinements):
    """A preview waits until the gate is open."""

    def __init__(self) -> None:
        super().__init__({"v1": Scene(num_frames=FRAMES)})
        self.label("v1")
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.previews: list[int | None] = []

    def preview(self, request: PreviewRequest) -> RefinedFrame:
        self.begun.set()
        assert self.gate.wait(120)
        self.previews.append(request.sequence)
        return super().preview(request)


@pytest.fixture
def gated() -> Gated:
    return Gated()


def click(sequence: int, client: str = "c") -> PreviewRequest:
    return PreviewRequest(
        video_id="v1",
        base_revision=1,
        frame_index=5,
        prompts=(CLICK,),
        client=client,
        sequence=sequence,
    )


def test_of_clicks_that_wait_only_the_newest_of_each_client_is_computed(gated: Gated) -> None:
    worker = ModelWorker(gated)

    async def ask() -> list[Any]:
        first = asyncio.create_task(worker.preview("v1", click(1)))
        await asyncio.to_thread(gated.begun.wait, 10)
        later = [worker.preview("v1", click(n)) for n in (2, 3, 4)]
        others = [worker.preview("v1", click(1, client="other"))]
        tasks = [asyncio.create_task(one) for one in [*later, *others]]
        await asyncio.sleep(0.05)
        gated.gate.set()
        return list(await asyncio.gather(first, *tasks))

    answers = asyncio.run(ask())
    codes = [one.code if isinstance(one, ServiceError) else "ok" for one in answers]
    assert codes == ["ok", "superseded", "superseded", "ok", "ok"]
    assert gated.previews == [1, 4, 1]


def test_a_click_that_comes_after_a_newer_one_is_dropped(gated: Gated) -> None:
    gated.gate.set()
    worker = ModelWorker(gated)

    async def ask(*sequences: int) -> list[Any]:
        return [await worker.preview("v1", click(n)) for n in sequences]

    newer, older, same = asyncio.run(ask(7, 6, 7))
    assert isinstance(newer, bytes) and isinstance(same, bytes)
    assert isinstance(older, ServiceError)
    assert (older.status, older.code) == (409, "superseded")


def test_a_click_does_not_wait_for_a_stream(gated: Gated) -> None:
    gated.gate.set()
    gated.step_s = 0.02
    worker = ModelWorker(gated)
    request = RefinementRequest(video_id="v1", base_revision=1, author="ada", prompts=(CLICK,))

    before = gated.steps

    async def ask() -> tuple[int, int]:
        lines = worker.refine("v1", request)
        await anext(lines)
        assert isinstance(await worker.preview("v1", click(1)), bytes)
        steps, seen = gated.steps - before, 1
        async for _ in lines:
            seen += 1
        return steps, seen

    steps, seen = asyncio.run(ask())
    assert steps < FRAMES / 2  # when the click was answered
    assert seen == FRAMES + 1  # and the stream went on to its end


def test_a_stream_that_is_closed_stops_within_a_step(gated: Gated) -> None:
    worker = ModelWorker(gated)
    request = RefinementRequest(video_id="v1", base_revision=1, author="ada", prompts=(CLICK,))
    before = gated.steps

    async def ask() -> None:
        lines = worker.refine("v1", request)
        for _ in range(3):
            await anext(lines)
        await lines.aclose()

    asyncio.run(ask())
    worker.close()
    assert gated.steps - before <= 4
    assert gated.open_streams == 0
    assert gated.open("v1").revision == 1


def test_a_stream_that_is_refused_says_so_and_nothing_else(gated: Gated) -> None:
    worker = ModelWorker(gated)
    request = RefinementRequest(video_id="v1", base_revision=9, author="ada", prompts=(CLICK,))

    async def ask() -> list[Any]:
        return [item async for item in worker.refine("v1", request)]

    (item,) = asyncio.run(ask())
    assert isinstance(item, ServiceError) and item.status == 422


# The same over HTTP, where only the connection tells that nobody listens.


@pytest.fixture
def slow() -> ScriptedRefinements:
    made = ScriptedRefinements({"v1": Scene(num_frames=400)})
    made.label("v1")
    made.step_s = 0.05  # all of them take 20 s
    return made


@pytest.fixture
def url(slow: ScriptedRefinements) -> Iterator[str]:
    with served(app_over(slow, ScriptedVideos(slow))) as where:
        yield where


def refine(url: str, **body: Any) -> requests.Response:
    wanted = {"base_revision": 1, "prompts": [CLICK], **body}
    where = f"{url}/v1/videos/v1/refinements"
    return requests.post(where, json=wanted, headers=bearer(), stream=True, timeout=120)


def stopped_at(slow: ScriptedRefinements) -> int:
    """Frames computed, once no more are."""
    for _ in range(3000):
        if slow.open_streams == 0:
            return slow.steps
        time.sleep(0.02)
    raise AssertionError("the stream goes on")


@pytest.mark.cluster
def test_closing_the_connection_stops_the_work_and_commits_nothing(
    url: str, slow: ScriptedRefinements
) -> None:
    before = slow.steps
    with refine(url) as response:
        lines = response.iter_lines()
        for _ in range(5):
            next(lines)
    assert stopped_at(slow) - before < 300  # of 400; by how many steps is shown above
    assert slow.open("v1").revision == 1 and slow.drafts("v1") == ()


@pytest.mark.cluster
def test_a_draft_that_is_cancelled_keeps_what_was_computed(
    url: str, slow: ScriptedRefinements
) -> None:
    with refine(url, draft=True) as response:
        lines = response.iter_lines()
        for _ in range(5):
            next(lines)
    stopped_at(slow)
    (draft,) = slow.drafts("v1", "ada")
    assert 5 <= len(list(slow.draft_masks("v1", draft.draft_id))) < 400
    assert slow.open("v1").revision == 1


@pytest.mark.cluster
def test_frames_arrive_as_they_are_computed(url: str, slow: ScriptedRefinements) -> None:
    before = slow.steps
    with refine(url) as response:
        assert response.status_code == 200
        first = json.loads(next(response.iter_lines()))
    assert first["frame"]["frame_index"] == 0
    assert slow.steps - before < 400


class Overrun:
    """No replica has room, or the stream breaks after some lines."""

    def __init__(self, lines: int) -> None:
        self.lines = lines

    async def call(self, method: str, video_id: str | None, *args: Any) -> Any:
        if method == "num_frames":
            return 10
        raise busy("too much is waiting already", 2.0)

    async def stream(self, method: str, video_id: str, *args: Any) -> AsyncGenerator[bytes]:
        for number in range(self.lines):
            yield b'{"frame": %d}\n' % number
        raise busy("the replica went away; another takes over", code="replica_lost")


def post(lines: int, path: str, limits: RequestLimits | None = None) -> Any:
    from starlette.testclient import TestClient

    caller = Overrun(lines)
    app = make_app(
        Backend(caller, caller, None),  # type: ignore[arg-type]  # no jobs here
        known_tokens(),
        limits or RequestLimits(),
    )
    body: dict[str, Any] = {"base_revision": 1, "prompts": [CLICK]}
    if path == "preview":
        body["frame_index"] = 5
    with TestClient(app, headers=bearer()) as client:
        answer = client.post(f"/v1/videos/v1/{path}", json=body)
        return answer, client.get("/metrics").text


@pytest.mark.parametrize("path", ["preview", "refinements"])
def test_a_full_queue_is_a_503_with_retry_after(path: str) -> None:
    answer, _ = post(0, path)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["detail"] == {"retry_after_s": 2.0}


def test_a_stream_that_breaks_ends_with_an_error_line() -> None:
    answer, metrics = post(3, "refinements")
    assert answer.status_code == 200
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[:3] == [{"frame": 0}, {"frame": 1}, {"frame": 2}]
    assert lines[3]["error"]["code"] == "replica_lost"
    assert 'maskmill_stream_ends_total{end="failed",replica="local"} 1.0' in metrics
    assert 'maskmill_streams{replica="local"} 0.0' in metrics


def test_a_preview_that_takes_too_long_is_given_up(gated: Gated) -> None:
    from starlette.testclient import TestClient

    limits = RequestLimits(preview_deadline_s=0.1)
    app = app_over(gated, ScriptedVideos(gated), limits)
    body = {"base_revision": 1, "frame_index": 5, "prompts": [CLICK]}
    with TestClient(app, headers=bearer()) as client:
        answer = client.post("/v1/videos/v1/preview", json=body)
        gated.gate.set()
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "timeout"
    assert int(answer.headers["retry-after"]) >= 1
