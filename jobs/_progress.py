"""What a bulk job shows: progress on standard error, and in the end what became of every row.

On a terminal one line is rewritten; elsewhere there is a line now and then.
"""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from jobs._cli import ALL_DONE, BROKEN, FINISHED_WITH_FAILURES, Result

if TYPE_CHECKING:
    from workflows.config import PipelineConfig
    from workflows.label_summary import Summary
    from workflows.progress import Progress

BETWEEN_LINES_S = 15.0  # in a log that is kept; a terminal is rewritten every time


class ProgressLines:
    """Shows moments of a run; call `end` after the last one."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._is_terminal = self._stream.isatty()
        self._last: float | None = None
        self._line = ""

    def show(self, progress: "Progress") -> None:
        self._line = progress.line()
        now = self._clock()
        if self._is_terminal:
            print(f"\r{self._line}\x1b[K", end="", file=self._stream, flush=True)
        elif self._last is None or now - self._last >= BETWEEN_LINES_S:
            print(self._line, file=self._stream, flush=True)
            self._last = now

    def end(self) -> None:
        """Leave the last moment standing."""
        if self._line:
            print(f"\r{self._line}\x1b[K" if self._is_terminal else self._line, file=self._stream)


def result_of(summary: "Summary", config: "PipelineConfig", what: str, rows: str) -> Result:
    """Print the counts of a run over `rows`, in which `what` were done, and its failures."""
    if summary.stopped:
        print(f"stopped: {summary.done_now} {what} done in this run; run it again for the rest")
        return Result(summary.to_json(config), BROKEN)
    print(
        f"{summary.videos} {rows} = {summary.ok} ok + {summary.failed} failed "
        f"({summary.skipped} before this run, {summary.done_now} in it)"
    )
    for reason, count in summary.failures.most_common():
        print(f"  {count} {reason}")
    code = FINISHED_WITH_FAILURES if summary.failed else ALL_DONE
    return Result(summary.to_json(config), code)
