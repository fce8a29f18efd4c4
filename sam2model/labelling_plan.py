"""In which order a video's frames are visited, and what each object wants of a visit.

Knows nothing of models. The rules, which make a labelling a function of its prompts:
an object's first prompt stands alone; forward in time from there to the end, then backward
from there to the beginning. A later box or mask describes the object completely: it is read
before all tracking, so that both sides of it profit. Later clicks correct what tracking gives
on their frame, and count from then on.

A plan may be narrower than that: an object's `Course` says which of its frames are computed,
because the others are as they were, and which of those are told.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sam2model.memory_bank import Direction
from sam2model.prompts import Prompt, PromptError, PromptOutOfRange

Stage = Literal["restate", "forward", "backward"]
Kind = Literal["begin", "restate", "recall", "correct", "track"]


class SeenFrame(Protocol):
    """What a plan knows of a frame: its place, and its presentation time in seconds."""

    @property
    def index(self) -> int: ...

    @property
    def pts_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class FrameTime:
    """A frame without its picture."""

    index: int
    pts_s: float


class Frames(Protocol):
    """A video's frames in both directions, as sam2model.video.Video gives them."""

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[SeenFrame]: ...

    def frames_backwards(self, start: int = 0, stop: int | None = None) -> Iterator[SeenFrame]: ...


@dataclass(frozen=True, slots=True)
class Visit:
    """One frame at one stage of the plan."""

    frame: SeenFrame
    stage: Stage

    @property
    def direction(self) -> Direction:
        """Of the pass that this visit belongs to."""
        return -1 if self.stage == "backward" else 1


@dataclass(frozen=True, slots=True)
class Task:
    """What one object wants of a visit.

    begin: its first prompt. restate: a prompt that stands alone, read ahead; `recall` is its
    answer when the pass comes by. correct: later clicks. track: no prompt. is_told: whether the
    mask is handed out; the others are only a way to it.
    """

    object_id: int
    kind: Kind
    prompt: Prompt | None = None
    is_told: bool = True


@dataclass(frozen=True, slots=True)
class Span:
    """Frames first … last, both inclusive; last None means the video's end, below first none."""

    first: int
    last: int | None = None

    def __contains__(self, index: int) -> bool:
        return index >= self.first and (self.last is None or index <= self.last)

    @property
    def is_empty(self) -> bool:
        return self.last is not None and self.last < self.first


NO_FRAMES = Span(0, -1)


@dataclass(frozen=True, slots=True)
class Course:
    """One object's way through the video.

    prompts: frame → prompt. forward, backward: the frames that each pass computes. ahead: the
    frames whose prompts are read before both. told, settled: masks are handed out on frames of
    `told` that are not in `settled`, where they are as they were.
    """

    prompts: Mapping[int, Prompt]
    forward: Span
    backward: Span
    ahead: frozenset[int]
    told: Span
    settled: Span = NO_FRAMES

    @classmethod
    def whole(cls, prompts: Mapping[int, Prompt], span: Span) -> "Course":
        """Both passes over all of the span."""
        begins = min(prompts)
        return cls(
            prompts=prompts,
            forward=Span(begins, span.last),
            backward=Span(span.first, begins - 1),
            ahead=restated(prompts),
            told=span,
        )

    @property
    def begins(self) -> int:
        """The frame of the object's first prompt."""
        return min(self.prompts)

    @property
    def first_told(self) -> int:
        """The first frame whose mask is handed out."""
        if self.told.last is not None and self.told.last < self.begins:
            return self.told.last
        settled = -1 if self.settled.last is None else self.settled.last
        return max(self.begins, self.told.first, settled + 1)

    def task(self, object_id: int, index: int, stage: Stage) -> Task | None:
        """What the object wants of a frame at a stage, if anything."""
        prompt = self.prompts.get(index)
        if stage == "restate":
            return Task(object_id, "restate", prompt, False) if index in self.ahead else None
        if index not in (self.forward if stage == "forward" else self.backward):
            return None
        is_told = index in self.told and index not in self.settled
        if prompt is None:
            return Task(object_id, "track", None, is_told)
        kind: Kind = "correct"
        if index == self.begins:
            kind = "begin"
        elif index in restated(self.prompts):
            kind = "recall"
        return Task(object_id, kind, prompt, is_told)


