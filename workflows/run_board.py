"""What the actors of a run say of themselves, added up. Plain Python; Ray makes an actor of it.

Reports are totals since an actor began, so that a lost one is made good by the next.
"""

import sys
import threading
import time
from collections.abc import Sized
from dataclasses import dataclass
from types import FrameType
from typing import Protocol


class MadeFrame(Protocol):
    """A frame with its masks, of labelling or of refining."""

    @property
    def masks(self) -> Sized: ...


@dataclass(frozen=True, slots=True)
class Report:
    """Totals of one actor. busy_s: in which its engine worked; None where that is not known."""

    frames: int = 0
    masks: int = 0
    videos_in_flight: int = 0
    alive_s: float = 0.0
    busy_s: float | None = None


class RunBoard:
    """The last report of every actor, also of those that have died."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}

    def report(self, actor: str, report: Report) -> None:
        self._reports[actor] = report

    def totals(self) -> Report:
        reports = list(self._reports.values())
        busy = [report.busy_s for report in reports if report.busy_s is not None]
        return Report(
            frames=sum(report.frames for report in reports),
            masks=sum(report.masks for report in reports),
            videos_in_flight=sum(report.videos_in_flight for report in reports),
            alive_s=sum(report.alive_s for report in reports),
            busy_s=sum(busy) if busy else None,
        )


class ActorTally:
    """One actor's totals, kept by its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames = self._masks = self._in_flight = 0
        self._began = time.monotonic()
        self._samples = self._busy_samples = 0

    def add_frame(self, frame: MadeFrame) -> None:
        with self._lock:
            self._frames += 1
            self._masks += len(frame.masks)

    def add_in_flight(self, change: int) -> int:
        """How many videos are then open."""
        with self._lock:
            self._in_flight += change
            return self._in_flight

    def sample(self, engine_thread: threading.Thread | None) -> None:
        """Look whether the engine works at this moment; its share of time follows from many."""
        if engine_thread is not None:
            self._samples += 1
            self._busy_samples += not is_waiting(engine_thread)

    def report(self) -> Report:
        alive_s = time.monotonic() - self._began
        share = self._busy_samples / self._samples if self._samples else None
        with self._lock:
            return Report(
                frames=self._frames,
                masks=self._masks,
                videos_in_flight=self._in_flight,
                alive_s=alive_s,
                busy_s=None if share is None else share * alive_s,
            )


def is_waiting(thread: threading.Thread) -> bool:
    """Whether a thread waits for others at this moment, as an engine without work does."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return True
    code = frame.f_code
    return code.co_name == "wait" and code.co_filename == threading.__file__
