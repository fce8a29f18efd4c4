"""The routes under /v1: what may be asked, by whom and how much; who is asked then.

Knows nothing of models, tables or Ray. Answers are bytes as a replica made them.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer
from starlette.types import Receive, Scope, Send

from workflows.query import QueryError, parse_at
from workflows.refine_types import QueueFilter, Span
from workflows.rows import Review, Source, Status
from workflows.service_auth import Caller as Person
from workflows.service_auth import Scope as TokenScope
from workflows.service_auth import unauthorized
from workflows.service_bodies import (
    MAX_INT32,
    AcceptBody,
    DraftsAnswer,
    FrameLine,
    Index,
    JobAnswer,
    JobBody,
    PreviewBody,
    PromptBody,
    QueueAnswer,
    RefinementBody,
    RefinementLine,
    RestoreBody,
    ResultAnswer,
    ReviewAnswer,
    RevisionsAnswer,
    VideoAnswer,
    VideosAnswer,
)
from workflows.service_config import RequestLimits
from workflows.service_errors import ServiceError, busy, internal
from workflows.service_json import encode, line
from workflows.service_metrics import Metrics
from workflows.service_videos import Sort, VideoQuery

log = logging.getLogger(__name__)

NDJSON = "application/x-ndjson"
FOR_EVER = "private, max-age=31536000, immutable"
BEARER = HTTPBearer(auto_error=False, description="A token of the service's configuration.")


class Caller(Protocol):
    """Replicas of one kind. Methods are called by name, with the video's id first if there is one.

    All calls about a video meet the same replica while it lives. Both raise ServiceError for what a
    replica tells, and where there is none to be had.
    """

    async def call(self, method: str, video_id: str | None, *args: Any) -> Any: ...

    def stream(self, method: str, video_id: str, *args: Any) -> AsyncGenerator[bytes]:
        """Items as they are made; closing it stops the work."""
        ...


class BatchJobs(Protocol):
    """Batches of refinements, submitted to a cluster. Raise ServiceError."""

    def submit(self, requests: str, request_id: str | None) -> dict[str, Any]: ...

    def status(self, job_id: str) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """Who does the work: `library` what needs no model, `models` the rest, `jobs` the batches."""

    library: Caller
    models: Caller
    jobs: BatchJobs


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes have in common."""

    backend: Backend
    limits: RequestLimits
    metrics: Metrics
    # the loop itself holds tasks only weakly
    in_background: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it while nobody waits for it."""
        task = asyncio.create_task(work)
        self.in_background.add(task)
        task.add_done_callback(self.in_background.discard)


class Lines(StreamingResponse):
    """NDJSON whose source is closed however the answer ends, so that work for nobody stops."""

    media_type = NDJSON

    def __init__(self, lines: AsyncGenerator[bytes], status_code: int = 200) -> None:
        super().__init__(lines, status_code)
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._lines.aclose()


def needs(scope: TokenScope) -> Any:
    """A dependency: the person of this request, whose token has that scope."""

    async def person(request: Request, _: Annotated[Any, Depends(BEARER)]) -> Person:
        found: Person | None = getattr(request.state, "person", None)
        if found is None:
            raise unauthorized("no bearer token")
        found.check(scope)
        return found

    return Depends(person)


Reader = Annotated[Person, needs("read")]
Refiner = Annotated[Person, needs("refine")]
Admin = Annotated[Person, needs("admin")]


def reading_routes(service: Service) -> APIRouter:
    """Videos, frames, masks, revisions and the queue."""
    router = APIRouter(prefix="/v1", tags=["look"])
    library, limits = service.backend.library, service.limits
    Limit = Annotated[int, Query(ge=1, le=limits.max_page)]
    page = min(100, limits.max_page)

    @router.get("/videos", **answers(VideosAnswer))
    async def videos(
        person: Reader,
        search: Annotated[str, Query(max_length=200, description="part of the id")] = "",
        status: Status | None = None,
        review: Annotated[Review | None, Query(description="has an object that is")] = None,
        category: Annotated[str | None, Query(max_length=200)] = None,
        min_doubt: Annotated[float | None, Query(ge=0, le=1)] = None,
        sort: Sort = "doubt",
        limit: Limit = page,
        cursor: Annotated[str | None, Query(max_length=4000)] = None,
    ) -> Response:
        """Videos with what is known of their labels, a page at a time."""
        wanted = VideoQuery(
            search=search,
            status=status,
            review=review,
            category=category,
            min_doubt=min_doubt,
            sort=sort,
            limit=limit,
            cursor=cursor,
        )
        return as_json(await library.call("videos", None, wanted))

    @router.get("/queue", **answers(QueueAnswer))
    async def queue(
        person: Reader,
        video: Annotated[list[str] | None, Query()] = None,
        category: Annotated[list[str] | None, Query()] = None,
        source: Annotated[list[Source] | None, Query()] = None,
        kind: Annotated[list[str] | None, Query(description="of a flag")] = None,
        review: Annotated[list[Review] | None, Query()] = None,
        min_doubt: Annotated[float, Query(ge=0, le=1)] = 0.0,
        limit: Limit = page,
        offset: Annotated[int, Query(ge=0, le=MAX_INT32)] = 0,
    ) -> Response:
        """Objects to look at, the most doubtful first, and the frame to click on."""
        wanted = QueueFilter(
            video_ids=_tuple(video),
            categories=_tuple(category),
            sources=_tuple(source),
            kinds=_tuple(kind),
            reviews=_tuple(review) or (Review.OPEN,),
            min_doubt=min_doubt,
            limit=limit,
            offset=offset,
        )
        return as_json(await library.call("queue", None, wanted))

    @router.get("/videos/{video_id:path}/frames/{frame_index}.jpg", **answers_jpeg())
    async def frame(person: Reader, video_id: str, frame_index: Index) -> Response:
        """One frame as the model sees it: upright, counted from 0 in the order of showing."""
        data = await library.call("frame", video_id, frame_index)
        return Response(data, media_type="image/jpeg", headers={"cache-control": FOR_EVER})

    # before the masks of a video, whose id may hold slashes
    @router.get("/videos/{video_id:path}/drafts/{draft_id}/masks", **answers_lines(FrameLine))
    async def draft_masks(person: Reader, video_id: str, draft_id: str) -> Lines:
        """The masks that a draft would commit."""
        return await lines_of(service, library.stream("draft_masks", video_id, draft_id))

    @router.get("/videos/{video_id:path}/masks", **answers_lines(FrameLine))
    async def masks(
        person: Reader,
        video_id: str,
        frames: Annotated[
            str | None,
            Query(description="first:last, both included", examples=["30:120"], max_length=40),
        ] = None,
        objects: Annotated[
            str | None, Query(description="object ids, as 1,2", examples=["1,2"], max_length=4000)
        ] = None,
        at: Annotated[
            str | None,
            Query(
                description="a revision, or a time in ISO 8601, UTC unless it says", max_length=40
            ),
        ] = None,
        counts: Annotated[bool, Query(description="with the run lengths")] = True,
    ) -> Lines:
        """Masks as they are, or were, a line a frame."""
        span = _span_of(frames)
        await check_frames(service, video_id, span)
        wanted = (_ids_of(objects), span, _moment_of(at), counts)
        return await lines_of(service, library.stream("masks", video_id, *wanted))

    @router.get("/videos/{video_id:path}/revisions", **answers(RevisionsAnswer))
    async def revisions(person: Reader, video_id: str) -> Response:
        """All revisions, newest first."""
        return as_json(await library.call("revisions", video_id))

    @router.get("/videos/{video_id:path}/drafts", **answers(DraftsAnswer))
    async def drafts(person: Reader, video_id: str) -> Response:
        """The caller's own drafts, oldest first."""
        return as_json(await library.call("drafts", video_id, person.name))

    @router.get("/videos/{video_id:path}", **answers(VideoAnswer))
    async def video(
        person: Reader,
        video_id: str,
        warm: Annotated[bool, Query(description="prepare for clicks")] = False,
    ) -> Response:
        """A video and its newest labels."""
        answer = await library.call("video", video_id)
        if warm and "refine" in person.scopes:
            service.begin(_warm(service, video_id))
        return as_json(answer)

    return router


