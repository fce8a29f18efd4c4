"""Many videos at once through one model: frames in, masks as run lengths out.

Knows nothing of files, tables or clusters. Objects are slots of shared steps: whichever objects
of whichever videos have their next frame ready advance together, so a step is full although
every video has few objects. A video is asked for only as fast as its masks are taken.
"""

import atexit
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from sam2model.device_budget import free_bytes_on_cuda, peak_bytes_on_cuda, slots_that_fit
from sam2model.feature_cache import KnownFrame, KnownFrames
from sam2model.frame_encoder import FrameEncoder
from sam2model.graphs import GraphRunner, Runner, record_on_cuda
from sam2model.labelling_plan import FrameTime, LabellingPlan, Span, by_object
from sam2model.processing import Sam2VideoProcessor
from sam2model.prompts import Prompt, PromptOutOfRange
from sam2model.refinement_memory import VideoMemory
from sam2model.resumption import Start, resume, tell_only
from sam2model.schedule import Decoded, Encoded, EngineOptions, Job, Lane, Schedule
from sam2model.semantics import LABELLING, Semantics
from sam2model.stepper import Stepper
from sam2model.track_step import Sam2Network
from sam2model.tracked_masks import FrameMasks
from sam2model.tracker import Tracker
from sam2model.transfers import Pace, mark_on_cuda, send
from sam2model.video import Frame, Video

__all__ = ["Cancelled", "DeadlineExceeded", "Engine", "EngineOptions", "Lane"]

T = TypeVar("T", Decoded, Encoded)

log = logging.getLogger(__name__)

FEEDER_PATIENCE_S = 5.0  # for a decoder to notice that nobody wants its frames any more


class Cancelled(RuntimeError):
    """The engine was closed before this video was done."""


