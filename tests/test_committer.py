"""Finished videos are committed in batches, in the end all, and whatever fails is heard of."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from labels import failed

from workflows.committer import LARGEST_BATCH, Committer
from workflows.results import CommitReport
from workflows.rows import VideoOutcome
from workflows.storage import Unreadable

NEVER_S = 3600.0


class Writer:
    """Remembers batches; commits only while its gate is open; fails when told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()
        self.committed = threading.Semaphore(0)

    def commit(
        self, outcomes: list[VideoOutcome], *, supersede_reviewed: bool = False
    ) -> CommitReport:
        self.began.set()
        self.gate.wait()
        if self.error is not None:
            raise self.error
        ids = [outcome.video_id for outcome in outcomes]
        self.batches.append(ids)
        self.committed.release()
        return CommitReport(tuple(ids), ())


@contextmanager
def closed(writer: Writer) -> Iterator[None]:
    writer.gate.clear()
    try:
        yield
    finally:
        writer.gate.set()


def test_a_batch_is_committed_when_it_is_large_enough_and_the_rest_in_the_end() -> None:
    writer = Writer()
    with Committer(writer, every_videos=2, every_s=NEVER_S) as committer:
        with closed(writer):
            for name in "ab":
                committer.add(failed(name))
            writer.began.wait()
            committer.add(failed("c"))  # while the first two are being committed
        writer.committed.acquire()
        assert writer.batches == [["a", "b"]]
    assert writer.batches == [["a", "b"], ["c"]]


def test_a_small_batch_is_committed_when_it_is_old_enough() -> None:
    writer = Writer()
    now_s = [0.0]
    with Committer(writer, 1000, every_s=30.0, clock=lambda: now_s[0]) as committer:
        committer.add(failed("a"))
        now_s[0] = 31.0
        committer.add(failed("b"))
        writer.committed.acquire()
        assert writer.batches in ([["a"], ["b"]], [["a", "b"]], [["a"]])


def test_flushing_waits_until_all_that_was_given_is_committed() -> None:
    writer = Writer()
    with Committer(writer, every_videos=1000, every_s=NEVER_S) as committer:
        committer.flush()
        for name in "abc":
            committer.add(failed(name))
        committer.flush()
        assert writer.batches == [["a", "b", "c"]]


def test_flushing_waits_for_a_batch_that_is_already_under_way() -> None:
    writer = Writer()
    with Committer(writer, every_videos=1, every_s=NEVER_S) as committer:
        writer.gate.clear()
        committer.add(failed("a"))
        writer.began.wait()
        threading.Timer(0.05, writer.gate.set).start()
        committer.flush()
        assert writer.batches == [["a"]]


def test_what_piled_up_is_committed_in_parts() -> None:
    writer = Writer()
    with Committer(writer, every_videos=1, every_s=NEVER_S) as committer, closed(writer):
        committer.add(failed("first"))
        writer.began.wait()
        for index in range(LARGEST_BATCH + 5):
            committer.add(failed(str(index)))
    assert [len(batch) for batch in writer.batches] == [1, LARGEST_BATCH, 5]


def test_a_failing_store_is_heard_of_at_the_next_call_and_at_the_end() -> None:
    writer = Writer()
    writer.error = Unreadable("s3://b: the store is gone")
    with pytest.raises(Unreadable, match="the store is gone"):
        with Committer(writer, every_videos=1, every_s=NEVER_S) as committer:
            committer.add(failed("a"))
            with pytest.raises(Unreadable):
                committer.flush()
            with pytest.raises(Unreadable):
                committer.add(failed("b"))


def test_another_error_is_not_covered_by_that_of_the_store() -> None:
    writer = Writer()
    writer.error = Unreadable("s3://b: the store is gone")
    with pytest.raises(KeyError):
        with Committer(writer, every_videos=1, every_s=NEVER_S) as committer:
            committer.add(failed("a"))
            raise KeyError("of the run itself")