def refining_routes(service: Service) -> APIRouter:
    """Clicks, propagation, drafts, reviews."""
    router = APIRouter(prefix="/v1", tags=["refine"])
    library, models, limits = service.backend.library, service.backend.models, service.limits

    @router.post("/videos/{video_id:path}/preview", **answers(FrameLine))
    async def preview(person: Refiner, video_id: str, body: PreviewBody) -> Response:
        """The masks of one frame with these prompts. Nothing is kept."""
        check_prompts(limits, body.prompts)
        request = body.to_request(video_id)
        async with deadline(limits.preview_deadline_s, "the preview"):
            return as_json(await models.call("preview", video_id, request))

    @router.post("/videos/{video_id:path}/refinements", **answers_lines(RefinementLine))
    async def refinements(person: Refiner, video_id: str, body: RefinementBody) -> Lines:
        """Frames as they are computed, then the revision or the draft.

        Closing the connection stops the work within a frame: nothing is committed, and a draft
        keeps what was computed until then. An error after the first line is the last line.
        """
        check_prompts(limits, body.prompts)
        request = body.to_request(video_id, person.name)
        await check_frames(service, video_id, request.span)
        return await lines_of(service, models.stream("refine", video_id, request))

    @router.post("/videos/{video_id:path}/accept", **answers(ReviewAnswer))
    async def accept(person: Refiner, video_id: str, body: AcceptBody) -> Response:
        """Accept, reject or reopen objects, as a new revision of the same masks."""
        judged = (body.base_revision, body.verdict(), person.name, body.object_ids)
        return as_json(await library.call("review", video_id, *judged))

    @router.post("/videos/{video_id:path}/restore", **answers(ResultAnswer))
    async def restore(person: Refiner, video_id: str, body: RestoreBody) -> Response:
        """A new revision that shows objects as they were at an earlier one."""
        wanted = (body.base_revision, body.revision, person.name, body.object_ids)
        return as_json(await library.call("restore", video_id, *wanted))

    @router.post("/videos/{video_id:path}/drafts/{draft_id}/commit", **answers(ResultAnswer))
    async def commit_draft(person: Refiner, video_id: str, draft_id: str) -> Response:
        """Make a draft the newest revision."""
        return as_json(await library.call("commit_draft", video_id, draft_id))

    @router.delete(
        "/videos/{video_id:path}/drafts/{draft_id}", status_code=204, response_class=Response
    )
    async def discard_draft(person: Refiner, video_id: str, draft_id: str) -> Response:
        """Delete a draft; one that is gone is as good."""
        await library.call("discard_draft", video_id, draft_id)
        return Response(status_code=204)

    return router