class DeadlineExceeded(TimeoutError):
    """A video was not done in its time; the message says how far it came."""


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
        runner: Runner | None = None,
    ) -> None:
        """runner: how steps are done; by default as CUDA graphs where there is a GPU."""
        self.processor = processor
        self.options = options or EngineOptions()
        if runner is None and network.device.type == "cuda" and self.options.graphs:
            runner = GraphRunner(record_on_cuda())
        slots = self.options.slots
        self.stepper = Stepper(network, semantics, keep_all=False, slots=slots, runner=runner)
        if network.device.type == "cuda":
            self._fit_slots(network.device)
        self.network = self.stepper.network
        self.tracker = Tracker(self.stepper, processor)
        self.encoder = FrameEncoder(
            self.network,
            processor.video_processor.normalise,
            self.options.frame_batch,
            runner,
            compiles=self.options.compile_encoder,
        )
        self.frames_tracked = 0
        self.schedule = Schedule(self.options)
        self._changed = self.schedule.changed
        self._next_key = 0
        self._pace = Pace(mark_on_cuda) if network.device.type == "cuda" else None
        self._threads = [
            threading.Thread(target=self._run, args=(turn,), name=name, daemon=True)
            for name, turn in (("engine", self._take_turn), ("run lengths", self._write_masks))
        ]
        for thread in self._threads:
            thread.start()
        # A script that ends without closing would end in the middle of an operator: aborted.
        atexit.register(self.close)

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
            if self.schedule.stopped:
                raise Cancelled("the engine is closed")
            job = Job(video, plan, starts, lane, memory, self._next_key)
            self._next_key += len(plan.object_ids)
        feeder = threading.Thread(target=self._feed, args=(job,), name="decode", daemon=True)
        with self._changed:
            self.schedule.jobs.append(job)
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
            self.schedule.stop()
        for thread in self._threads:
            thread.join()
        atexit.unregister(self.close)

    def _results(self, job: Job, deadline_s: float | None) -> Iterator[FrameMasks]:
        began, frames = time.monotonic(), 0
        while True:
            left_s = None if deadline_s is None else began + deadline_s - time.monotonic()
            with self._changed:
                came = (left_s is None or left_s > 0) and self._changed.wait_for(
                    lambda: job.results or job.error or job.all_tracked or self.schedule.stopped,
                    left_s,
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

    @torch.inference_mode()
    def _fit_slots(self, device: torch.device) -> None:
        """Take no larger steps than the device has memory for."""
        self.stepper.rehearse(1)  # kernels are measured and loaded, which takes memory too
        measure = peak_bytes_on_cuda(self.stepper.rehearse, device)
        slots = slots_that_fit(measure, free_bytes_on_cuda(device), self.options.slots)
        self.stepper.slots = slots
        self.options = replace(self.options, slots=slots)

    # Decoding: one thread for each video.

    def _feed(self, job: Job) -> None:
        is_over = self.schedule.is_over
        try:
            memory, frames = job.memory, job.video
            known = frames if memory is None else KnownFrames(frames, memory.features)
            for visit in job.plan.visits(known):
                pixels, frame = None, visit.frame
                if isinstance(frame, Frame):
                    resized = self.processor.video_processor.resize(frame.rgb)
                    pixels = send(resized, self.network.device)
                    visit = replace(visit, frame=FrameTime(frame.index, frame.pts_s))
                with self._changed:
                    self._changed.wait_for(
                        lambda: len(job.decoded) < self.options.frames_ahead or is_over(job)
                    )
                    if is_over(job):
                        return
                    job.decoded.append(Decoded(job, visit, pixels))
                    self._changed.notify_all()
        except BaseException as error:  # crosses to the thread that asked
            job.ended_by = error
        with self._changed:
            job.all_decoded = True
            self._changed.notify_all()

    @torch.inference_mode()
    def _run(self, turn: Callable[[], bool]) -> None:
        """Take turn after turn, until the engine is closed."""
        try:
            while turn():
                pass
        except BaseException as error:  # a defect of the engine's own: nobody may wait for ever
            log.exception("the engine broke")
            with self._changed:
                self.schedule.fail(self.schedule.jobs, error)
                self.schedule.stop()

    # Run lengths: one thread for all videos.

    def _write_masks(self) -> bool:
        """Make one frame's masks run lengths and hand them out; False when closed."""
        schedule = self.schedule
        with self._changed:
            self._changed.wait_for(lambda: schedule.stopped or schedule.unwritten)
            unwritten = schedule.next_unwritten()
        if unwritten is None:
            return not schedule.stopped
        job, frame, info = unwritten.job, unwritten.frame, unwritten.job.video.info
        try:
            masks = unwritten.masks.finish()
        except BaseException as error:  # of this video's masks alone
            with self._changed:
                schedule.fail([job], error)
            return True
        result = FrameMasks(frame.index, frame.pts_s, info.height, info.width, masks)
        with self._changed:
            job.unwritten -= 1
            job.results.append(result)
            self._changed.notify_all()
        return True

    # The engine's thread: encode, step, and again.

    def _take_turn(self) -> bool:
        """Encode and step once, when there is work; False when closed. Between turns, hold nothing.

        Whatever fails reaches every video of its batch or step, and no other.
        """
        schedule = self.schedule
        with self._changed:
            self._changed.wait_for(lambda: schedule.stopped or schedule.has_work())
            if schedule.stopped:
                return False
            for job in schedule.drop_finished():
                self.tracker.leave(job)
        while True:  # one look after the other, so that an interactive video is seen at once
            with self._changed:
                batch = schedule.next_batch()
            if not batch:
                break
            self._try(self._encode, batch)
        with self._changed:
            step = schedule.next_step()
        if step:
            self._try(self._step, step)
        return True

    def _try(self, work: Callable[[list[T]], None], frames: list[T]) -> None:
        try:
            work(frames)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they would hold what had no room
            with self._changed:
                self.schedule.fail((frame.job for frame in frames), error)

    def _encode(self, frames: list[Decoded]) -> None:
        """Put features of frames in their videos' queues, in order."""
        new = [f.pixels.arrived() for f in frames if f.pixels is not None]
        rows = iter(self.encoder.encode(new) if new else [])
        for frame in frames:
            seen, memory = frame.visit.frame, frame.job.memory
            if isinstance(seen, KnownFrame):
                features = seen.features_on(self.network.device)
            else:
                features = next(rows)
                if memory is not None:
                    memory.features.put(seen.index, seen.pts_s, features)
            frame.job.encoded.append(Encoded(frame.job, frame.visit, features))

    def _step(self, step: list[Encoded]) -> None:
        """Advance each of these videos by its frame, all their objects together."""
        unwritten = self.tracker.advance(step)
        with self._changed:
            for masks in unwritten:
                if not self.schedule.is_over(masks.job):
                    masks.job.unwritten += 1
                    self.schedule.unwritten.append(masks)
            self._changed.notify_all()
        self.frames_tracked += len(step)
        if self._pace is not None:
            self._pace.launched()
