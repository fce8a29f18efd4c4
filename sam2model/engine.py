"""Many videos at once through one model: frames in, masks as run lengths out.

Knows nothing of files, tables or clusters. Objects are slots of shared steps: whichever objects
of whichever videos have their next frame ready advance together, so a step is full although
every video has few objects. A video is asked for only as fast as its masks are taken.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from sam2model.feature_cache import KnownFrame, KnownFrames
from sam2model.labelling_plan import Kind, LabellingPlan, Span, Task, Visit, by_object
from sam2model.processing import Sam2VideoProcessor
from sam2model.prompts import Prompt, PromptOutOfRange
from sam2model.recorder import Recorder, put_at_start
from sam2model.refinement_memory import VideoMemory
from sam2model.resumption import Start, resume, tell_only
from sam2model.semantics import LABELLING, Semantics
from sam2model.stepper import Ask, Stepper
from sam2model.track_step import (
    ImageFeatures,
    Sam2Network,
    StepOutput,
    concatenate,
    join_rows,
)
from sam2model.tracked_masks import FrameMasks, tracked_masks
from sam2model.video import Frame, Video

log = logging.getLogger(__name__)

Lane = Literal["bulk", "interactive"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much an engine does at once; no effect on the masks.

    slots: objects of one step. frame_batch: frames encoded together, of any videos.
    frames_ahead: frames of one video decoded before they are needed. results_ahead: frames of
    masks of one video that may wait to be taken.
    """

    slots: int = 16
    frame_batch: int = 4
    frames_ahead: int = 8
    results_ahead: int = 16

    def __post_init__(self) -> None:
        for option in fields(self):
            if getattr(self, option.name) < 1:
                raise ValueError(
                    f"{option.name}: got {getattr(self, option.name)}; wanted 1 or more"
                )


FEEDER_PATIENCE_S = 5.0  # for a decoder to notice that nobody wants its frames any more


class Cancelled(RuntimeError):
    """The engine was closed before this video was done."""


class DeadlineExceeded(TimeoutError):
    """A video was not done in its time; the message says how far it came."""


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    """A frame at the model's size, (3, S, S) uint8, waiting to be encoded; None if it is known."""

    job: "_Job"
    visit: Visit
    pixels: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    """A frame's features, one row, waiting for their step."""

    job: "_Job"
    visit: Visit
    features: ImageFeatures


class _Job:
    """One video in the engine. Queues and flags are guarded by the engine's condition."""

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
        self.decoded: deque[_Decoded] = deque()
        self.encoded: deque[_Encoded] = deque()
        self.results: deque[FrameMasks] = deque()
        self.all_decoded = False
        self.ended_by: BaseException | None = None  # what decoding ended with, if not the end
        self.all_tracked = False
        self.closed = False
        self.error: BaseException | None = None