def job_routes(service: Service) -> APIRouter:
    """Batches, carried out by the cluster rather than by this service."""
    router = APIRouter(prefix="/v1", tags=["batch"])
    jobs = service.backend.jobs

    @router.post("/jobs", status_code=202, **answers(JobAnswer, 202))
    async def submit(person: Admin, body: JobBody) -> Response:
        """Submit a batch of refinements; the same request_id is submitted once."""
        job = await asyncio.to_thread(jobs.submit, body.requests, body.request_id)
        return as_json(encode(job), 202)

    @router.get("/jobs/{job_id}", **answers(JobAnswer))
    async def status(person: Admin, job_id: str) -> Response:
        """How far a batch has come."""
        return as_json(encode(await asyncio.to_thread(jobs.status, job_id)))

    return router


def answers(model: type[Any], status: int = 200) -> dict[str, Any]:
    """How a route with a JSON answer is described; the answer is bytes and not checked again."""
    described = {status: {"model": model}}
    return {"response_model": None, "responses": described, "response_class": JsonBytes}


def answers_lines(model: type[Any]) -> dict[str, Any]:
    described = {200: {"model": model, "description": "a line of JSON each"}}
    return {"response_model": None, "responses": described, "response_class": Lines}


def answers_jpeg() -> dict[str, Any]:
    content = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    described = {200: {"content": content, "description": "JPEG"}}
    return {"response_model": None, "responses": described, "response_class": Response}


