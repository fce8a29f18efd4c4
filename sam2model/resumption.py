"""A plan made narrower by what is known: where each object begins again, and what is told.

Knows nothing of devices or decoding. The masks that come are those of the whole plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sam2model.labelling_plan import Course, LabellingPlan, Span, restated
from sam2model.prompt_effect import Effect, effect_of_change, history
from sam2model.prompts import Prompt
from sam2model.snapshots import Snapshot, SnapshotStore, StandingAnswer


@dataclass(frozen=True, slots=True)
class Start:
    """What an object remembers before the first visit.

    standing: frame → answer of a prompt that reads no memory. forward, backward: where a pass
    goes on from; None where it begins.
    """

    standing: Mapping[int, StandingAnswer] = field(default_factory=dict)
    forward: Snapshot | None = None
    backward: Snapshot | None = None


def resume(
    plan: LabellingPlan,
    before: Mapping[int, Mapping[int, Prompt]] | None,
    told: Span,
    snapshots: SnapshotStore | None,
    max_conditioning: int,
) -> tuple[LabellingPlan, dict[int, Start]]:
    """The plan for the masks of `told` that differ from those of the prompts `before`.

    before: object → frame → prompt, as their masks were made; None tells all of `told`. Objects
    of which nothing is to be told leave the plan.
    """
    courses: dict[int, Course] = {}
    starts: dict[int, Start] = {}
    for object_id, course in plan.courses.items():
        effect: Effect | None = Effect(course.begins, course.begins)
        if before is not None:
            old, new = history(before.get(object_id, {})), history(course.prompts)
            effect = effect_of_change(old, new, max_conditioning)
        if effect is None:
            continue
        narrowed = _told(course, effect, told)
        if narrowed.forward.is_empty and narrowed.backward.is_empty:
            continue
        starts[object_id], courses[object_id] = _begin_late(
            object_id, narrowed, snapshots, max_conditioning
        )
    return replace(plan, courses=courses), starts


def tell_only(plan: LabellingPlan, told: Span) -> LabellingPlan:
    """The plan with all of its passes, of which only some frames are told."""
    courses = {o: replace(c, told=_both(told, c.told)) for o, c in plan.courses.items()}
    return replace(plan, courses=courses)


def _told(course: Course, effect: Effect, told: Span) -> Course:
    """The course whose passes are no more than what is told of them."""
    told = _both(told, course.told)
    return replace(
        course,
        forward=_both(_both(course.forward, told), Span(effect.reaches)),
        backward=_both(course.backward, told),
        told=told,
        settled=Span(course.begins, effect.reaches - 1),
    )


def _begin_late(
    object_id: int, course: Course, snapshots: SnapshotStore | None, cap: int
) -> tuple[Start, Course]:
    """Put the way to what is told before it: from a snapshot, or from the first prompt."""
    begins, prompts = course.begins, course.prompts
    told = history(prompts) if snapshots is not None else {}
    alone = restated(prompts)
    forward, backward = course.forward, course.backward
    forth: Snapshot | None = None
    back: Snapshot | None = None
    if not backward.is_empty:
        if snapshots is not None:
            back = snapshots.nearest(object_id, -1, told, cap, before=backward.last)
        backward = Span(backward.first, (begins if back is None else back.frame_index) - 1)
    needs_clicks = not backward.is_empty and back is None  # a backward pass reads all of them
    clicks: set[int] = prompts.keys() - alone - {begins} if needs_clicks else set()
    describes_itself = (
        backward.is_empty and forward.first == forward.last and forward.first in alone
    )
    if describes_itself:  # such a frame needs no past
        alone = frozenset({forward.first})
    elif clicks or not forward.is_empty:
        before = None if forward.is_empty else forward.first
        if snapshots is not None:
            forth = snapshots.nearest(object_id, 1, told, cap, before=before)
        first = begins if forth is None else forth.frame_index + 1
        if forward.is_empty:
            forward = Span(first, max(clicks))
        elif forward.last is not None:
            forward = Span(first, max({forward.last, *clicks}))
        else:
            forward = Span(first)
    standing: dict[int, StandingAnswer] = {}
    ahead: set[int] = set()
    for frame in sorted(alone if describes_itself or begins in forward else {*alone, begins}):
        answer = None if snapshots is None else snapshots.answer(prompts[frame])
        if answer is None:
            ahead.add(frame)
        else:
            standing[frame] = answer
    narrowed = replace(course, forward=forward, backward=backward, ahead=frozenset(ahead))
    return Start(standing, forth, back), narrowed


def _both(a: Span, b: Span) -> Span:
    """The frames of both spans; of no frames where one has none."""
    lasts = [s.last for s in (a, b) if s.last is not None]
    return Span(max(a.first, b.first), min(lasts, default=None))