class Engine:
    """One model on one device, shared by any number of threads that call `label`.

    Raises whatever the video or the device raises from the `label` that it happened to.
    """

    def __init__(
        self,
        network: Sam2Network,
        processor: Sam2VideoProcessor,
        semantics: Semantics = LABELLING,
        options: EngineOptions | None = None,
    ) -> None:
        self.processor = processor
        self.options = options or EngineOptions()
        self.stepper = Stepper(network, semantics, keep_all=False, slots=self.options.slots)
        self.network = self.stepper.network
        self.frames_tracked = 0
        self._jobs: list[_Job] = []
        self._next_key = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def label(
        self,
        video: Video,
        prompts: Sequence[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        lane: Lane = "bulk",
        deadline_s: float | None = None,
        memory: VideoMemory | None = None,
    ) -> Iterator[FrameMasks]:
        """Masks of every prompted object on every frame of the span, as they are made.

        Forward from the first prompt of all, then backward from the objects' first prompts:
        each object once on each frame. last_frame: inclusive, None for the video's end.
        deadline_s: seconds from now in which all must be taken. memory: keeps what a later
        refinement of this video can use. Closing the iterator stops the
        work within a step. Raises PromptError before the first mask, or for clicks beyond the
        video's end where that is reached; VideoError where decoding ends early, after the masks
        of the frames before; DeadlineExceeded also where it hangs.
        """
        yield from self.refine(
            video,
            prompts,
            memory,
            first_frame=first_frame,
            last_frame=last_frame,
            lane=lane,
            deadline_s=deadline_s,
        )

    def refine(
        self,
        video: Video,
        prompts: Sequence[Prompt],
        memory: VideoMemory | None,
        *,
        before: Sequence[Prompt] | None = None,
        first_frame: int = 0,
        last_frame: int | None = None,
        told: Span | None = None,
        lane: Lane = "interactive",
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        """The masks of `label` with these prompts, computing no more than is needed for them.

        prompts: all prompts of the objects to go through again, old and new. before: all prompts
        of the same objects as their present masks were made; masks that are still the same are
        then neither computed nor told (`prompt_effect` says which), a frame without a new mask
        is left out, and an object without one is left out of a frame. None tells everything.
        first_frame, last_frame: the labelled span, inclusive, as given to `label`. told: the
        frames to be told, all by default. memory: where to begin again, and what to keep for the
        next time; None begins at the prompts.
        Forward from the first frame that changes, then backward; else as `label`. With
        reference semantics all is computed, and `told` of it told.
        """
        info = video.info
        plan = LabellingPlan.make(prompts, first_frame, last_frame, info.height, info.width)
        if memory is not None:
            memory.claim(self, video.name)
        told = told or Span(first_frame, last_frame)
        starts: dict[int, Start] = {}
        if self.stepper.bank.one_history:  # then a pass reads what the other left
            plan = tell_only(plan, told)
        else:
            plan, starts = resume(
                plan,
                None if before is None else by_object(before),
                told,
                None if memory is None else memory.snapshots,
                self.stepper.bank.limits.max_conditioning,
            )
        if memory is not None and plan.courses:
            memory.features.focus(min(c.first_told for c in plan.courses.values()))
        with self._changed:
            if self._stopped:
                raise Cancelled("the engine is closed")
            job = _Job(video, plan, starts, lane, memory, self._next_key)
            self._next_key += len(plan.object_ids)
        feeder = threading.Thread(target=self._feed, args=(job,), name="decode", daemon=True)
        with self._changed:
            self._jobs.append(job)
            feeder.start()
        try:
            yield from self._results(job, deadline_s)
        finally:
            with self._changed:
                job.closed = True
                self._changed.notify_all()
            # The video is the caller's to close, when nobody reads it any more. A decoder that
            # hangs in native code cannot be stopped; its thread ends with the process.
            feeder.join(FEEDER_PATIENCE_S)

    def preview(
        self,
        video: Video,
        prompts: Sequence[Prompt],
        memory: VideoMemory | None,
        frame_index: int,
        *,
        first_frame: int = 0,
        last_frame: int | None = None,
        deadline_s: float | None = None,
    ) -> FrameMasks:
        """The masks that `refine` would give one frame: what a click there does at once.

        prompts: all of the objects to be shown, on all frames: a correction sees the object's
        past. Raises PromptOutOfRange where the video has no such frame.
        """
        told = Span(frame_index, frame_index)
        masks = self.refine(
            video,
            prompts,
            memory,
            first_frame=first_frame,
            last_frame=last_frame,
            told=told,
            deadline_s=deadline_s,
        )
        parts = list(masks)
        if not parts:
            raise PromptOutOfRange(f"{video.name}: there is no frame {frame_index} to preview")
        by_id = {mask.object_id: mask for part in parts for mask in part.masks}
        ids = dict.fromkeys(prompt.object_id for prompt in prompts)
        return replace(parts[0], masks=[by_id[object_id] for object_id in ids])

    def close(self) -> None:
        """Stop after the present step; labels in progress raise Cancelled."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _results(self, job: _Job, deadline_s: float | None) -> Iterator[FrameMasks]:
        began, frames = time.monotonic(), 0
        while True:
            left_s = None if deadline_s is None else began + deadline_s - time.monotonic()
            with self._changed:
                came = (left_s is None or left_s > 0) and self._changed.wait_for(
                    lambda: job.results or job.error or job.all_tracked or self._stopped, left_s
                )
                if not came:
                    raise DeadlineExceeded(
                        f"{job.video.name}: {frames} frames in {deadline_s:.0f} s, the deadline"
                    )
                if job.results:
                    result = job.results.popleft()
                    self._changed.notify_all()
                elif job.error is not None:
                    raise job.error
                elif job.all_tracked:
                    return
                else:
                    raise Cancelled("the engine was closed while this video was being labelled")
            frames += 1
            yield result

    # Decoding: one thread for each video.

    def _feed(self, job: _Job) -> None:
        try:
            memory, frames = job.memory, job.video
            known = frames if memory is None else KnownFrames(frames, memory.features)
            for visit in job.plan.visits(known):
                pixels = None
                if isinstance(visit.frame, Frame):
                    pixels = self.processor.video_processor.resize(visit.frame.rgb)
                with self._changed:
                    self._changed.wait_for(
                        lambda: len(job.decoded) < self.options.frames_ahead or self._is_over(job)
                    )
                    if self._is_over(job):
                        return
                    job.decoded.append(_Decoded(job, visit, pixels))
                    self._changed.notify_all()
        except BaseException as error:  # crosses to the thread that asked
            job.ended_by = error
        with self._changed:
            job.all_decoded = True
            self._changed.notify_all()

    def _is_over(self, job: _Job) -> bool:
        return job.closed or self._stopped or job.error is not None

    def _fail(self, jobs: Iterable[_Job], error: BaseException) -> None:
        with self._changed:
            for job in jobs:
                job.error = error
            self._changed.notify_all()

    # The engine's thread: encode, step, and again.

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._take_turn():
                pass
        except BaseException as error:  # a defect of the engine's own: nobody may wait for ever
            log.exception("the engine broke")
            self._fail(self._jobs, error)
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _take_turn(self) -> bool:
        """Encode and step once, when there is work; False when closed. Between turns, hold nothing.

        Whatever fails reaches every video of its batch or step, and no other.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_work())
            if self._stopped:
                return False
            self._drop_finished()
            frames = self._next_frames()
        size = self.options.frame_batch
        for batch in (frames[i : i + size] for i in range(0, len(frames), size)):
            try:
                self._encode(batch)
            except BaseException as error:
                self._fail((f.job for f in batch), error)
        with self._changed:
            step = self._next_step()
        try:
            self._step(step)
        except BaseException as error:
            self._fail((e.job for e in step), error)
        return True

    def _has_work(self) -> bool:
        return any(self._is_finished(job) or self._can_go_on(job) for job in self._jobs)

    def _can_go_on(self, job: _Job) -> bool:
        to_encode = bool(job.decoded) and not job.encoded
        return to_encode or (bool(job.encoded) and len(job.results) < self.options.results_ahead)

    def _is_finished(self, job: _Job) -> bool:
        tracked = job.all_decoded and not job.decoded and not job.encoded
        return tracked or self._is_over(job)

    def _drop_finished(self) -> None:
        for job in [j for j in self._jobs if self._is_finished(j)]:
            job.all_tracked = not self._is_over(job)
            job.error = job.error or job.ended_by
            self._jobs.remove(job)
            job.decoded.clear()  # a decoder that hangs holds the job, and need not hold these
            job.encoded.clear()
            if job.in_bank:
                for key in job.keys.values():
                    self.stepper.bank.remove_object(key)
        self._changed.notify_all()

    def _in_turn(self) -> list[_Job]:
        """Videos that may go on now: interactive ones alone while any has something to do."""
        urgent = [j for j in self._jobs if j.lane == "interactive" and self._can_go_on(j)]
        return urgent or self._jobs

    def _next_frames(self) -> list[_Decoded]:
        """A frame of each video that has none encoded, then more of them to fill the last batch."""
        jobs = [j for j in self._in_turn() if j.decoded and not j.encoded]
        frames = [job.decoded.popleft() for job in jobs]
        room = -len(frames) % self.options.frame_batch
        while room > 0 and (jobs := [j for j in jobs if j.decoded]):
            frames += [job.decoded.popleft() for job in jobs[:room]]
            room -= len(jobs[:room])
        self._changed.notify_all()
        return frames

    def _encode(self, frames: list[_Decoded]) -> None:
        """Put features of frames in their videos' queues, in order."""
        new = [f.pixels for f in frames if f.pixels is not None]
        rows: Iterator[ImageFeatures] = iter(())
        if new:
            pixels = torch.stack(new)
            if self.network.device.type == "cuda":
                pixels = pixels.pin_memory().to(self.network.device, non_blocking=True)
            batch = self.network.encode_images(self.processor.video_processor.normalise(pixels))
            rows = (batch.rows(slice(row, row + 1)) for row in range(len(new)))
        for frame in frames:
            seen, memory = frame.visit.frame, frame.job.memory
            if isinstance(seen, KnownFrame):
                features = seen.features_on(self.network.device)
            else:
                features = next(rows)
                if memory is not None:
                    memory.features.put(seen.index, seen.pts_s, features)
            frame.job.encoded.append(_Encoded(frame.job, frame.visit, features))

    def _next_step(self) -> list[_Encoded]:
        """The next frame of each video whose masks are being taken."""
        ahead = self.options.results_ahead
        jobs = [j for j in self._in_turn() if j.encoded and not self._is_over(j)]
        return [j.encoded.popleft() for j in jobs if len(j.results) < ahead]

    def _step(self, step: list[_Encoded]) -> None:
        """Advance each of these videos by its frame, all their objects together."""
        if not step:
            return
        image = join_rows([e.features for e in step])
        tasks = [e.job.plan.tasks(e.visit) for e in step]
        for encoded in step:
            self._enter_bank(encoded.job)
        wanted = [(e, row, task) for row, e in enumerate(step) for task in tasks[row]]
        asks: dict[Kind, list[Ask]] = {}
        places: dict[Kind, list[tuple[int, int]]] = {}
        answers: dict[tuple[int, int], StepOutput] = {}
        for encoded, row, task in wanted:
            if task.kind == "recall":
                answers[row, task.object_id] = encoded.job.answers.pop(
                    (task.object_id, encoded.visit.frame.index)
                )
                continue
            asks.setdefault(task.kind, []).append(self._ask(encoded, row, task))
            places.setdefault(task.kind, []).append((row, task.object_id))
        run = {
            "begin": self.stepper.prompt,
            "restate": self.stepper.prompt,
            "correct": self.stepper.correct,
            "track": self.stepper.track,
        }
        for kind, group in asks.items():
            output = run[kind](image, group)
            for i, place in enumerate(places[kind]):
                answers[place] = output.rows(slice(i, i + 1))
        for row, encoded in enumerate(step):
            told = {o: a for (r, o), a in answers.items() if r == row}
            if encoded.job.recorder is not None:
                encoded.job.recorder.note(encoded.visit, tasks[row], told)
            self._finish(encoded, tasks[row], told)
        self.frames_tracked += len(step)

    def _enter_bank(self, job: _Job) -> None:
        """Before a video's first step: remember its objects as they were where they begin."""
        if job.in_bank:
            return
        job.in_bank = True
        bank = self.stepper.bank
        job.answers |= put_at_start(bank, job.keys, job.starts)
        if job.memory is not None and not bank.one_history:
            job.recorder = Recorder(bank, job.plan, job.keys, job.starts, job.memory.snapshots)

    def _ask(self, encoded: _Encoded, row: int, task: Task) -> Ask:
        job, visit = encoded.job, encoded.visit
        prompt = None
        if task.prompt is not None:
            size = (job.video.info.height, job.video.info.width)
            prompt = self.processor.model_prompt(task.prompt, *size).to(self.network.device)
        # A stream's length is not known, so pointers always reach back the full span.
        return Ask(job.keys[task.object_id], row, visit.frame.index, visit.direction, None, prompt)

    def _finish(self, encoded: _Encoded, tasks: list[Task], answers: dict[int, StepOutput]) -> None:
        """Keep what was read ahead, or hand out the masks of a visited frame."""
        job, frame = encoded.job, encoded.visit.frame
        if encoded.visit.stage == "restate":
            job.answers |= {(o, frame.index): answer for o, answer in answers.items()}
            return
        ids = [task.object_id for task in tasks if task.is_told]
        if not ids:
            return
        info = job.video.info
        masks = tracked_masks(
            concatenate([answers[o] for o in ids]),
            ids,
            [frame.index in job.plan.courses[o].prompts for o in ids],
            info.height,
            info.width,
        )
        result = FrameMasks(frame.index, frame.pts_s, info.height, info.width, masks)
        with self._changed:
            job.results.append(result)
            self._changed.notify_all()
