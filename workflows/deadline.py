"""A call that may hang in native code, where nothing stops it. Knows nothing of what is called."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


def call_within(seconds: float, function: Callable[[], Result]) -> Result:
    """The function's result, or its exception. Raises TimeoutError if it takes longer.

    It then goes on in a thread of its own that ends with the process, and nobody hears of it.
    """
    call = _Call(function)
    threading.Thread(target=call.run, name="may-hang", daemon=True).start()
    if not call.ended.wait(seconds):
        raise TimeoutError(f"no answer in {seconds:g} s")
    if call.error is not None:
        raise call.error
    assert call.result is not None
    return call.result[0]


class _Call(Generic[Result]):
    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self.ended = threading.Event()
        self.result: tuple[Result] | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = (self._function(),)
        except BaseException as error:  # crosses to the thread that asked
            self.error = error
        self.ended.set()
