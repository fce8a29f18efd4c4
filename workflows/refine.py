"""One refinement of one video, plain Python: prompts and a base in, new labels of objects out.

Knows nothing of caches, HTTP or Ray; the page, the batch and the command line all come through
`recompute` and `labels_of`. Only the objects named are computed, only on frames that the change
reaches and the request asks for; everything else is the base's to the last bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sam2model import Prompt, rle
from sam2model.labelling_plan import Span as FrameSpan
from sam2model.refinement_memory import MemoryBudget, VideoMemory
from sam2model.tracked_masks import FrameMasks, TrackedMask
from sam2model.video import Video
from workflows.label_engine import RefineEngine
from workflows.labelled_videos import about_video
from workflows.prompt_rows import PromptRow, decode_prompts, fingerprint
from workflows.quality import with_quality
from workflows.query import Dataset
from workflows.refine_plan import ObjectPlan, RefinementPlan, plan_refinement
from workflows.refine_types import (
    Cancelled,
    Conflict,
    ObjectMask,
    PreviewRequest,
    RefinedFrame,
    RefinedObject,
    RefinementConflict,
    RefinementError,
    RefinementRequest,
)
from workflows.results import merge_masks
from workflows.rows import (
    MASKS_SCHEMA,
    RefinementRow,
    Source,
    Track,
    tracks_from_table,
)
from workflows.storage import NotFound
from workflows.video_masks import VideoMasks, tracks_of

AGREEING_IOU = 0.99  # of a new mask and the base's, to count as the same
AGREEING_FRAMES = 10  # in a row, from which on the base is taken for the rest
SNAPSHOTS_ONLY = MemoryBudget(
    device_feature_bytes=0, host_feature_bytes=0, snapshot_bytes=256 * 2**20
)


SeenKey = tuple[int, int, int, str]  # base revision, object, frame, hash of all its prompts
Seen = Mapping[SeenKey, ObjectMask]


@dataclass(frozen=True, slots=True)
class Maker:
    """Who computes: which weights, how set up, in which run or service."""

    model_id: str
    model_sha256: str
    inference_config: Mapping[str, Any]
    config_hash: str
    run_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A video's labels at one revision; about: its row of videos.

    tracks: by object, removed ones too. masks: of all objects shown.
    """

    video_id: str
    video_uri: str
    about: Mapping[str, Any]
    revision: int
    tracks: Mapping[int, Track]
    masks: pa.Table

    def of_object(self, object_id: int) -> pa.Table:
        return self.masks.filter(pc.equal(self.masks["object_id"], object_id))


@dataclass(slots=True)
class Recomputed:
    """What came out so far. converged: by object, frames where computing stopped."""

    masks: VideoMasks
    num_frames: int = 0
    spans: dict[int, list[int]] = field(default_factory=dict)  # first and last frame computed
    converged: dict[int, list[int]] = field(default_factory=dict)
    was_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Labels:
    """A refinement to commit: complete tracks, and masks on every frame of their spans."""

    tracks: tuple[Track, ...]
    masks: pa.Table


def read_base(dataset: Dataset, video_id: str, revision: int) -> Base:
    """A video's labels as they were at a revision; 0: as of before any.

    Raises NotFound for a video that the dataset does not know, RefinementError for a revision that
    is not there yet.
    """
    about = about_video(dataset, video_id)
    if not about:
        raise NotFound(f"{dataset.uri}: no video {video_id!r}")
    tracks = tracks_from_table(dataset.tracks([video_id], at=revision, with_removed=True))
    newest = max((track.revision or 0 for track in tracks), default=0)
    if newest < revision and newest_revision(dataset, video_id) < revision:
        raise RefinementError(f"{video_id}: base revision {revision}; its newest is {newest}")
    return Base(
        video_id=video_id,
        video_uri=about["video_uri"],
        about=about,
        revision=revision,
        tracks={track.object_id: track for track in tracks},
        masks=dataset.masks(video_id, at=revision),
    )


