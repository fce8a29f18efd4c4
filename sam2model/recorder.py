"""Puts objects into the bank where they begin, and writes down how they go on from there.

Knows nothing of frames' pixels or of the order of visits. Runs in the engine's thread.
"""

from collections.abc import Mapping, Sequence

from sam2model.labelling_plan import LabellingPlan, Task, Visit
from sam2model.memory_bank import Direction, MemoryBank
from sam2model.prompt_effect import history
from sam2model.resumption import Start
from sam2model.snapshots import ParkedPage, Snapshot, SnapshotStore, StandingAnswer
from sam2model.track_step import StepOutput
from sam2model.transfers import park


def put_at_start(
    bank: MemoryBank, keys: Mapping[int, int], starts: Mapping[int, Start]
) -> dict[tuple[int, int], StepOutput]:
    """Remember each object as its `Start` says; what it answered already: (object, frame) →."""
    answers = {}
    for object_id, key in keys.items():
        bank.add_object(key)
        start = starts.get(object_id, Start())
        for frame, standing in start.standing.items():
            bank.put_conditioning_page(key, frame, standing.remembered.page(bank.device))
            answers[object_id, frame] = standing.answer(bank.device)
        passes: list[tuple[Direction, Snapshot | None]] = [(1, start.forward), (-1, start.backward)]
        for direction, snapshot in passes:
            if snapshot is None:
                continue
            for frame, page in snapshot.corrections.items():
                if not bank.is_conditioning(key, frame):
                    bank.put_conditioning_page(key, frame, page.page(bank.device))
            bank.put_recent_pages(key, direction, snapshot.recent(bank.device))
    return answers


class Recorder:
    """Writes snapshots and answers of one video's objects down as its visits are done."""

    def __init__(
        self,
        bank: MemoryBank,
        plan: LabellingPlan,
        keys: Mapping[int, int],
        starts: Mapping[int, Start],
        store: SnapshotStore,
    ) -> None:
        self._bank, self._plan, self._keys, self._store = bank, plan, keys, store
        self._told = {o: history(course.prompts) for o, course in plan.courses.items()}
        # A correction's page is copied once, and shared by all snapshots after it.
        self._corrections: dict[int, dict[int, ParkedPage]] = {
            object_id: {
                frame: page
                for snapshot in (start.forward, start.backward)
                if snapshot is not None
                for frame, page in snapshot.corrections.items()
            }
            for object_id, start in starts.items()
        }

    def note(self, visit: Visit, tasks: Sequence[Task], answers: Mapping[int, StepOutput]) -> None:
        """Write down what a visit that is done left behind."""
        frame = visit.frame.index
        for task in tasks:
            object_id = task.object_id
            if task.kind in ("begin", "restate"):
                assert task.prompt is not None
                answer = answers[object_id]
                self._store.put_answer(
                    task.prompt,
                    StandingAnswer(
                        self._page(object_id, frame),
                        park(answer.logits, answer.iou, answer.object_score, answer.pointer),
                    ),
                )
            elif task.kind == "correct":
                known = self._corrections.setdefault(object_id, {})
                known[frame] = self._page(object_id, frame)
            if visit.stage != "restate" and self._is_due(object_id, visit):
                self._store.put(object_id, visit.direction, self._snapshot(object_id, visit))

    def _is_due(self, object_id: int, visit: Visit) -> bool:
        """At regular frames, and right before a prompt that may be given again and again."""
        frame = visit.frame.index
        prompts = self._plan.courses[object_id].prompts
        return frame % self._store.every == 0 or frame + visit.direction in prompts

    def _snapshot(self, object_id: int, visit: Visit) -> Snapshot:
        recent = self._bank.recent_pages(self._keys[object_id], visit.direction)
        return Snapshot(
            frame_index=visit.frame.index,
            told=self._told[object_id],
            corrections=dict(self._corrections.get(object_id, {})),
            mask_frames=recent.mask_frames,
            pointer_frames=recent.pointer_frames,
            pages=park(recent.masks, recent.pointers),
        )

    def _page(self, object_id: int, frame: int) -> ParkedPage:
        page = self._bank.conditioning_page(self._keys[object_id], frame)
        return ParkedPage(park(page.mask, page.pointer))
