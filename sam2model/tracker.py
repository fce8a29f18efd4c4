"""Frames of several videos to the masks of all their objects, in as few steps as can be.

Knows nothing of whose turn it is, of decoding or of threads.
"""

from collections.abc import Sequence

from sam2model.labelling_plan import FrameTime, Kind, Task
from sam2model.processing import Sam2VideoProcessor
from sam2model.recorder import Recorder, put_at_start
from sam2model.schedule import Encoded, Job, Unwritten
from sam2model.stepper import Ask, Stepper
from sam2model.track_step import StepOutput, concatenate, join_rows
from sam2model.tracked_masks import PendingMasks


class Tracker:
    """The bank's objects on the way through their videos' plans."""

    def __init__(self, stepper: Stepper, processor: Sam2VideoProcessor) -> None:
        self.stepper = stepper
        self.processor = processor

    def leave(self, job: Job) -> None:
        """Forget a video's objects."""
        for key in job.keys.values():
            self.stepper.bank.remove_object(key)

    def advance(self, step: list[Encoded]) -> list[Unwritten]:
        """Track or segment everything that the videos' frames call for; the masks to be told."""
        image = join_rows([e.features for e in step])
        tasks = [e.tasks for e in step]
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
        unwritten = []
        for row, encoded in enumerate(step):
            told = {o: a for (r, o), a in answers.items() if r == row}
            if encoded.job.recorder is not None:
                encoded.job.recorder.note(encoded.visit, tasks[row], told)
            masks = self.finish(encoded, tasks[row], told)
            unwritten += [] if masks is None else [masks]
        return unwritten

    def _enter_bank(self, job: Job) -> None:
        """Before a video's first step: remember its objects as they were where they begin."""
        if job.in_bank:
            return
        job.in_bank = True
        bank = self.stepper.bank
        job.answers |= put_at_start(bank, job.keys, job.starts)
        if job.memory is not None and not bank.one_history:
            job.recorder = Recorder(bank, job.plan, job.keys, job.starts, job.memory.snapshots)

    def _ask(self, encoded: Encoded, row: int, task: Task) -> Ask:
        job, visit = encoded.job, encoded.visit
        prompt = None
        if task.prompt is not None:
            size = (job.video.info.height, job.video.info.width)
            prompt = self.processor.model_prompt(task.prompt, *size).to(self.stepper.network.device)
        # A stream's length is not known, so pointers always reach back the full span.
        return Ask(job.keys[task.object_id], row, visit.frame.index, visit.direction, None, prompt)

    def finish(
        self, encoded: Encoded, tasks: Sequence[Task], answers: dict[int, StepOutput]
    ) -> Unwritten | None:
        """Keep what was read ahead, or begin to make run lengths of what is to be told."""
        job, frame = encoded.job, encoded.visit.frame
        if encoded.visit.stage == "restate":
            job.answers |= {(o, frame.index): answer for o, answer in answers.items()}
            return None
        ids = [task.object_id for task in tasks if task.is_told]
        if not ids:
            return None
        info = job.video.info
        masks = PendingMasks(
            concatenate([answers[o] for o in ids]),
            ids,
            [frame.index in job.plan.courses[o].prompts for o in ids],
            info.height,
            info.width,
        )
        return Unwritten(job, FrameTime(frame.index, frame.pts_s), masks)