class JsonBytes(Response):
    media_type = "application/json"


def as_json(data: bytes, status: int = 200) -> JsonBytes:
    return JsonBytes(data, status)


async def lines_of(service: Service, lines: AsyncGenerator[bytes]) -> Lines:
    """An answer that is sent as it is made.

    The first line is waited for before 200 is said, so that a request which is refused is refused
    by its status.
    """
    limit_s = service.limits.first_frame_deadline_s
    try:
        async with deadline(limit_s, "the first frame"):
            first = await anext(lines, b"")
    except BaseException:
        await lines.aclose()
        raise
    return Lines(_rest(service, first, lines))


async def _rest(
    service: Service, first: bytes, lines: AsyncGenerator[bytes]
) -> AsyncGenerator[bytes]:
    with service.metrics.stream() as end:
        async with aclosing(lines):
            try:
                yield first
                async for item in lines:
                    yield item
                end.how = "whole"
            except ServiceError as error:
                end.how = "failed"
                yield line(error.to_json())
            except Exception as error:
                end.how = "failed"
                yield line(internal(error).to_json())


class deadline:  # noqa: N801 (reads as `async with deadline(…)`)
    """A time limit that is answered with 503: the request may be sent again."""

    def __init__(self, limit_s: float, what: str) -> None:
        self._limit_s = limit_s
        self._what = what
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError as error:
            message = f"{self._what} did not come within {self._limit_s:g} s"
            raise busy(message, code="timeout") from error


def check_prompts(limits: RequestLimits, prompts: list[PromptBody]) -> None:
    """Raise ServiceError 413 beyond the limits."""
    points = max((len(prompt.points) for prompt in prompts), default=0)
    for got, most, what in (
        (len(prompts), limits.max_prompts, "prompts"),
        (points, limits.max_points, "points in one prompt"),
    ):
        if got > most:
            message = f"{got} {what}; wanted at most {most} in one request"
            raise ServiceError(413, "too_large", message, {"limit": most})


async def check_frames(service: Service, video_id: str, span: Span) -> None:
    """Raise ServiceError 413 for more frames than one request may ask for."""
    most = service.limits.max_frames
    last = span.last_frame
    if last is None:
        num_frames: int = await service.backend.library.call("num_frames", video_id)
        last = num_frames - 1
    if last < span.first_frame:
        if span.last_frame is None:
            return  # beyond the end: there is nothing, or the refinement says so
        raise ServiceError(422, "invalid", f"frames {span.first_frame} to {last}: none")
    if last - span.first_frame + 1 > most:
        message = f"frames {span.first_frame} to {last}; wanted at most {most} in one request"
        raise ServiceError(413, "too_large", message, {"limit": most})


def _span_of(frames: str | None) -> Span:
    if frames is None:
        return Span()
    found = re.fullmatch(r"(\d{1,9}):(\d{0,9})", frames, re.ASCII)
    if found is None:
        raise ServiceError(422, "invalid", f"frames {frames!r}: wanted first:last, as 30:120")
    return Span(int(found[1]), int(found[2]) if found[2] else None)


def _ids_of(objects: str | None) -> tuple[int, ...] | None:
    if objects is None:
        return None
    if re.fullmatch(r"\d{1,10}(,\d{1,10})*", objects, re.ASCII) is None:
        raise ServiceError(422, "invalid", f"objects {objects!r}: wanted ids, as 1,2")
    return tuple(int(one) for one in objects.split(","))


def _moment_of(at: str | None) -> int | datetime | None:
    if at is None:
        return None
    try:
        return parse_at(at)
    except QueryError as error:
        raise ServiceError(422, "invalid", f"at {error}") from error


def _tuple(values: list[Any] | None) -> Any:
    return None if values is None else tuple(values)


async def _warm(service: Service, video_id: str) -> None:
    try:
        await service.backend.models.call("warm", video_id)
    except ServiceError as error:
        log.info("%s: not warmed: %s", video_id, error)