def newest_revision(dataset: Dataset, video_id: str) -> int:
    """0 while nothing is labelled."""
    revisions = dataset.tracks([video_id], with_removed=True)["revision"].to_pylist()
    return max(revisions, default=0)


def check_fresh(dataset: Dataset, base: Base, object_ids: Sequence[int]) -> None:
    """Raise RefinementConflict if one of the objects has a newer revision by now."""
    for track in tracks_from_table(dataset.tracks([base.video_id], with_removed=True)):
        if track.object_id in object_ids and (track.revision or 0) > base.revision:
            raise RefinementConflict(conflict_with(track, base.revision))


def conflict_with(track: Track, base_revision: int) -> Conflict:
    """Of a track that is newer than a base."""
    assert track.revision is not None  # committed rows have one
    return Conflict(
        video_id=track.video_id,
        object_id=track.object_id,
        base_revision=base_revision,
        newest_revision=track.revision,
        author=track.author,
        source=track.source,
        created_at=track.created_at,
    )


def check_prompts(plan: RefinementPlan, num_frames: int | None, height: int, width: int) -> None:
    """Raise PromptError for a prompt that is wrong in itself or outside the video."""
    for each in plan.objects:
        for prompt in decode_prompts(each.after[frame] for frame in each.changed & set(each.after)):
            prompt.check_inside(num_frames, height, width)


def recompute(
    engine: RefineEngine,
    video: Video,
    memory: VideoMemory | None,
    base: Base,
    plan: RefinementPlan,
    request: RefinementRequest,
    done: Recomputed,
    cancelled: Cancelled = lambda: False,
    deadline_s: float | None = None,
    seen: Seen | None = None,
) -> Iterator[RefinedFrame]:
    """The new masks as they are made; `done` holds them too, whatever ends the iteration.

    seen: masks that somebody was shown of prompted frames, with just these prompts. They are taken
    as they were shown: computed again in other company, they could differ by a pixel.
    """
    if request.until_converged and memory is None:
        memory = VideoMemory(SNAPSHOTS_ONLY)  # the second direction need not repeat the first
    for group in _groups(plan.objects, request.until_converged):
        for told, is_backward in _parts(group, request):
            old = _Old(base, group, is_backward) if request.until_converged else None
            frames: Any = engine.refine(
                video,
                _prompts(each.after for each in group),
                memory,
                before=_prompts(each.before for each in group),
                first_frame=group[0].first_frame,
                last_frame=group[0].last_frame,
                told=told,
                deadline_s=deadline_s,
            )
            with closing(frames):
                for frame in frames:
                    if cancelled():
                        done.was_cancelled = True
                        return
                    kept = _keep(frame, group, base, done, old, seen or {})
                    if kept is not None:
                        yield kept
                    if old is not None and old.all_agree:
                        break


def preview_frame(
    engine: RefineEngine,
    video: Video,
    memory: VideoMemory | None,
    base: Base,
    plan: RefinementPlan,
    request: PreviewRequest,
) -> RefinedFrame:
    """One frame as `recompute` would give it, of the objects planned."""
    wanted = request.frame_index
    shown: dict[int, ObjectMask] = {}
    seen: FrameMasks | None = None
    for group in _groups(plan.objects, by_begin=False):
        for frame in engine.refine(
            video,
            _prompts(each.after for each in group),
            memory,
            first_frame=group[0].first_frame,
            last_frame=group[0].last_frame,
            told=FrameSpan(wanted, wanted),
        ):
            seen = frame
            shown |= {mask.object_id: told_mask(mask) for mask in frame.masks}
    if seen is None:
        raise RefinementError(
            f"{base.video_id}: frame {wanted} is outside the labelled span of objects "
            f"{plan.object_ids}"
        )
    for each in plan.objects:
        pinned = _pinned(base, each, wanted)
        shown |= {each.object_id: pinned} if pinned is not None else {}
    masks = [shown[object_id] for object_id in sorted(shown)]
    return replace(refined_frame(seen, masks), sequence=request.sequence)


