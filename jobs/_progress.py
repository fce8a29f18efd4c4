"""Progress on standard error: one line rewritten on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
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
