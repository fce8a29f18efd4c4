"""Bounded retries with a deadline, and which errors of storage pass by. Knows nothing of data."""

import errno
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MESSAGE_CHARACTERS = 500
TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}  # 409: a conditional PUT met another
# errors of HTTP clients that are no OSError; by name, so that no store's client need be installed
TRANSIENT_NAMES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteRead",
    "ResponseParserError",
}
# what s3fs makes of SlowDown, InternalError and codes it does not know, and what disks say
TRANSIENT_ERRNO = {errno.EBUSY, errno.EAGAIN, errno.EIO, errno.EREMOTEIO, errno.ESTALE}
# deltalake wraps every failure of a store in one class; a precondition is an answer, no failure
DELTA_TRANSIENT = ("Generic S3 error", "Generic GCS error", "Generic MicrosoftAzure error")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and for how long a call is tried again; waits double, with jitter.

    deadline_s bounds the whole call: no attempt starts after it, and each is told what is left.
    """

    attempts: int = 8  # with doubling waits, 25 s of throttling
    deadline_s: float = 600.0
    first_wait_s: float = 0.2
    max_wait_s: float = 20.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; wanted 1 or more")

    def call(
        self,
        what: str,
        attempt: Callable[[float], Result],
    ) -> Result:
        """attempt(seconds_left) until it returns, fails for good, or a bound is reached.

        The last error is raised as it was.
        """
        give_up_at = self.clock() + self.deadline_s
        for number in range(1, self.attempts + 1):
            try:
                return attempt(max(give_up_at - self.clock(), 0.001))
            except Exception as e:
                wait_s = min(self.first_wait_s * 2 ** (number - 1), self.max_wait_s)
                wait_s *= random.uniform(0.5, 1.0)  # so that those throttled together part
                is_over = number == self.attempts or self.clock() + wait_s > give_up_at
                if is_over or not is_transient(e):
                    raise
                log.warning("%s: attempt %d of %d: %s", what, number, self.attempts, one_line(e))
            self.sleep(wait_s)
        raise AssertionError("attempts is at least 1")


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: a broken connection, a time-out, throttling, a server fault.

    An HTTP status, where there is one, decides alone.
    """
    status = _http_status(error)
    if status is not None:
        return status in TRANSIENT_STATUS
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO:
        return True
    if any(base.__name__ in TRANSIENT_NAMES for base in type(error).__mro__):
        return True
    return any(text in str(error) for text in DELTA_TRANSIENT)


def one_line(error: BaseException) -> str:
    """What an error says, without the colours and line breaks that deltalake puts in."""
    text = " ".join(re.sub(r"\x1b\[\d*m|↳", "", str(error)).split())
    return f"{type(error).__name__}: {text[:MESSAGE_CHARACTERS]}"


def _http_status(error: BaseException) -> int | None:
    """The status behind a botocore ClientError or what s3fs made of it, or in deltalake's text."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status is not None else None
    answered = re.search(r"non-2xx status code\D*(\d{3})", re.sub(r"\x1b\[\d*m", "", str(error)))
    return int(answered[1]) if answered else None