def warm_up(
    engine: RefineEngine, video: Video, memory: VideoMemory, base: Base
) -> Iterator[FrameMasks]:
    """Track what the base's prompts say, for what `memory` keeps of it; gives way to others."""
    shown = [o for o, track in base.tracks.items() if track.prompts and not track.removed]
    if not shown:
        return
    everything = RefinementRequest(
        video_id=base.video_id, base_revision=base.revision, author="", object_ids=tuple(shown)
    )
    for group in _groups(plan_refinement(everything, base.tracks).objects, by_begin=False):
        yield from engine.refine(
            video,
            _prompts(each.after for each in group),
            memory,
            first_frame=group[0].first_frame,
            last_frame=group[0].last_frame,
            lane="bulk",
        )


def labels_of(
    base: Base,
    plan: RefinementPlan,
    done: Recomputed,
    request: RefinementRequest,
    maker: Maker,
) -> Labels:
    """Tracks and masks of the objects that the refinement changes, ready to be committed."""
    computed = done.masks.table()
    tables, tracks = [], []
    for each in plan.objects:
        changed = computed.filter(pc.equal(computed["object_id"], each.object_id))
        masks = _with_prompts(merge_masks(base.of_object(each.object_id), changed), each)
        if not masks.num_rows:  # cancelled before a new object's first mask
            continue
        tables.append(masks)
        tracks.append(_track(each, masks, done, base, request, maker))
    new = pa.concat_tables(tables) if tables else MASKS_SCHEMA.empty_table()
    ids = pa.array([track.object_id for track in tracks], pa.int32())
    others = base.masks.filter(pc.invert(pc.is_in(base.masks["object_id"], ids)))
    judged = with_quality(tracks, pa.concat_tables([others, new]))
    gone = tuple(
        replace(removed_track(track, request.author, _refinement(request)), run_id=maker.run_id)
        for track in plan.removed
    )
    return Labels((*judged, *gone), new)


def removed_track(track: Track, author: str, refinement: RefinementRow) -> Track:
    """The row that takes an object out of the labels."""
    return Track(
        video_id=track.video_id,
        object_id=track.object_id,
        source=Source.REFINE,
        author=author,
        category=track.category,
        prompts=(),
        first_frame=track.first_frame,
        last_frame=track.last_frame,
        frames_present=0,
        removed=True,
        refinement=refinement,
    )


def refined_objects(
    tracks: Sequence[Track], parents: Mapping[int, Track] | Mapping[int, int | None]
) -> tuple[RefinedObject, ...]:
    """What a result says of the tracks of its revision. parents: object → track or revision."""
    found = []
    for track in tracks:
        row, parent = track.refinement, parents.get(track.object_id)
        found.append(
            RefinedObject(
                object_id=track.object_id,
                parent_revision=parent.revision if isinstance(parent, Track) else parent,
                removed=track.removed,
                first_frame=row["first_frame"] if row else None,
                last_frame=row["last_frame"] if row else None,
                converged_frames=tuple(row["converged_frames"] or ()) if row else (),
                frames_present=track.frames_present,
                doubt=track.doubt,
                flags=track.flags,
            )
        )
    return tuple(found)


def object_mask(row: Mapping[str, Any]) -> ObjectMask:
    """From a row of MASKS_SCHEMA."""
    box = row["box"]
    return ObjectMask(
        object_id=row["object_id"],
        counts=row["counts"],
        area_px=row["area_px"],
        box=(box["x0"], box["y0"], box["x1"], box["y1"]) if box and row["area_px"] else None,
        object_score=row["object_score"],
        iou_pred=row["iou_pred"],
        stability=row["stability"],
        is_prompt=bool(row["is_prompt"]),
    )


