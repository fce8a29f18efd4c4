"""What can go wrong for a caller of the service, as one exception that travels between processes.

Knows nothing of HTTP servers or Ray. Only errors that the input or the moment explains are turned
into one; anything else stays what it is, and is answered as `internal` where it surfaces.
"""

import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from workflows.refine_types import (
    DraftNotFound,
    RefinementConflict,
    RefinementError,
    Superseded,
)
from workflows.revisions import StaleRevision
from workflows.service_json import plain

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

RETRY_AFTER_S = 2.0


class ServiceError(Exception):
    """An answer other than the one hoped for: HTTP status, code, message, detail.

    retry_after_s: when to ask again; None where asking again changes nothing.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        detail: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        # All of them go to the base class, which is what pickling keeps.
        super().__init__(status, code, message, detail, retry_after_s)
        self.status = status
        self.code = code
        self.message = message
        self.detail = dict(detail) if detail else None
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "detail": self.detail}}


def busy(message: str, retry_after_s: float = RETRY_AFTER_S, code: str = "busy") -> ServiceError:
    """Nothing is wrong with the request; the moment is."""
    return ServiceError(503, code, message, {"retry_after_s": retry_after_s}, retry_after_s)


def internal(error: BaseException) -> ServiceError:
    """What a caller is told of a defect of ours: that there is one, and no more."""
    log.error("a request failed", exc_info=error)
    return ServiceError(500, "internal", f"the service failed: {type(error).__name__}")


def unless_error(answer: Any) -> Any:
    """A replica's answer. Raises it where it is an error."""
    if isinstance(answer, ServiceError):
        raise answer
    return answer


def told(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T | ServiceError]]:
    """Give an error that a caller is told about as the answer.

    Raised across processes, it would stand in the log as a failure, with a traceback.
    """

    @functools.wraps(method)
    async def telling(*args: P.args, **kwargs: P.kwargs) -> T | ServiceError:
        try:
            return await method(*args, **kwargs)
        except Exception as error:
            return _known_or_raise(error)

    return telling


def told_last(
    method: Callable[P, AsyncGenerator[T]],
) -> Callable[P, AsyncGenerator[T | ServiceError]]:
    """Of a stream: an error that a caller is told about is its last item."""

    @functools.wraps(method)
    async def telling(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T | ServiceError]:
        try:
            async with aclosing(method(*args, **kwargs)) as items:
                async for item in items:
                    yield item
        except Exception as error:
            yield _known_or_raise(error)

    return telling


def _known_or_raise(error: Exception) -> ServiceError:
    known = as_service_error(error)
    if known is None:
        raise error
    return known


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: str


@functools.cache
def _answers() -> tuple[tuple[type[BaseException], _Answer], ...]:
    """The first that fits counts, so the narrower come first.

    Asked for where models and storage are; an ingress, which has neither, loads no torch for it.
    """
    from sam2model.prompts import PromptError
    from sam2model.video_source import VideoError
    from workflows.storage import NotFound, StorageError, TooLarge, UriNotAllowed

    return (
        (RefinementConflict, _Answer(409, "conflict")),
        (StaleRevision, _Answer(409, "conflict")),
        (Superseded, _Answer(409, "superseded")),
        (DraftNotFound, _Answer(404, "not_found")),
        (NotFound, _Answer(404, "not_found")),
        (TooLarge, _Answer(413, "too_large")),
        (UriNotAllowed, _Answer(422, "uri_not_allowed")),
        (PromptError, _Answer(422, "prompt_invalid")),
        (RefinementError, _Answer(422, "refinement_invalid")),
        (VideoError, _Answer(422, "video_unreadable")),
        (TimeoutError, _Answer(503, "timeout")),
        (StorageError, _Answer(503, "storage_unavailable")),
    )


def as_service_error(error: BaseException) -> ServiceError | None:
    """What the caller is told of an error; None for a defect of ours."""
    if isinstance(error, ServiceError):
        return error
    for kind, answer in _answers():
        if isinstance(error, kind):
            retry = RETRY_AFTER_S if answer.status == 503 else None
            message = " ".join(str(error).split()) or answer.code
            return ServiceError(answer.status, answer.code, message, _detail(error), retry)
    return None


def _detail(error: BaseException) -> dict[str, Any] | None:
    """What a program needs beside the message; a conflict names the newer revision."""
    if isinstance(error, RefinementConflict):
        return dict(plain(error.conflict))
    if isinstance(error, StaleRevision):
        names = ("video_id", "object_id", "base_revision", "newest_revision")
        return {name: getattr(error, name) for name in names}
    reason = getattr(error, "reason", None)  # of a video that cannot be read
    return None if reason is None else {"reason": str(reason)}
