"""How far a run is, in one line; on a terminal it is rewritten, in a log it comes now and then."""

import io

import pytest

from jobs._progress import BETWEEN_LINES_S, ProgressLines
from workflows.progress import Progress, Rate, cost_under_way, in_words


def moment(**changes: float) -> Progress:
    values = {
        "videos": 200,
        "videos_done": 50,
        "videos_failed": 0,
        "frames": 12_000,
        "masks": 30_000,
        "cost": 1000.0,
        "cost_done": 250.0,
        "elapsed_s": 600.0,
        "frames_per_s": 20.0,
    }
    return Progress(**{**values, **changes})  # type: ignore[arg-type]


def test_a_moment_tells_videos_frames_objects_failures_and_the_time_left() -> None:
    line = moment(videos_failed=3, device_idle_share=0.125).line()
    assert line == (
        "50 of 200 videos, 3 failed, 20.0 frames/s, 30000 masks, devices idle 12%, 30 min 0 s left"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert moment(cost_done=0.0).line() == "50 of 200 videos, 20.0 frames/s, 30000 masks"
    assert moment(videos_done=200, cost_done=1000.0).line().endswith("30000 masks")


def test_a_run_whose_actors_are_not_there_yet_says_so() -> None:
    starting = moment(videos_done=1, videos_failed=1, is_starting=True)
    assert starting.line() == "1 of 200 videos, 1 failed, waiting for the first actor"
    nothing_to_label = moment(videos_done=200, videos_failed=200, is_starting=True)
    assert "waiting" not in nothing_to_label.line()


def test_the_time_left_follows_from_the_work_left_and_not_from_videos() -> None:
    assert moment(videos_done=1, cost_done=500.0).left_s == 600.0
    assert moment(cost_done=2000.0).left_s == 0.0  # more than was expected


@pytest.mark.parametrize(
    ("made", "made_by_done", "cost_done", "under_way"),
    [
        (0, 0, 0.0, 0.0),
        (300, 0, 0.0, 300.0),  # as long as no video has ended the plan is believed
        (300, 200, 100.0, 50.0),  # it guessed half of what there was to do
        (200, 200, 100.0, 0.0),
        (150, 200, 100.0, 0.0),  # reports come late
        (9000, 0, 0.0, 950.0),  # what is under way is not over
    ],
)
def test_what_is_under_way_is_part_of_what_is_done(
    made: int, made_by_done: int, cost_done: float, under_way: float
) -> None:
    assert cost_under_way(made, made_by_done, cost_done, cost_left=1000.0) == under_way


def test_a_rate_forgets_what_was_long_ago() -> None:
    rate = Rate(window_s=60.0)
    assert rate.at(0.0, 0) == 0.0
    assert rate.at(10.0, 100) == 10.0
    assert [rate.at(float(second), 100) for second in range(20, 100, 10)][-1] == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5.9, "5 s"),
        (61, "1 min 1 s"),
        (3600 * 3 + 60 * 20, "3 h 20 min"),
        (86400 * 2 + 3600, "2 d 1 h"),
    ],
)
def test_times_are_told_in_two_units(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminals_line_is_rewritten() -> None:
    stream = Terminal()
    lines = ProgressLines(stream, clock=lambda: 0.0)
    lines.show(moment(videos_done=1))
    lines.show(moment(videos_done=2))
    lines.end()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 3
    assert "\r2 of 200 videos" in stream.getvalue()


def test_a_log_gets_plain_lines_now_and_then_and_the_last() -> None:
    stream, now_s = io.StringIO(), [0.0]
    lines = ProgressLines(stream, clock=lambda: now_s[0])
    for second in range(31):
        now_s[0] = float(second)
        lines.show(moment(videos_done=second))
    lines.end()
    told = [line.split()[0] for line in stream.getvalue().splitlines()]
    assert told == ["0", str(int(BETWEEN_LINES_S)), str(int(2 * BETWEEN_LINES_S)), "30"]
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_a_run_without_a_moment_says_nothing() -> None:
    stream = io.StringIO()
    ProgressLines(stream).end()
    assert stream.getvalue() == ""
