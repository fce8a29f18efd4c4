"""Have the next items of an iterator ready, made by a thread. Knows nothing of what they are."""

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class PrefetchedFrames(Iterator[T], Generic[T]):
    """The items of `source`, in order, up to `depth` of them made ahead by a daemon thread.

    What `source` raises is raised here after the items before it. The source runs, and is closed,
    in that thread alone. Close it, or leave its `with` block, to stop early: the thread ends as
    soon as the item it is making is made. Dropping the last reference does the same.
    """

    def __init__(self, source: Iterator[T], depth: int) -> None:
        """depth: at least 1; memory is that of depth + 1 items, and the one in use."""
        if depth < 1:
            raise ValueError(f"depth {depth}; wanted 1 or more")
        # The thread must not hold a reference to self, or dropping self would never end it.
        self._shelf: _Shelf[T] = _Shelf(depth)
        self._thread = threading.Thread(
            target=_fill, args=(self._shelf, source), name="prefetch", daemon=True
        )
        self._stop = weakref.finalize(self, self._shelf.stop)
        self._stop.atexit = False  # daemon threads need no goodbye
        self._thread.start()

    def __next__(self) -> T:
        return self._shelf.take()

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
        """End the thread and wait for it; then there are no more items."""
        self._stop()
        self._thread.join()


class _Shelf(Generic[T]):
    """A bounded queue with an end: items, then perhaps an error."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[T] = deque()
        self._error: BaseException | None = None
        self._is_ended = False
        self._is_stopped = False
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Waits for room; False when nobody wants more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or len(self._items) < self._depth)
            if not self._is_stopped:
                self._items.append(item)
                self._changed.notify_all()
            return not self._is_stopped

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._error, self._is_ended = error, True
            self._changed.notify_all()

    def take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_ended or self._is_stopped)
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            error, self._error = self._error, None
        raise StopIteration if error is None else error

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._items.clear()
            self._changed.notify_all()


def _fill(shelf: _Shelf[T], source: Iterator[T]) -> None:
    error: BaseException | None = None
    try:
        for item in source:
            if not shelf.put(item):
                break
    except BaseException as raised:  # it belongs to whoever takes the items
        error = raised
    close = getattr(source, "close", None)
    if close is not None:
        close()
    shelf.end(error)