def refined_frame(frame: FrameMasks, masks: Sequence[ObjectMask]) -> RefinedFrame:
    return RefinedFrame(
        frame_index=frame.frame_index,
        pts_s=frame.pts_s,
        height=frame.height,
        width=frame.width,
        masks=tuple(masks),
    )


def seen_key(base: Base, each: ObjectPlan, frame_index: int) -> SeenKey:
    """Under which the mask of a frame is remembered that somebody was shown."""
    said = fingerprint(each.prompts, "", {})
    return base.revision, each.object_id, frame_index, said


def _tracked(mask: ObjectMask) -> TrackedMask:
    """The inverse of `told_mask`."""
    x0, y0, x1, y1 = map(int, mask.box or (0, 0, 0, 0))
    assert mask.object_score is not None and mask.iou_pred is not None
    assert mask.stability is not None  # an engine made it, with all scores
    return TrackedMask(
        object_id=mask.object_id,
        counts=mask.counts,
        area_px=mask.area_px,
        box_xyxy_px=(x0, y0, x1, y1),
        object_score=mask.object_score,
        iou_pred=mask.iou_pred,
        stability=mask.stability,
        is_prompt=mask.is_prompt,
    )


def told_mask(mask: TrackedMask) -> ObjectMask:
    x0, y0, x1, y1 = mask.box_xyxy_px
    return ObjectMask(
        object_id=mask.object_id,
        counts=mask.counts,
        area_px=mask.area_px,
        box=(float(x0), float(y0), float(x1), float(y1)) if mask.area_px else None,
        object_score=mask.object_score,
        iou_pred=mask.iou_pred,
        stability=mask.stability,
        is_prompt=mask.is_prompt,
    )


class _Old:
    """The base's masks of a group, and how many new ones in a row agree with them.

    Agreement counts beyond the last prompt that changed; an object that has agreed for
    AGREEING_FRAMES keeps the base's masks from there on.
    """

    def __init__(self, base: Base, group: Sequence[ObjectPlan], is_backward: bool) -> None:
        self._counts = {
            each.object_id: {
                row["frame_index"]: row["counts"]
                for row in base.of_object(each.object_id)
                .select(["frame_index", "counts"])
                .to_pylist()
            }
            for each in group
        }
        self._after = {
            each.object_id: -1 if is_backward else max(each.changed | {each.begins})
            for each in group
        }
        # Of objects whose prompts say what they said, the engine tells nothing.
        self._in_a_row = {each.object_id: 0 for each in group if each.before != each.after}

    def agrees(self, object_id: int) -> bool:
        """Whether the object has converged."""
        return self._in_a_row.get(object_id, 0) >= AGREEING_FRAMES

    @property
    def all_agree(self) -> bool:
        return all(map(self.agrees, self._in_a_row))

    def compare(self, frame_index: int, mask: TrackedMask) -> None:
        """Count one new mask; frames come in the order of their pass."""
        old = self._counts[mask.object_id].get(frame_index)
        if frame_index <= self._after[mask.object_id]:
            return
        same = old is not None and rle.iou(old, mask.counts) > AGREEING_IOU
        self._in_a_row[mask.object_id] = self._in_a_row.get(mask.object_id, 0) + 1 if same else 0


def _groups(objects: Sequence[ObjectPlan], by_begin: bool) -> list[list[ObjectPlan]]:
    """Objects of one labelled span each, which go through the engine together.

    by_begin: also of one first prompt, so that each direction can be computed by itself.
    """
    groups: dict[tuple[int, int | None, int], list[ObjectPlan]] = {}
    for each in objects:
        begins = each.begins if by_begin else 0
        groups.setdefault((each.first_frame, each.last_frame, begins), []).append(each)
    return list(groups.values())


