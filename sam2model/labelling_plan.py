"""In which order a video's frames are visited, and what each object wants of a visit.

Knows nothing of models. The rules, which make a labelling a function of its prompts:
an object's first prompt stands alone; forward in time from there to the end, then backward
from there to the beginning. A later box or mask describes the object completely: it is read
before all tracking, so that both sides of it profit. Later clicks correct what tracking gives
on their frame, and count from then on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sam2model.memory_bank import Direction
from sam2model.prompts import Prompt, PromptError, PromptOutOfRange
from sam2model.video import Frame, Video

Stage = Literal["restate", "forward", "backward"]
Kind = Literal["begin", "restate", "recall", "correct", "track"]


@dataclass(frozen=True, slots=True)
class Visit:
    """One frame at one stage of the plan."""

    frame: Frame
    stage: Stage

    @property
    def direction(self) -> Direction:
        """Of the pass that this visit belongs to."""
        return -1 if self.stage == "backward" else 1


@dataclass(frozen=True, slots=True)
class Task:
    """What one object wants of a visit.

    begin: its first prompt. restate: a later box or mask, read ahead; `recall` is its answer
    when the pass comes by. correct: later clicks. track: no prompt.
    """

    object_id: int
    kind: Kind
    prompt: Prompt | None = None


@dataclass(frozen=True, slots=True)
class LabellingPlan:
    """A video's prompts, put in order. first_frame and last_frame are inclusive."""

    prompts: dict[int, dict[int, Prompt]]  # object → frame → prompt
    first_frame: int
    last_frame: int | None

    @classmethod
    def make(
        cls,
        prompts: Sequence[Prompt],
        first_frame: int,
        last_frame: int | None,
        height: int,
        width: int,
    ) -> "LabellingPlan":
        """Check the prompts against the video's size and span; raises PromptError."""
        if not prompts:
            raise PromptError("no prompts; wanted at least one object")
        table: dict[int, dict[int, Prompt]] = {}
        for prompt in prompts:
            prompt.check_inside(None, height, width)
            beyond = last_frame is not None and prompt.frame_index > last_frame
            if prompt.frame_index < first_frame or beyond:
                raise PromptOutOfRange(
                    f"{prompt.where}: outside the span of frames {first_frame} to "
                    f"{'the end' if last_frame is None else last_frame}"
                )
            frames = table.setdefault(prompt.object_id, {})
            if prompt.frame_index in frames:
                raise PromptError(f"{prompt.where}: given twice; wanted one prompt a frame")
            frames[prompt.frame_index] = prompt
        return cls(table, first_frame, last_frame)

    @property
    def object_ids(self) -> list[int]:
        """All objects, in the order in which they were named."""
        return list(self.prompts)

    def begins(self, object_id: int) -> int:
        """The frame of an object's first prompt."""
        return min(self.prompts[object_id])

    def visits(self, video: Video) -> Iterator[Visit]:
        """The video's frames in the order of the plan; raises PromptError past the video's end."""
        for index in sorted({f for o in self.prompts for f in self._restated(o)}):
            yield Visit(self._prompted_frame(video, index), "restate")
        firsts = [self.begins(o) for o in self.prompts]
        stop = None if self.last_frame is None else self.last_frame + 1
        last_seen = -1
        for frame in video.frames(min(firsts), stop):
            last_seen = frame.index
            yield Visit(frame, "forward")
        latest = max(f for frames in self.prompts.values() for f in frames)
        if last_seen < latest:
            raise self._past_the_end(latest, last_seen + 1 if last_seen >= 0 else None)
        if max(firsts) > self.first_frame:
            for frame in video.frames_backwards(self.first_frame, max(firsts)):
                yield Visit(frame, "backward")

    def tasks(self, visit: Visit) -> list[Task]:
        """What the objects want of a visit; each object is emitted once on each frame."""
        index, stage = visit.frame.index, visit.stage
        tasks = []
        for object_id, frames in self.prompts.items():
            begins = self.begins(object_id)
            prompt = frames.get(index)
            if stage == "restate":
                if index in self._restated(object_id):
                    tasks.append(Task(object_id, "restate", prompt))
            elif stage == "backward":
                if index < begins:
                    tasks.append(Task(object_id, "track"))
            elif index == begins:
                tasks.append(Task(object_id, "begin", prompt))
            elif index > begins:
                kind: Kind = "track" if prompt is None else "correct"
                kind = "recall" if index in self._restated(object_id) else kind
                tasks.append(Task(object_id, kind, prompt))
        return tasks

    def _restated(self, object_id: int) -> set[int]:
        """Frames after the first on which an object is described completely."""
        begins = self.begins(object_id)
        return {
            index
            for index, prompt in self.prompts[object_id].items()
            if index > begins and (prompt.mask is not None or prompt.box_xyxy_px is not None)
        }

    def _prompted_frame(self, video: Video, index: int) -> Frame:
        frame = next(iter(video.frames(index, index + 1)), None)
        if frame is None:
            raise self._past_the_end(index, None)
        return frame

    def _past_the_end(self, index: int, num_frames: int | None) -> PromptOutOfRange:
        where = next(f[index].where for f in self.prompts.values() if index in f)
        has = "fewer frames" if num_frames is None else f"frames 0 to {num_frames - 1}"
        return PromptOutOfRange(f"{where}: the video has {has}")