def restated(prompts: Mapping[int, Prompt]) -> frozenset[int]:
    """Frames after the first on which an object is described completely: by a box or a mask."""
    begins = min(prompts)
    return frozenset(
        index
        for index, prompt in prompts.items()
        if index > begins and (prompt.mask is not None or prompt.box_xyxy_px is not None)
    )


def by_object(prompts: Sequence[Prompt]) -> dict[int, dict[int, Prompt]]:
    """Prompts as object → frame → prompt, objects as first named; raises PromptError for two."""
    table: dict[int, dict[int, Prompt]] = {}
    for prompt in prompts:
        frames = table.setdefault(prompt.object_id, {})
        if prompt.frame_index in frames:
            raise PromptError(f"{prompt.where}: given twice; wanted one prompt a frame")
        frames[prompt.frame_index] = prompt
    return table


@dataclass(frozen=True, slots=True)
class LabellingPlan:
    """A video's objects and their courses, in the order in which they were named."""

    courses: dict[int, Course]

    @classmethod
    def make(
        cls,
        prompts: Sequence[Prompt],
        first_frame: int,
        last_frame: int | None,
        height: int,
        width: int,
    ) -> "LabellingPlan":
        """Both passes over frames first_frame … last_frame, both inclusive, for every object.

        Checks the prompts against the video's size and span; raises PromptError.
        """
        if not prompts:
            raise PromptError("no prompts; wanted at least one object")
        span = Span(first_frame, last_frame)
        for prompt in prompts:
            prompt.check_inside(None, height, width)
            if prompt.frame_index not in span:
                raise PromptOutOfRange(
                    f"{prompt.where}: outside the span of frames {first_frame} to "
                    f"{'the end' if last_frame is None else last_frame}"
                )
        return cls({o: Course.whole(frames, span) for o, frames in by_object(prompts).items()})

    @property
    def object_ids(self) -> list[int]:
        """All objects, in the order in which they were named."""
        return list(self.courses)

    def visits(self, video: Frames) -> Iterator[Visit]:
        """The frames in the order of the plan; raises PromptError past the video's end."""
        for index in sorted({f for course in self.courses.values() for f in course.ahead}):
            yield Visit(self._prompted_frame(video, index), "restate")
        yield from self._forward(video)
        spans = [c.backward for c in self.courses.values() if not c.backward.is_empty]
        if spans:
            stop = 1 + max(s.last for s in spans if s.last is not None)
            for frame in video.frames_backwards(min(s.first for s in spans), stop):
                yield Visit(frame, "backward")

    def tasks(self, visit: Visit) -> list[Task]:
        """What the objects want of a visit; each is told at most once on each frame."""
        index, stage = visit.frame.index, visit.stage
        tasks = (course.task(o, index, stage) for o, course in self.courses.items())
        return [task for task in tasks if task is not None]

    def _forward(self, video: Frames) -> Iterator[Visit]:
        spans = [c.forward for c in self.courses.values() if not c.forward.is_empty]
        if not spans:
            return
        lasts = [s.last for s in spans]
        first = min(s.first for s in spans)
        last = None if None in lasts else max(x for x in lasts if x is not None)
        last_seen = -1
        for frame in video.frames(first, None if last is None else last + 1):
            last_seen = frame.index
            yield Visit(frame, "forward")
        prompted = [f for c in self.courses.values() for f in c.prompts if f in c.forward]
        if last_seen < max(prompted, default=-1):
            raise self._past_the_end(max(prompted), last_seen + 1 if last_seen >= 0 else None)

    def _prompted_frame(self, video: Frames, index: int) -> SeenFrame:
        frame = next(iter(video.frames(index, index + 1)), None)
        if frame is None:
            raise self._past_the_end(index, None)
        return frame

    def _past_the_end(self, index: int, num_frames: int | None) -> PromptOutOfRange:
        where = next(c.prompts[index].where for c in self.courses.values() if index in c.prompts)
        has = "fewer frames" if num_frames is None else f"frames 0 to {num_frames - 1}"
        return PromptOutOfRange(f"{where}: the video has {has}")