def _parts(
    group: Sequence[ObjectPlan], request: RefinementRequest
) -> Iterator[tuple[FrameSpan, bool]]:
    """The frames to be told, in one go, or each direction by itself where it may stop early."""
    first, last = request.span.first_frame, request.span.last_frame
    if not request.until_converged:
        yield FrameSpan(first, last), False
        return
    begins = group[0].begins
    forth = FrameSpan(max(first, begins), last)
    back = FrameSpan(first, begins - 1 if last is None else min(last, begins - 1))
    for told in (forth, back):
        if not told.is_empty:
            yield told, told is back


def _prompts(tables: Any) -> list[Prompt]:
    rows: list[PromptRow] = [row for table in tables for row in table.values()]
    return decode_prompts(rows)


def _keep(
    frame: FrameMasks,
    group: Sequence[ObjectPlan],
    base: Base,
    done: Recomputed,
    old: _Old | None,
    seen: Seen,
) -> RefinedFrame | None:
    """Take the masks of a frame that count; None where none does."""
    by_id = {each.object_id: each for each in group}
    new: list[TrackedMask] = []
    shown: list[ObjectMask] = []
    for mask in frame.masks:
        each = by_id[mask.object_id]
        if old is not None and old.agrees(mask.object_id):
            continue
        span = done.spans.setdefault(mask.object_id, [frame.frame_index, frame.frame_index])
        span[:] = min(span[0], frame.frame_index), max(span[1], frame.frame_index)
        shown_before = seen.get(seen_key(base, each, frame.frame_index))
        if shown_before is not None and frame.frame_index in each.changed:
            mask = _tracked(shown_before)
        pinned = _pinned(base, each, frame.frame_index)
        if pinned is None:
            new.append(mask)
        shown.append(told_mask(mask) if pinned is None else pinned)
        if old is not None:
            old.compare(frame.frame_index, mask)
            if old.agrees(mask.object_id):
                done.converged.setdefault(mask.object_id, []).append(frame.frame_index)
    if not shown:
        return None
    done.num_frames += 1
    if new:
        done.masks.add(replace(frame, masks=new))
    return refined_frame(frame, shown)


def _pinned(base: Base, each: ObjectPlan, frame_index: int) -> ObjectMask | None:
    """The mask that a prompted frame keeps, if this is one."""
    if frame_index not in each.pinned:
        return None
    masks = base.masks
    found = masks.filter(
        pc.and_(
            pc.equal(masks["object_id"], each.object_id),
            pc.equal(masks["frame_index"], frame_index),
        )
    )
    return object_mask(found.to_pylist()[0]) if found.num_rows else None


def _with_prompts(masks: pa.Table, each: ObjectPlan) -> pa.Table:
    """The masks, saying of each frame whether it has a prompt now."""
    prompted = pa.array(sorted(each.after), pa.int32())
    place = masks.schema.get_field_index("is_prompt")
    return masks.set_column(place, "is_prompt", pc.is_in(masks["frame_index"], prompted))


def _track(
    each: ObjectPlan,
    masks: pa.Table,
    done: Recomputed,
    base: Base,
    request: RefinementRequest,
    maker: Maker,
) -> Track:
    span = done.spans.get(each.object_id)
    provenance = {
        "source": Source.REFINE,
        "author": request.author,
        "model_id": maker.model_id,
        "model_sha256": maker.model_sha256,
        "config_hash": maker.config_hash,
        "fingerprint": fingerprint(
            each.prompts,
            maker.model_sha256,
            maker.inference_config,
            span=(each.first_frame, each.last_frame),
        ),
        "run_id": maker.run_id,
        "refinement": _refinement(request, span, done.converged.get(each.object_id, [])),
    }
    (track,) = tracks_of(base.video_id, masks, each.prompts, provenance)
    return replace(track, category=each.category)


def _refinement(
    request: RefinementRequest,
    span: Sequence[int] | None = None,
    converged: Sequence[int] = (),
) -> RefinementRow:
    return {
        "request_id": request.request_id,
        "base_revision": request.base_revision,
        "first_frame": span[0] if span else None,
        "last_frame": span[1] if span else None,
        "converged_frames": sorted(converged),
    }
