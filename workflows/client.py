"""The service's HTTP API from Python, in its own words. Knows no model, table or Ray.

    client = MaskmillClient("https://labels.example.org", token)
    for item in client.queue(limit=10):
        print(item.video_id, item.object_id, item.frame_index, item.doubt)
    revision = client.video("cups")["revision"]
    click = {"object_id": 1, "frame_index": 212, "points": [{"x": 640, "y": 410, "positive": True}]}
    for step in client.refine("cups", revision, [click], until_converged=True):
        ...  # a RefinedFrame each, then the RefinementResult; leaving the loop stops the work

Whoever owns the token is the author. A service that is busy is asked again when it says; what may
safely be sent twice is sent again after a broken connection.
"""

import json
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import requests

from workflows.prompt_rows import PromptRow
from workflows.refine_types import (
    WHOLE_VIDEO,
    Draft,
    ObjectMask,
    QueueItem,
    RefinedFrame,
    RefinedObject,
    RefinementResult,
    RevisionInfo,
    Span,
)
from workflows.rows import Review, Source

Json = dict[str, Any]
Record = TypeVar("Record")

BUSY = 503
CONFLICT = 409
FIRST_WAIT_S = 0.5  # where a busy service does not say when to ask again; doubles
LONGEST_WAIT_S = 60.0


