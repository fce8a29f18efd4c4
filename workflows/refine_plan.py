"""What a refinement has to do to each object, and what it must leave as it is.

Knows nothing of engines, videos or storage. The rule that people rely on: a frame that somebody
prompted keeps the mask it showed, whatever is computed later, until that frame is prompted anew or
its prompt withdrawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from workflows.prompt_rows import PromptRow
from workflows.refine_types import RefinementError, RefinementRequest, Span
from workflows.rows import Review, Source, Track


@dataclass(frozen=True, slots=True)
class ObjectPlan:
    """One object to compute again.

    before, after: its prompts in the base and now, by frame; before is empty where all masks are
    wanted anew. changed: frames whose prompt is new, another or gone. pinned: frames that keep
    their mask. first_frame, last_frame: its labelled span; None: the video's end.
    """

    object_id: int
    parent: Track | None
    before: Mapping[int, PromptRow]
    after: Mapping[int, PromptRow]
    changed: frozenset[int]
    pinned: frozenset[int]
    first_frame: int
    last_frame: int | None

    @property
    def begins(self) -> int:
        """The frame of its first prompt, from where both directions are tracked."""
        return min(self.after)

    @property
    def category(self) -> str | None:
        """The newest that a prompt names, else the base's."""
        named = [p.get("category") for f, p in self.after.items() if f in self.changed]
        known = self.parent.category if self.parent else None
        return next((name for name in named if name), known)

    @property
    def prompts(self) -> tuple[PromptRow, ...]:
        return tuple(self.after[frame] for frame in sorted(self.after))


@dataclass(frozen=True, slots=True)
class RefinementPlan:
    """objects: to compute. removed: base tracks of objects to take out."""

    objects: tuple[ObjectPlan, ...]
    removed: tuple[Track, ...]

    @property
    def object_ids(self) -> list[int]:
        """All that the refinement changes."""
        return [plan.object_id for plan in self.objects] + [t.object_id for t in self.removed]


def plan_refinement(request: RefinementRequest, tracks: Mapping[int, Track]) -> RefinementPlan:
    """tracks: the base's, by object, those of removed objects too. Raises RefinementError."""
    shown = {o: track for o, track in tracks.items() if not track.removed}
    given: dict[int, dict[int, PromptRow]] = {}
    for prompt in request.prompts:
        frames = given.setdefault(prompt["object_id"], {})
        if prompt["frame_index"] in frames:
            raise RefinementError(f"{_where(prompt)}: given twice; wanted one prompt a frame")
        frames[prompt["frame_index"]] = prompt
    removed = set(request.remove_object_ids)
    wanted = given.keys() | set(request.object_ids)
    if not wanted and not removed:
        raise RefinementError(
            f"{request.video_id}: nothing to do; wanted prompts, object_ids or remove_object_ids"
        )
    if both := sorted(wanted & removed):
        raise RefinementError(f"{request.video_id}: objects {both}: both to compute and to remove")
    if unknown := sorted((removed | set(request.object_ids)) - shown.keys() - given.keys()):
        raise RefinementError(
            f"{request.video_id}: no objects {unknown}; revision {request.base_revision} has "
            f"{sorted(shown)}"
        )
    whole = _labelled_span(shown)
    return RefinementPlan(
        objects=tuple(
            _plan_object(request, o, tracks.get(o), given.get(o, {}), whole) for o in sorted(wanted)
        ),
        removed=tuple(shown[o] for o in sorted(removed)),
    )


def is_withdrawal(prompt: PromptRow) -> bool:
    """Whether a prompt says nothing: it takes back what was said of its object and frame."""
    return not prompt.get("points") and prompt.get("box") is None and prompt.get("mask") is None


def in_span(span: Span, frame_index: int) -> bool:
    return frame_index >= span.first_frame and (
        span.last_frame is None or frame_index <= span.last_frame
    )


def _plan_object(
    request: RefinementRequest,
    object_id: int,
    track: Track | None,
    given: Mapping[int, PromptRow],
    whole: Span,
) -> ObjectPlan:
    base = None if track is None or track.removed else track
    had = {prompt["frame_index"]: prompt for prompt in (base.prompts if base else ())}
    after = dict(had)
    for frame, prompt in given.items():
        if not is_withdrawal(prompt):
            after[frame] = prompt
        elif after.pop(frame, None) is None:
            raise RefinementError(f"{_where(prompt)}: there is no prompt to withdraw")
    if not after:
        raise RefinementError(
            f"{request.video_id}: object {object_id} has no prompt left; wanted one, or "
            "the object in remove_object_ids"
        )
    for frame, prompt in given.items():
        if not in_span(request.span, frame):
            raise RefinementError(
                f"{_where(prompt)}: outside the span {request.span.first_frame} to "
                f"{request.span.last_frame}; a corrected frame must be computed"
            )
    is_anew = base is None or object_id in request.object_ids
    is_seen = base is not None and (base.source != Source.BULK or base.review == Review.ACCEPTED)
    return ObjectPlan(
        object_id=object_id,
        parent=track,
        before={} if is_anew else had,
        after=after,
        changed=frozenset(given),
        pinned=frozenset(had.keys() - given.keys() if is_seen else ()),
        first_frame=whole.first_frame if base is None else base.first_frame,
        last_frame=whole.last_frame if base is None else base.last_frame,
    )


def _labelled_span(shown: Mapping[int, Track]) -> Span:
    """Of all objects together: that is where a new one is looked for; all of a new video."""
    if not shown:
        return Span()
    return Span(
        min(track.first_frame for track in shown.values()),
        max(track.last_frame for track in shown.values()),
    )


def _where(prompt: PromptRow) -> str:
    return f"prompt of object {prompt['object_id']} on frame {prompt['frame_index']}"
