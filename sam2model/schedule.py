"""Which frames of which videos go next. Knows nothing of networks, pixels or threads' work.

A turn of the engine is: encode frames until a step's objects are together, then one step. Videos
take turns, the one that waited longest first; interactive ones alone while any of them has
something to do, so that nobody who clicks waits for more than the batch or the step in progress.
A video goes on only while its masks are taken.
"""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from sam2model.labelling_plan import LabellingPlan, SeenFrame, Task, Visit
from sam2model.recorder import Recorder
from sam2model.refinement_memory import VideoMemory
from sam2model.resumption import Start
from sam2model.track_step import ImageFeatures, StepOutput
from sam2model.tracked_masks import FrameMasks, PendingMasks
from sam2model.transfers import Arriving
from sam2model.video import Video

Lane = Literal["bulk", "interactive"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much an engine does at once; no effect on the masks.

    slots: objects of one step. frame_batch: frames encoded together, of any videos.
    frames_ahead: frames of one video decoded before they are needed. results_ahead: frames of
    masks of one video that may wait to be taken. graphs: on a GPU, repeat steps as CUDA graphs.
    compile_encoder: have torch compile the image encoder, which pays on long runs.
    """

    slots: int = 16
    frame_batch: int = 4
    frames_ahead: int = 8
    results_ahead: int = 16
    graphs: bool = True
    compile_encoder: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.type is int and getattr(self, option.name) < 1:
                raise ValueError(
                    f"{option.name}: got {getattr(self, option.name)}; wanted 1 or more"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A frame at the model's size, (3, S, S) uint8, waiting to be encoded; None if it is known."""

    job: "Job"
    visit: Visit
    pixels: Arriving | None


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A frame's features, one row, waiting for their step."""

    job: "Job"
    visit: Visit
    features: ImageFeatures

    @property
    def tasks(self) -> list[Task]:
        return self.job.plan.tasks(self.visit)


@dataclass(frozen=True, slots=True, eq=False)
class Unwritten:
    """Masks of a frame that are computed, or about to be, and not yet run lengths."""

    job: "Job"
    frame: SeenFrame
    masks: PendingMasks


class Job:
    """One video in the engine. Queues and flags are guarded by the schedule's condition."""

    def __init__(
        self,
        video: Video,
        plan: LabellingPlan,
        starts: dict[int, Start],
        lane: Lane,
        memory: VideoMemory | None,
        first_key: int,
    ) -> None:
        self.video = video
        self.plan = plan
        self.starts = starts
        self.lane = lane
        self.memory = memory
        self.recorder: Recorder | None = None
        self.keys = {o: first_key + i for i, o in enumerate(plan.object_ids)}
        self.in_bank = False
        self.answers: dict[tuple[int, int], StepOutput] = {}  # (object, frame) read ahead
        self.decoded: deque[Decoded] = deque()
        self.encoded: deque[Encoded] = deque()
        self.unwritten = 0  # frames whose masks are not yet run lengths
        self.results: deque[FrameMasks] = deque()
        self.last_turn = 0
        self.all_decoded = False
        self.ended_by: BaseException | None = None  # what decoding ended with, if not the end
        self.all_tracked = False
        self.closed = False
        self.error: BaseException | None = None


class Schedule:
    """The videos of an engine. All methods but `run`'s own are called with `changed` held."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.changed = threading.Condition()
        self.jobs: list[Job] = []
        self.unwritten: deque[Unwritten] = deque()
        self.stopped = False
        self._turns = 0

    def is_over(self, job: Job) -> bool:
        """Whether nobody wants this video any more."""
        return job.closed or self.stopped or job.error is not None

    def fail(self, jobs: Iterable[Job], error: BaseException) -> None:
        """End these videos with an error."""
        for job in jobs:
            job.error = error
        self.changed.notify_all()

    def stop(self) -> None:
        """End everything."""
        self.stopped = True
        self.unwritten.clear()
        self.changed.notify_all()

    def has_work(self) -> bool:
        """Whether a turn would do anything."""
        return any(self._is_finished(job) or self._can_go_on(job) for job in self.jobs)

    def drop_finished(self) -> list[Job]:
        """Take out the videos that are done, or that nobody wants any more."""
        finished = [job for job in self.jobs if self._is_finished(job)]
        for job in finished:
            job.all_tracked = not self.is_over(job)
            job.error = job.error or job.ended_by
            self.jobs.remove(job)
            job.decoded.clear()  # a decoder that hangs holds the job, and need not hold these
            job.encoded.clear()
        self.changed.notify_all()
        return finished

    def next_batch(self) -> list[Decoded]:
        """Frames to encode before the next step; none once the step's objects are together.

        A frame of each video that has none encoded, then more of them to fill the batch.
        """
        jobs: list[Job] = []
        objects = 0
        for job in self._going():
            if objects >= self.options.slots or len(jobs) == self.options.frame_batch:
                break
            objects += len(job.keys)
            if not job.encoded:
                jobs.append(job)
        frames = [job.decoded.popleft() for job in jobs]
        while jobs and len(frames) < self.options.frame_batch:
            jobs = [job for job in jobs if job.decoded]
            room = self.options.frame_batch - len(frames)
            frames += [job.decoded.popleft() for job in jobs[:room]]
        self.changed.notify_all()
        return frames

    def next_step(self) -> list[Encoded]:
        """The next frames of the videos whose turn it is, together as many objects as slots.

        One video's objects all go, however many they are.
        """
        step: list[Encoded] = []
        objects = 0
        self._turns += 1
        for job in self._going():
            if not job.encoded or (step and objects + len(job.keys) > self.options.slots):
                continue
            objects += len(job.keys)
            job.last_turn = self._turns
            step.append(job.encoded.popleft())
        return step

    def next_unwritten(self) -> Unwritten | None:
        """Masks to be made run lengths, an interactive video's first."""
        for place, masks in enumerate(self.unwritten):
            if masks.job.lane == "interactive":
                del self.unwritten[place]
                return masks
        return self.unwritten.popleft() if self.unwritten else None

    def _going(self) -> list[Job]:
        """Videos that may go on now, the one that waited longest first."""
        jobs = [job for job in self.jobs if self._can_go_on(job)]
        urgent = [job for job in jobs if job.lane == "interactive"]
        return sorted(urgent or jobs, key=lambda job: job.last_turn)

    def _can_go_on(self, job: Job) -> bool:
        if self.is_over(job):
            return False
        waiting = len(job.results) + job.unwritten
        to_encode = bool(job.decoded) and not job.encoded
        return to_encode or (bool(job.encoded) and waiting < self.options.results_ahead)

    def _is_finished(self, job: Job) -> bool:
        tracked = job.all_decoded and not (job.decoded or job.encoded or job.unwritten)
        return tracked or self.is_over(job)