class ApiError(Exception):
    """What the service answered instead. status 0: it could not be reached, or left midway.

    code and detail are for programs; OpenAPI at /v1/openapi.json lists them.
    """

    def __init__(
        self, status: int, code: str, message: str, detail: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message = status, code, message
        self.detail: dict[str, Any] = dict(detail or {})


class RevisionConflict(ApiError):
    """Somebody changed an object since the base; detail names newest_revision and its author."""


class MaskmillClient:
    """Calls one service. For one thread at a time; close it, or use it in a `with`.

    timeout_s: to connect, and between two pieces of an answer. attempts: of one call.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_s: float = 120.0,
        attempts: int = 6,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s, self._attempts, self._sleep = timeout_s, attempts, sleep
        self._http = requests.Session()
        self._http.headers["authorization"] = f"Bearer {token}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Look.

    def videos(self, **wanted: Any) -> Iterator[Json]:
        """Videos with what is known of their labels, all pages; filters as `GET /videos` takes."""
        cursor: str | None = None
        while True:
            page = self._get("/videos", {**wanted, "cursor": cursor})
            yield from page["videos"]
            cursor = page["next"]
            if cursor is None:
                return

    def video(self, video_id: str) -> Json:
        """A video and its newest labels, as `GET /videos/{id}` says."""
        return self._get(_of_video(video_id))

    def frame(self, video_id: str, frame_index: int) -> bytes:
        """One frame as the model sees it, JPEG."""
        path = f"{_of_video(video_id)}/frames/{frame_index}.jpg"
        return self._call("GET", path, repeatable=True).content

    def masks(
        self,
        video_id: str,
        object_ids: Sequence[int] | None = None,
        span: Span = WHOLE_VIDEO,
        at: int | datetime | None = None,
    ) -> Iterator[RefinedFrame]:
        """Labels as they are, or were at a revision or time."""
        last = "" if span.last_frame is None else span.last_frame
        wanted: Json = {"frames": f"{span.first_frame}:{last}", "at": at}
        if isinstance(at, datetime):
            wanted["at"] = at.isoformat()
        if object_ids is not None:
            wanted["objects"] = ",".join(map(str, object_ids))
        return map(_frame, self._lines("GET", f"{_of_video(video_id)}/masks", params=wanted))

    def queue(self, **wanted: Any) -> list[QueueItem]:
        """Objects to review, the most doubtful first; filters as `GET /queue` takes them."""
        return [_queue_item(item) for item in self._get("/queue", wanted)["items"]]

    def revisions(self, video_id: str) -> list[RevisionInfo]:
        """All revisions, newest first."""
        found = self._get(f"{_of_video(video_id)}/revisions")["revisions"]
        return [_revision(row) for row in found]

    # Refine.

    def preview(
        self,
        video_id: str,
        base_revision: int,
        frame_index: int,
        prompts: Sequence[PromptRow],
        *,
        client: str = "",
        sequence: int | None = None,
    ) -> RefinedFrame:
        """Masks of one frame with these prompts; nothing is kept."""
        body = {
            "base_revision": base_revision,
            "frame_index": frame_index,
            "prompts": list(prompts),
            "client": client,
            "sequence": sequence,
        }
        path = f"{_of_video(video_id)}/preview"
        return _frame(self._call("POST", path, body=body, repeatable=True).json())

    def refine(
        self,
        video_id: str,
        base_revision: int,
        prompts: Sequence[PromptRow] = (),
        *,
        object_ids: Sequence[int] = (),
        remove_object_ids: Sequence[int] = (),
        span: Span = WHOLE_VIDEO,
        until_converged: bool = False,
        draft: bool = False,
        request_id: str | None = None,
    ) -> Generator[RefinedFrame | RefinementResult, None, None]:
        """Frames as they are computed, then the result. Closing the iterator stops the work.

        request_id: the same one is committed once; made up where there is none. Raises
        RevisionConflict where the base is stale, and ApiError with status 0 where the connection
        breaks after the first frame: the same request_id may then be sent again.
        """
        name = request_id or uuid.uuid4().hex
        body = {
            "base_revision": base_revision,
            "prompts": list(prompts),
            "object_ids": list(object_ids),
            "remove_object_ids": list(remove_object_ids),
            "span": {"first_frame": span.first_frame, "last_frame": span.last_frame},
            "until_converged": until_converged,
            "draft": draft,
            "request_id": name,
        }
        path = f"{_of_video(video_id)}/refinements"
        with closing(self._lines("POST", path, body=body)) as lines:
            for line in lines:
                if line.get("error") is not None:
                    raise _error(0, line["error"])
                if line.get("result") is not None:
                    yield _result(line["result"])
                    return
                yield _frame(line["frame"])
        if draft:
            return
        raise ApiError(0, "connection_lost", f"{video_id}: no result; send {name} again")

    def accept(
        self,
        video_id: str,
        base_revision: int,
        review: Review = Review.ACCEPTED,
        object_ids: Sequence[int] | None = None,
    ) -> int:
        """Accept, reject or reopen objects, all by default; the new revision."""
        ids = None if object_ids is None else list(object_ids)
        body = {"base_revision": base_revision, "review": str(review), "object_ids": ids}
        answer = self._call("POST", f"{_of_video(video_id)}/accept", body=body).json()
        return int(answer["revision"])

    def restore(
        self,
        video_id: str,
        base_revision: int,
        revision: int,
        object_ids: Sequence[int] | None = None,
    ) -> RefinementResult:
        """A new revision that shows objects as they were at an earlier one."""
        ids = None if object_ids is None else list(object_ids)
        body = {"base_revision": base_revision, "revision": revision, "object_ids": ids}
        return _result(self._call("POST", f"{_of_video(video_id)}/restore", body=body).json())

    def drafts(self, video_id: str) -> list[Draft]:
        """The caller's own, oldest first."""
        return [_draft(row) for row in self._get(f"{_of_video(video_id)}/drafts")["drafts"]]

    def draft_masks(self, video_id: str, draft_id: str) -> Iterator[RefinedFrame]:
        """The masks that a draft would commit."""
        path = f"{_of_video(video_id)}/drafts/{quote(draft_id, safe='')}/masks"
        return map(_frame, self._lines("GET", path))

    def commit_draft(self, video_id: str, draft_id: str) -> RefinementResult:
        """Make a draft the newest revision."""
        path = f"{_of_video(video_id)}/drafts/{quote(draft_id, safe='')}/commit"
        return _result(self._call("POST", path).json())

    def discard_draft(self, video_id: str, draft_id: str) -> None:
        """Delete a draft; one that is gone is as good."""
        path = f"{_of_video(video_id)}/drafts/{quote(draft_id, safe='')}"
        self._call("DELETE", path, repeatable=True)

    # Batches.

    def submit_job(self, requests_uri: str, request_id: str | None = None) -> Json:
        """Have a file of requests carried out by the cluster; the same request_id once."""
        body = {"requests": requests_uri, "request_id": request_id}
        repeatable = request_id is not None
        answer: Json = self._call("POST", "/jobs", body=body, repeatable=repeatable).json()
        return answer

    def job(self, job_id: str) -> Json:
        """How far a batch has come."""
        return self._get(f"/jobs/{quote(job_id, safe='')}")

    # HTTP.

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Json:
        answer: Json = self._call("GET", path, params=params, repeatable=True).json()
        return answer

    def _lines(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        body: Json | None = None,
    ) -> Generator[Json, None, None]:
        """The lines of an NDJSON answer as they come; leaving early closes the connection."""
        response = self._call(method, path, params, body, repeatable=True, stream=True)
        with closing(response):
            try:
                for line in response.iter_lines():
                    if line:
                        yield json.loads(line)
            except requests.RequestException as error:
                raise ApiError(0, "connection_lost", f"{path}: {error}") from error

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        body: Json | None = None,
        *,
        repeatable: bool = False,
        stream: bool = False,
    ) -> requests.Response:
        """The answer, once its status says that all is well."""
        wait_s = FIRST_WAIT_S
        for attempt in range(1, self._attempts + 1):
            is_last = attempt == self._attempts
            try:
                response = self._http.request(
                    method,
                    f"{self._url}/v1{path}",
                    params={k: v for k, v in (params or {}).items() if v is not None},
                    json=body,
                    timeout=self._timeout_s,
                    stream=stream,
                )
            except requests.RequestException as error:
                if is_last or not repeatable:
                    raise ApiError(0, "unreachable", f"{self._url}: {error}") from error
                self._sleep(wait_s)
            else:
                if response.ok:
                    return response
                if response.status_code != BUSY or is_last:
                    raise _error_of(response)
                # The service refused it before it did anything, whatever it is.
                told_s = response.headers.get("retry-after", "")
                response.close()
                self._sleep(min(float(told_s), LONGEST_WAIT_S) if told_s.isdigit() else wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        raise AssertionError("attempts is at least 1")


def _of_video(video_id: str) -> str:
    return f"/videos/{quote(video_id, safe='')}"


def _error_of(response: requests.Response) -> ApiError:
    with closing(response):
        try:
            return _error(response.status_code, response.json()["error"])
        except (ValueError, KeyError, TypeError):  # a proxy's answer, or none of this API
            text = " ".join(response.text.split())[:200] or response.reason
            return ApiError(response.status_code, "unknown", text)


def _error(status: int, said: Json) -> ApiError:
    is_conflict = said["code"] == "conflict"
    kind = RevisionConflict if is_conflict else ApiError
    return kind(
        CONFLICT if is_conflict else status, said["code"], said["message"], said.get("detail")
    )


def _frame(row: Json) -> RefinedFrame:
    masks = tuple(
        ObjectMask(**{**mask, "box": tuple(mask["box"]) if mask["box"] else None})
        for mask in row["masks"]
    )
    return _record(RefinedFrame, row, masks=masks)


def _object(row: Json) -> RefinedObject:
    return _record(
        RefinedObject,
        row,
        converged_frames=tuple(row["converged_frames"]),
        flags=tuple(row["flags"]),
    )


def _result(row: Json) -> RefinementResult:
    return _record(RefinementResult, row, objects=tuple(map(_object, row["objects"])))


def _queue_item(row: Json) -> QueueItem:
    source, review = Source(row["source"]), Review(row["review"])
    return _record(QueueItem, row, source=source, review=review, flags=tuple(row["flags"]))


def _draft(row: Json) -> Draft:
    return _record(
        Draft,
        row,
        created_at=datetime.fromisoformat(row["created_at"]),
        objects=tuple(map(_object, row["objects"])),
        prompts=tuple(row["prompts"]),
    )


def _revision(row: Json) -> RevisionInfo:
    made = row["created_at"]
    return _record(
        RevisionInfo,
        row,
        source=Source(row["source"]),
        review=Review(row["review"]),
        created_at=None if made is None else datetime.fromisoformat(made),
        object_ids=tuple(row["object_ids"]),
        removed_object_ids=tuple(row["removed_object_ids"]),
    )


def _record(cls: Callable[..., Record], row: Json, **read: Any) -> Record:
    """Of the fields that the record has; a newer service may tell more."""
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # all are dataclasses
    return cls(**{name: value for name, value in {**row, **read}.items() if name in names})
