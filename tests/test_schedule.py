"""Whose turn it is: the schedule of an engine by itself, without threads, decoding or a network."""

from collections import Counter
from typing import Any

import pytest
from test_engine import HEIGHT, WIDTH_PX, FakeVideo, click

from sam2model.labelling_plan import FrameTime, LabellingPlan, Visit
from sam2model.schedule import Decoded, Encoded, EngineOptions, Job, Lane, Schedule, Unwritten


class Rig:
    """A schedule whose videos always have their next frames decoded, and never end."""

    def __init__(self, **options: int) -> None:
        self.schedule = Schedule(EngineOptions(**options))
        self.schedule.changed.acquire()  # nobody else wants it

    def add(self, name: str, objects: int = 1, lane: Lane = "bulk", decoded: int = 100) -> Job:
        prompts = [click(o, 0) for o in range(objects)]
        plan = LabellingPlan.make(prompts, 0, None, HEIGHT, WIDTH_PX)
        video: Any = FakeVideo(name=name)
        job = Job(video, plan, {}, lane, None, 0)
        for index in range(decoded):
            visit = Visit(FrameTime(index, index / 10), "forward")
            job.decoded.append(Decoded(job, visit, None))
        self.schedule.jobs.append(job)
        return job

    def turn(self) -> tuple[list[list[str]], list[str]]:
        """Names of the videos of each batch that is encoded, and of the step."""
        batches = []
        features: Any = None
        while batch := self.schedule.next_batch():
            batches.append([frame.job.video.name for frame in batch])
            for frame in batch:
                frame.job.encoded.append(Encoded(frame.job, frame.visit, features))
        step = self.schedule.next_step()
        return batches, [frame.job.video.name for frame in step]


def test_a_step_holds_the_next_frame_of_as_many_videos_as_have_slots() -> None:
    rig = Rig(slots=4, frame_batch=2)
    for name in "abc":
        rig.add(name, objects=2)

    batches, step = rig.turn()

    assert step == ["a", "b"]
    assert [len(batch) for batch in batches] == [2]


def test_videos_take_turns_and_get_equally_many_frames() -> None:
    rig = Rig(slots=4, frame_batch=2)
    for name, objects in zip("abcde", (1, 2, 3, 4, 1), strict=True):
        rig.add(name, objects)
    frames: Counter[str] = Counter()
    for _ in range(60):
        frames.update(rig.turn()[1])

    assert sum(frames.values()) >= 60
    # A video that fits into the rest of a step is taken along: it may have more, nobody less.
    assert min(frames.values()) >= 60 // 5


def test_a_video_of_more_objects_than_slots_goes_alone_and_as_often_as_the_others() -> None:
    rig = Rig(slots=4, frame_batch=2)
    rig.add("many", objects=9)
    rig.add("few", objects=2)
    steps = [rig.turn()[1] for _ in range(6)]

    assert steps == [["many"], ["few"]] * 3


def test_one_video_alone_has_full_batches_of_frames() -> None:
    rig = Rig(slots=4, frame_batch=3)
    rig.add("a")
    batches = [batch for _ in range(9) for batch in rig.turn()[0]]

    assert batches == [["a"] * 3] * 3


def test_no_more_frames_are_encoded_than_a_step_takes_but_to_fill_the_batch() -> None:
    rig = Rig(slots=2, frame_batch=4)
    for name in "abcdefgh":
        rig.add(name)

    batches, step = rig.turn()

    assert step == ["a", "b"]
    assert batches == [["a", "b", "a", "b"]]


def test_interactive_videos_go_alone_while_they_have_frames() -> None:
    rig = Rig(slots=8)
    rig.add("bulk")
    urgent = rig.add("urgent", lane="interactive", decoded=3)
    steps = [rig.turn()[1] for _ in range(5)]

    assert steps == [["urgent"]] * 3 + [["bulk"]] * 2
    assert not urgent.encoded


def test_an_interactive_video_is_seen_between_two_batches_of_the_same_turn() -> None:
    rig = Rig(slots=8, frame_batch=1)
    for name in "abcdefgh":
        rig.add(name)
    schedule = rig.schedule
    assert [frame.job.video.name for frame in schedule.next_batch()] == ["a"]

    rig.add("urgent", lane="interactive")

    assert rig.turn() == ([["urgent"]], ["urgent"])


def test_a_video_whose_masks_are_not_taken_waits() -> None:
    rig = Rig(results_ahead=3)
    slow, quick = rig.add("slow"), rig.add("quick")
    masks: Any = None
    frames: Counter[str] = Counter()
    for _ in range(10):
        step = rig.turn()[1]
        frames.update(step)
        slow.unwritten += "slow" in step  # nobody takes them, or makes run lengths of them

    assert frames == {"quick": 10, "slow": 3}
    slow.unwritten, slow.results = 0, type(slow.results)([masks, masks, masks])
    assert rig.turn()[1] == ["quick"]
    slow.results.popleft()
    assert rig.turn()[1] == ["slow", "quick"]
    assert not quick.results


def test_run_lengths_of_interactive_videos_are_made_first() -> None:
    rig = Rig()
    bulk, urgent = rig.add("bulk"), rig.add("urgent", lane="interactive")
    masks: Any = None
    for job in (bulk, bulk, urgent, urgent):
        index = len(rig.schedule.unwritten)
        rig.schedule.unwritten.append(Unwritten(job, FrameTime(index, 0.0), masks))

    order = [u.frame.index for u in iter(rig.schedule.next_unwritten, None)]

    assert order == [2, 3, 0, 1]


def test_a_video_ends_when_its_last_masks_are_run_lengths() -> None:
    rig = Rig()
    job = rig.add("a", decoded=1)
    job.all_decoded = True
    rig.turn()
    job.unwritten = 1
    assert rig.schedule.drop_finished() == []

    job.unwritten = 0

    assert rig.schedule.has_work()
    assert rig.schedule.drop_finished() == [job]
    assert job.all_tracked and rig.schedule.jobs == []


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_a_video_that_nobody_wants_any_more_leaves_with_its_frames(how: str) -> None:
    rig = Rig()
    job = rig.add("a")
    rig.turn()
    if how == "closed":
        job.closed = True
    else:
        rig.schedule.fail([job], ValueError("a defect"))

    assert rig.turn() == ([], [])
    assert rig.schedule.drop_finished() == [job]
    assert not job.all_tracked and not job.decoded and not job.encoded
