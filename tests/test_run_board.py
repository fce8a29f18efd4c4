"""Totals of many actors, some of them dead; an engine's share of time seen from outside."""

import threading

import pytest

from sam2model.rle import encode_mask
from sam2model.tracked_masks import FrameMasks, TrackedMask
from workflows.run_board import ActorTally, Report, RunBoard, is_waiting


def test_the_last_report_of_every_actor_counts_once() -> None:
    board = RunBoard()
    board.report("a", Report(frames=10, masks=20, videos_in_flight=2, alive_s=5.0, busy_s=4.0))
    board.report("a", Report(frames=15, masks=30, videos_in_flight=1, alive_s=9.0, busy_s=6.0))
    board.report("b", Report(frames=1, masks=1, videos_in_flight=1, alive_s=2.0, busy_s=None))
    assert board.totals() == Report(
        frames=16, masks=31, videos_in_flight=2, alive_s=11.0, busy_s=6.0
    )


def test_nothing_is_known_of_devices_that_nobody_looked_at() -> None:
    board = RunBoard()
    assert board.totals() == Report()
    board.report("a", Report(alive_s=2.0))
    assert board.totals().busy_s is None


def frame_of(num_masks: int) -> FrameMasks:
    import numpy as np

    counts = encode_mask(np.zeros((2, 2), bool))
    masks = [
        TrackedMask(i, counts, 0, (0, 0, 0, 0), 0.0, 0.0, 0.0, False) for i in range(num_masks)
    ]
    return FrameMasks(0, 0.0, 2, 2, masks)


def test_an_actor_counts_frames_masks_and_open_videos() -> None:
    tally = ActorTally()
    tally.add_in_flight(1)
    tally.add_in_flight(1)
    tally.add_in_flight(-1)
    for _ in range(3):
        tally.add_frame(frame_of(2))
    report = tally.report()
    assert (report.frames, report.masks, report.videos_in_flight) == (3, 6, 1)
    assert report.busy_s is None


def test_a_thread_that_waits_for_work_is_told_from_one_that_works() -> None:
    changed, ended = threading.Condition(), threading.Event()

    def wait() -> None:
        with changed:
            changed.wait_for(ended.is_set)

    def work() -> None:
        while not ended.is_set():
            sum(range(1000))

    idle, busy = threading.Thread(target=wait), threading.Thread(target=work)
    idle.start()
    busy.start()
    try:
        while not is_waiting(idle):
            pass  # until it has begun to
        assert not is_waiting(busy)
        tally = ActorTally()
        for thread in (idle, busy, idle, idle):
            tally.sample(thread)
        report = tally.report()
        assert report.busy_s == pytest.approx(report.alive_s / 4)
    finally:
        ended.set()
        with changed:
            changed.notify_all()
        idle.join()
        busy.join()
    assert is_waiting(busy)  # it has ended
