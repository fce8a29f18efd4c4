"""Finished videos into the dataset in batches, beside whoever finishes them.

Knows nothing of Ray. A batch is committed when it is large or old enough, whichever comes first;
a failing store stops the run at the next call here, with nothing lost that was put.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from workflows.results import CommitReport
from workflows.rows import VideoOutcome

log = logging.getLogger(__name__)

LARGEST_BATCH = 1024  # of outcomes that piled up while the store was slow


class Writer(Protocol):
    """What is needed of a DatasetWriter."""

    def commit(
        self, outcomes: list[VideoOutcome], *, supersede_reviewed: bool = False
    ) -> CommitReport: ...


class Committer:
    """A thread that commits what it is given. Leaving its block commits the rest."""

    def __init__(
        self,
        writer: Writer,
        every_videos: int,
        every_s: float,
        supersede_reviewed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._every_videos, self._every_s = every_videos, every_s
        self._supersede_reviewed = supersede_reviewed
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[VideoOutcome] = []
        self._oldest: float | None = None  # when the first of those waiting came
        self._closing = self._is_committing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None and exc is None:
            raise self._error

    def add(self, outcome: VideoOutcome) -> None:
        """Commit an outcome, its masks put. Raises what an earlier commit ended with."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._waiting.append(outcome)
            self._oldest = self._clock() if self._oldest is None else self._oldest
            self._changed.notify_all()

    def flush(self) -> None:
        """Commit what waits now, and wait for that. Raises what a commit ended with."""
        with self._changed:
            self._oldest = -math.inf if self._waiting else None
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._error or not (self._waiting or self._is_committing)
            )
            if self._error is not None:
                raise self._error

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._writer.commit(batch, supersede_reviewed=self._supersede_reviewed)
                with self._changed:
                    self._is_committing = False
                    self._changed.notify_all()
        except BaseException as error:  # crosses to the thread that adds
            log.error("committing failed: %s", error)
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_batch(self) -> list[VideoOutcome]:
        """Wait for one; empty when all is done."""
        with self._changed:
            while not self._closing and not self._is_due():
                wait_s = None
                if self._oldest is not None:
                    wait_s = max(self._oldest + self._every_s - self._clock(), 0.001)
                self._changed.wait(wait_s)
            batch, self._waiting = self._waiting[:LARGEST_BATCH], self._waiting[LARGEST_BATCH:]
            self._oldest = self._clock() if self._waiting else None
            self._is_committing = bool(batch)
            return batch

    def _is_due(self) -> bool:
        if self._oldest is None:
            return False
        return (
            len(self._waiting) >= self._every_videos
            or self._clock() - self._oldest >= self._every_s
        )
