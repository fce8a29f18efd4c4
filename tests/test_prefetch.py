import gc
import threading
from collections.abc import Iterator

import pytest
from videos import write_moving_square

from sam2model.prefetch import PrefetchedFrames
from sam2model.video import Video

PATIENCE_S = 30.0  # how long a thread may take before a test gives up; never how long it takes


class Source:
    """Counts how many items were made, says where it was closed, and waits when told to."""

    def __init__(self, num_items: int, error: Exception | None = None) -> None:
        self.made = 0
        self.closed_in: threading.Thread | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.all_asked_for = threading.Semaphore(0)
        self._num_items = num_items
        self._error = error

    def items(self) -> Iterator[int]:
        try:
            for item in range(self._num_items):
                assert self.may_go_on.wait(PATIENCE_S)
                self.made += 1
                self.all_asked_for.release()
                yield item
            if self._error is not None:
                raise self._error
        finally:
            self.closed_in = threading.current_thread()


def wait_for_no_more(threads: set[threading.Thread]) -> None:
    for thread in set(threading.enumerate()) - threads:
        thread.join(PATIENCE_S)
    assert set(threading.enumerate()) <= threads, "a thread was left behind"


def wait_until(source: Source, num_made: int) -> None:
    for _ in range(num_made):
        assert source.all_asked_for.acquire(timeout=PATIENCE_S)


def test_items_come_in_order_and_the_thread_ends_with_them() -> None:
    before = set(threading.enumerate())
    assert list(PrefetchedFrames(Source(1000).items(), depth=3)) == list(range(1000))
    wait_for_no_more(before)


def test_after_the_end_there_is_nothing_more() -> None:
    frames = PrefetchedFrames(Source(2).items(), depth=5)
    assert [*frames] == [0, 1] and next(frames, None) is None and next(frames, None) is None


def test_an_error_comes_after_the_items_before_it() -> None:
    before = set(threading.enumerate())
    frames = PrefetchedFrames(Source(5, ValueError("frame 5 failed to decode")).items(), depth=2)
    got = []
    with pytest.raises(ValueError, match="frame 5 failed to decode"):
        for item in frames:
            got.append(item)  # noqa: PERF402
    assert got == [0, 1, 2, 3, 4]
    assert next(frames, None) is None
    wait_for_no_more(before)


def test_no_more_than_depth_items_wait() -> None:
    source = Source(100)
    frames = PrefetchedFrames(source.items(), depth=4)
    wait_until(source, 5)  # four wait and the fifth has no place
    assert next(frames) == 0
    wait_until(source, 1)
    assert source.made == 6
    frames.close()
    assert source.made == 6


@pytest.mark.parametrize("num_taken", [0, 1, 7])
def test_closing_early_ends_the_thread_and_closes_the_source_in_it(num_taken: int) -> None:
    before = set(threading.enumerate())
    source = Source(10_000)
    with PrefetchedFrames(source.items(), depth=2) as frames:
        for item in range(num_taken):
            assert next(frames) == item
        wait_until(source, 1)
    assert set(threading.enumerate()) == before
    assert source.closed_in not in (None, threading.current_thread())
    assert next(frames, None) is None
    frames.close()


def test_closing_waits_for_the_item_in_the_making() -> None:
    source = Source(10)
    source.may_go_on.clear()
    frames = PrefetchedFrames(source.items(), depth=2)
    closer = threading.Thread(target=frames.close)
    closer.start()
    source.may_go_on.set()
    closer.join(PATIENCE_S)
    assert not closer.is_alive() and source.closed_in is not None and source.made <= 1


def test_a_waiting_consumer_is_released_by_closing() -> None:
    source = Source(10)
    source.may_go_on.clear()
    frames = PrefetchedFrames(source.items(), depth=2)
    got: list[int | None] = []
    consumer = threading.Thread(target=lambda: got.append(next(frames, None)))
    consumer.start()
    closer = threading.Thread(target=frames.close)
    closer.start()
    consumer.join(PATIENCE_S)
    source.may_go_on.set()
    closer.join(PATIENCE_S)
    assert got == [None] and not closer.is_alive()


def test_forgetting_it_ends_the_thread() -> None:
    before = set(threading.enumerate())
    frames = PrefetchedFrames(Source(10_000).items(), depth=2)
    assert next(frames) == 0
    del frames
    gc.collect()
    wait_for_no_more(before)


def test_a_depth_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="depth 0; wanted 1 or more"):
        PrefetchedFrames(iter([1]), depth=0)


def test_frames_of_a_video_are_the_same_prefetched(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = write_moving_square(tmp_path_factory.mktemp("prefetch") / "v.mp4", 30)
    with Video(path, name="v") as video:
        plain = [(f.index, f.rgb.tobytes()) for f in video.frames()]
        with PrefetchedFrames(video.frames(), depth=4) as frames:
            assert [(f.index, f.rgb.tobytes()) for f in frames] == plain
        with PrefetchedFrames(video.frames_backwards(), depth=4) as frames:
            assert next(frames).index == 29
            assert video.frame(3).rgb.tobytes() == plain[3][1], "at the same time, in this thread"
