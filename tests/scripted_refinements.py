"""Refinements without a model: discs that move as the video's own, kept in memory.

Follows the contract of workflows.refine_types.Refinements, so that a service, a page or a load can
be tested where masks are known: an object is the disc nearest to its click on every frame.
"""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from sam2model import rle
from workflows.prompt_rows import PromptRow
from workflows.refine_types import (
    WHOLE_VIDEO,
    Cancelled,
    Conflict,
    Draft,
    DraftNotFound,
    ObjectMask,
    OpenVideo,
    PreviewRequest,
    QueueFilter,
    QueueItem,
    RefinedFrame,
    RefinedObject,
    RefinementConflict,
    RefinementError,
    RefinementRequest,
    RefinementResult,
    RevisionInfo,
    RgbArray,
    Span,
)
from workflows.rows import FlagRow, Review, Source, Track
from workflows.service_videos import VideoQuery
from workflows.storage import NotFound

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scene:
    """Discs over a ground: radius, centre on frame 0, pixels a frame."""

    height: int = 240
    width: int = 320
    num_frames: int = 60
    discs: tuple[tuple[float, float, float, float, float], ...] = (
        (34, 60, 100, 3.2, 0.4),
        (28, 262, 138, -3.0, 0.2),
        (20, 160, 200, 0.4, -1.9),
    )

    def disc(self, number: int, frame_index: int, grow: float = 0.0) -> Mask:
        radius, x, y, dx, dy = self.discs[number]
        rows, columns = np.mgrid[: self.height, : self.width]
        cx, cy = x + dx * frame_index, y + dy * frame_index
        return np.asarray((columns - cx) ** 2 + (rows - cy) ** 2 < (radius + grow) ** 2)

    def nearest(self, x: float, y: float, frame_index: int) -> int:
        places = [(a + dx * frame_index, b + dy * frame_index) for _, a, b, dx, dy in self.discs]
        return int(np.argmin([(x - a) ** 2 + (y - b) ** 2 for a, b in places]))

    def picture(self, frame_index: int) -> RgbArray:
        rng = np.random.default_rng(0)
        tiles = rng.integers(70, 120, (self.height // 16, self.width // 16, 3), dtype=np.uint8)
        picture = np.kron(tiles, np.ones((16, 16, 1), np.uint8))
        colours = ((214, 92, 74), (80, 124, 214), (226, 188, 92))
        for number in reversed(range(len(self.discs))):
            picture[self.disc(number, frame_index)] = colours[number % 3]
        return picture


@dataclass
class Labels:
    """What a video has: tracks by revision of the object, masks by (object, masks revision)."""

    scene: Scene
    revision: int = 0
    tracks: dict[int, list[Track]] = field(default_factory=dict)
    masks: dict[tuple[int, int], dict[int, ObjectMask]] = field(default_factory=dict)
    drafts: dict[str, tuple[Draft, list[RefinedFrame]]] = field(default_factory=dict)
    requests: dict[str, RefinementResult] = field(default_factory=dict)

    def current(self) -> dict[int, Track]:
        newest = {object_id: tracks[-1] for object_id, tracks in self.tracks.items()}
        return {o: track for o, track in newest.items() if not track.removed}


class ScriptedRefinements:
    """step_s: how long computing a frame takes. steps: frames computed so far."""

    def __init__(self, scenes: dict[str, Scene], step_s: float = 0.0) -> None:
        self.step_s = step_s
        self.steps = 0
        self.open_streams = 0
        self._lock = threading.RLock()
        self._labels = {video_id: Labels(scene) for video_id, scene in scenes.items()}

    def label(
        self,
        video_id: str,
        discs: Sequence[int] = (0, 1),
        span: Span = WHOLE_VIDEO,
        **of_tracks: Any,
    ) -> None:
        """As a bulk run would: object n + 1 is disc n, clicked on frame 0."""
        scene = self._of(video_id).scene
        prompts = tuple(_click(n + 1, 0, *scene.discs[n][1:3]) for n in discs)
        request = RefinementRequest(
            video_id=video_id, base_revision=0, author="", prompts=prompts, span=span
        )
        frames = list(self._compute(request, lambda: False))
        self._commit(request, frames, Source.BULK, **of_tracks)

    def flag(self, video_id: str, object_id: int, flags: Sequence[FlagRow]) -> None:
        """Give an object flags, and the largest doubt of them."""
        labels = self._of(video_id)
        doubt = max(flag["doubt"] for flag in flags)
        track = labels.tracks[object_id][-1]
        labels.tracks[object_id][-1] = replace(track, flags=tuple(flags), doubt=doubt)

    def open(self, video_id: str) -> OpenVideo:
        labels = self._of(video_id)
        scene = labels.scene
        with self._lock:
            return OpenVideo(
                video_id=video_id,
                video_uri=f"memory/{video_id}.mp4",
                revision=labels.revision,
                height=scene.height,
                width=scene.width,
                num_frames=scene.num_frames,
                fps=12.0,
                duration_s=scene.num_frames / 12,
                tracks=tuple(labels.current().values()),
            )

    def frame(self, video_id: str, frame_index: int) -> RgbArray:
        scene = self._of(video_id).scene
        if frame_index >= scene.num_frames:
            raise RefinementError(
                f"{video_id}: frame {frame_index}; it has 0 to {scene.num_frames - 1}"
            )
        return scene.picture(frame_index)

    def masks(
        self,
        video_id: str,
        object_ids: Sequence[int] | None = None,
        span: Span = WHOLE_VIDEO,
        at: int | datetime | None = None,
    ) -> Iterator[RefinedFrame]:
        labels = self._of(video_id)
        with self._lock:
            shown = {
                object_id: labels.masks[object_id, track.masks_revision or 0]
                for object_id, tracks in labels.tracks.items()
                for track in [t for t in tracks if at is None or (t.revision or 0) <= int(at)][-1:]  # type: ignore[call-overload]
                if not track.removed and (object_ids is None or object_id in object_ids)
            }
        last = labels.scene.num_frames - 1 if span.last_frame is None else span.last_frame
        return self._frames(labels.scene, shown, span.first_frame, last)

    def preview(self, request: PreviewRequest) -> RefinedFrame:
        labels = self._of(request.video_id)
        self._check(labels, request.video_id, request.base_revision, ())
        self._step()
        masks = tuple(_mask(labels.scene, p, request.frame_index) for p in request.prompts)
        return self._frame(labels.scene, request.frame_index, masks, request.sequence)

    def refine(
        self, request: RefinementRequest, cancelled: Cancelled = lambda: False
    ) -> Iterator[RefinedFrame | RefinementResult]:
        self.open_streams += 1
        frames: list[RefinedFrame] = []
        done = False
        try:
            labels = self._of(request.video_id)
            known = labels.requests.get(request.request_id or "")
            if known is not None:
                yield known
                return
            touched = {p["object_id"] for p in request.prompts} | set(request.remove_object_ids)
            self._check(labels, request.video_id, request.base_revision, touched)
            for frame in self._compute(request, cancelled):
                frames.append(frame)
                yield frame
            done = not cancelled()
            if done:
                yield self._end(request, frames)
        finally:
            self.open_streams -= 1
            if not done and request.draft and frames:
                self._keep(request, frames)

    def review(
        self,
        video_id: str,
        base_revision: int,
        review: Review,
        author: str,
        object_ids: Sequence[int] | None = None,
    ) -> int:
        labels = self._of(video_id)
        with self._lock:
            current = labels.current()
            wanted = list(current) if object_ids is None else list(object_ids)
            if not wanted or not set(wanted) <= current.keys():
                raise RefinementError(f"{video_id}: objects {wanted}; it has {list(current)}")
            self._check(labels, video_id, base_revision, wanted)
            labels.revision += 1
            for object_id in wanted:
                before = labels.tracks[object_id][-1]
                labels.tracks[object_id].append(
                    replace(
                        before,
                        revision=labels.revision,
                        parent_revision=before.revision,
                        review=review,
                        author=author,
                        created_at=datetime.now(UTC),
                    )
                )
            return labels.revision

    def restore(
        self,
        video_id: str,
        base_revision: int,
        revision: int,
        author: str,
        object_ids: Sequence[int] | None = None,
    ) -> RefinementResult:
        labels = self._of(video_id)
        with self._lock:
            if not 1 <= revision <= labels.revision:
                raise RefinementError(f"{video_id}: revision {revision}; newest {labels.revision}")
            wanted = list(labels.tracks if object_ids is None else object_ids)
            self._check(labels, video_id, base_revision, wanted)
            labels.revision += 1
            objects = []
            for object_id in wanted:
                then = [t for t in labels.tracks[object_id] if (t.revision or 0) <= revision][-1:]
                now = labels.tracks[object_id][-1]
                shown = then[0] if then else replace(now, removed=True)
                labels.tracks[object_id].append(
                    replace(
                        shown,
                        revision=labels.revision,
                        parent_revision=now.revision,
                        author=author,
                        created_at=datetime.now(UTC),
                    )
                )
                objects.append(RefinedObject(object_id=object_id, parent_revision=now.revision))
            return self._result(video_id, base_revision, labels.revision, None, objects)

    def history(self, video_id: str) -> tuple[RevisionInfo, ...]:
        labels = self._of(video_id)
        with self._lock:
            tracks = [track for tracks in labels.tracks.values() for track in tracks]
        infos = []
        for revision in range(labels.revision, 0, -1):
            changed = [track for track in tracks if track.revision == revision]
            if not changed:  # a restoration of nothing
                continue
            infos.append(
                RevisionInfo(
                    revision=revision,
                    source=changed[0].source,
                    author=changed[0].author,
                    created_at=changed[0].created_at,
                    object_ids=tuple(track.object_id for track in changed),
                    review=changed[0].review,
                    removed_object_ids=tuple(t.object_id for t in changed if t.removed),
                )
            )
        return tuple(infos)

    def drafts(self, video_id: str, author: str | None = None) -> tuple[Draft, ...]:
        with self._lock:
            kept = [draft for draft, _ in self._of(video_id).drafts.values()]
        return tuple(draft for draft in kept if author is None or draft.author == author)

    def draft_masks(self, video_id: str, draft_id: str) -> Iterator[RefinedFrame]:
        drafts = self._of(video_id).drafts
        if draft_id not in drafts:
            raise DraftNotFound(f"{video_id}: no draft {draft_id}")
        return iter(drafts[draft_id][1])

    def commit_draft(self, video_id: str, draft_id: str) -> RefinementResult:
        labels = self._of(video_id)
        with self._lock:
            if draft_id not in labels.drafts:
                raise DraftNotFound(f"{video_id}: no draft {draft_id}")
            draft, frames = labels.drafts[draft_id]
            touched = {one.object_id for one in draft.objects}
            self._check(labels, video_id, draft.base_revision, touched)
            request = RefinementRequest(
                video_id=video_id,
                base_revision=draft.base_revision,
                author=draft.author,
                prompts=draft.prompts,
            )
            result = self._commit(request, frames, Source.REFINE)
            del labels.drafts[draft_id]
            return result

    def discard_draft(self, video_id: str, draft_id: str) -> None:
        self._of(video_id).drafts.pop(draft_id, None)

    def queue(self, wanted: QueueFilter) -> list[QueueItem]:
        items = []
        with self._lock:
            for video_id, labels in self._labels.items():
                for track in labels.current().values():
                    flags = sorted(track.flags, key=lambda flag: -flag["doubt"])
                    if track.review not in wanted.reviews or (wanted.kinds and not flags):
                        continue
                    if wanted.kinds and flags[0]["kind"] not in wanted.kinds:
                        continue
                    middle = labels.scene.num_frames // 2
                    items.append(
                        QueueItem(
                            video_id=video_id,
                            object_id=track.object_id,
                            frame_index=flags[0]["frame_index"] if flags else middle,
                            kind=flags[0]["kind"] if flags else None,
                            doubt=track.doubt,
                            revision=track.revision or 0,
                            category=track.category,
                            source=track.source,
                            review=track.review,
                            flags=tuple(flags),
                        )
                    )
        items.sort(key=lambda item: (-(item.doubt or 0.0), item.video_id, item.object_id))
        return items[wanted.offset : wanted.offset + wanted.limit]

    def close(self) -> None:
        pass

    def _of(self, video_id: str) -> Labels:
        try:
            return self._labels[video_id]
        except KeyError as e:
            raise NotFound(f"no video {video_id!r}") from e

    def _step(self) -> None:
        self.steps += 1
        if self.step_s:
            time.sleep(self.step_s)

    def _check(self, labels: Labels, video_id: str, base_revision: int, object_ids: Any) -> None:
        if base_revision > labels.revision:
            raise RefinementError(
                f"{video_id}: base revision {base_revision}; its newest is {labels.revision}"
            )
        for object_id in object_ids:
            for track in labels.tracks.get(object_id, [])[-1:]:
                if (track.revision or 0) > base_revision:
                    raise RefinementConflict(
                        Conflict(
                            video_id=video_id,
                            object_id=object_id,
                            base_revision=base_revision,
                            newest_revision=track.revision or 0,
                            author=track.author,
                            source=track.source,
                            created_at=track.created_at,
                        )
                    )

    def _compute(self, request: RefinementRequest, cancelled: Cancelled) -> Iterator[RefinedFrame]:
        labels = self._of(request.video_id)
        scene = labels.scene
        prompts = self._prompts(labels, request.prompts)
        last = scene.num_frames - 1 if request.span.last_frame is None else request.span.last_frame
        if not prompts:
            return
        for frame_index in range(request.span.first_frame, min(last, scene.num_frames - 1) + 1):
            if cancelled():
                return
            self._step()
            masks = tuple(
                _mask(scene, max(said, key=lambda p: p["frame_index"] <= frame_index), frame_index)
                for said in prompts.values()
            )
            yield self._frame(scene, frame_index, masks, request.sequence)

    def _prompts(self, labels: Labels, new: Sequence[PromptRow]) -> dict[int, list[PromptRow]]:
        """All that counts for the objects that were spoken of, the last said first."""
        by_object: dict[int, dict[int, PromptRow]] = {}
        for object_id in {p["object_id"] for p in new}:
            track = labels.current().get(object_id)
            said = {p["frame_index"]: p for p in (track.prompts if track else ())}
            said |= {p["frame_index"]: p for p in new if p["object_id"] == object_id}
            by_object[object_id] = {
                k: p for k, p in said.items() if p.get("points") or p.get("box") or p.get("mask")
            }
        return {
            o: sorted(said.values(), key=lambda p: -p["frame_index"])
            for o, said in sorted(by_object.items())
            if said
        }

    def _end(self, request: RefinementRequest, frames: list[RefinedFrame]) -> RefinementResult:
        if request.draft:
            return self._keep(request, frames)
        return self._commit(request, frames, Source.REFINE)

    def _keep(self, request: RefinementRequest, frames: list[RefinedFrame]) -> RefinementResult:
        labels = self._of(request.video_id)
        draft_id = uuid.uuid4().hex[:12]
        objects = tuple(
            RefinedObject(object_id=o, parent_revision=request.base_revision)
            for o in sorted({p["object_id"] for p in request.prompts})
        )
        draft = Draft(
            draft_id=draft_id,
            video_id=request.video_id,
            base_revision=request.base_revision,
            author=request.author,
            created_at=datetime.now(UTC),
            objects=objects,
            prompts=request.prompts,
        )
        labels.drafts[draft_id] = (draft, frames)
        return self._result(
            request.video_id, request.base_revision, None, draft_id, objects, len(frames), request
        )

    def _commit(
        self,
        request: RefinementRequest,
        frames: list[RefinedFrame],
        source: Source,
        **of_tracks: Any,
    ) -> RefinementResult:
        labels = self._of(request.video_id)
        prompts = self._prompts(labels, request.prompts)
        with self._lock:
            touched = set(prompts) | set(request.remove_object_ids)
            self._check(labels, request.video_id, request.base_revision, touched)
            labels.revision += 1
            revision = labels.revision
            objects = []
            for object_id, said in prompts.items():
                before = labels.tracks.get(object_id, [])[-1:]
                kept = dict(
                    labels.masks[object_id, before[0].masks_revision or 0] if before else {}
                )
                kept |= {
                    f.frame_index: m for f in frames for m in f.masks if m.object_id == object_id
                }
                labels.masks[object_id, revision] = kept
                parent = before[0].revision if before else None
                track = Track(
                    video_id=request.video_id,
                    object_id=object_id,
                    source=source,
                    prompts=tuple(sorted(said, key=lambda p: p["frame_index"])),
                    category=said[0].get("category"),
                    first_frame=min(kept),
                    last_frame=max(kept),
                    frames_present=sum(mask.area_px > 0 for mask in kept.values()),
                    revision=revision,
                    parent_revision=parent,
                    masks_revision=revision,
                    author=request.author or None,
                    created_at=datetime.now(UTC),
                    **of_tracks,
                )
                labels.tracks.setdefault(object_id, []).append(track)
                objects.append(RefinedObject(object_id=object_id, parent_revision=parent))
            for object_id in request.remove_object_ids:
                before = labels.tracks[object_id][-1:]
                labels.tracks[object_id].append(
                    replace(
                        before[0],
                        revision=revision,
                        parent_revision=before[0].revision,
                        removed=True,
                        author=request.author,
                    )
                )
            result = self._result(
                request.video_id,
                request.base_revision,
                revision,
                None,
                objects,
                len(frames),
                request,
            )
            if request.request_id:
                labels.requests[request.request_id] = result
            return result

    def _result(
        self,
        video_id: str,
        base_revision: int,
        revision: int | None,
        draft_id: str | None,
        objects: Sequence[RefinedObject],
        frames: int = 0,
        request: RefinementRequest | None = None,
    ) -> RefinementResult:
        return RefinementResult(
            video_id=video_id,
            base_revision=base_revision,
            revision=revision,
            draft_id=draft_id,
            objects=tuple(objects),
            frames_computed=frames,
            request_id=request.request_id if request else None,
            sequence=request.sequence if request else None,
        )

    def _frames(
        self, scene: Scene, shown: dict[int, dict[int, ObjectMask]], first: int, last: int
    ) -> Iterator[RefinedFrame]:
        for frame_index in range(first, min(last, scene.num_frames - 1) + 1):
            masks = tuple(
                masks[frame_index] for _, masks in sorted(shown.items()) if frame_index in masks
            )
            yield self._frame(scene, frame_index, masks)

    def _frame(
        self,
        scene: Scene,
        frame_index: int,
        masks: tuple[ObjectMask, ...],
        sequence: int | None = None,
    ) -> RefinedFrame:
        return RefinedFrame(
            frame_index=frame_index,
            pts_s=frame_index / 12,
            height=scene.height,
            width=scene.width,
            masks=masks,
            sequence=sequence,
        )


class ScriptedVideos:
    """A page of the scripted videos; `VideoList` reads a dataset instead."""

    def __init__(self, refinements: ScriptedRefinements) -> None:
        self._refinements = refinements

    def page(self, wanted: VideoQuery) -> dict[str, Any]:
        rows = []
        for video_id, labels in self._refinements._labels.items():
            tracks = list(labels.current().values())
            if wanted.search in video_id:
                rows.append(
                    {
                        "video_id": video_id,
                        "status": "ok",
                        "reason": None,
                        "num_frames": labels.scene.num_frames,
                        "width": labels.scene.width,
                        "height": labels.scene.height,
                        "fps": 12.0,
                        "revision": labels.revision,
                        "objects": len(tracks),
                        "accepted": sum(t.review == Review.ACCEPTED for t in tracks),
                        "rejected": sum(t.review == Review.REJECTED for t in tracks),
                        "flags": sum(len(track.flags) for track in tracks),
                        "doubt": max(
                            (t.doubt for t in tracks if t.doubt is not None), default=None
                        ),
                    }
                )
        return {"videos": rows[: wanted.limit], "next": None}


def _click(object_id: int, frame_index: int, x: float, y: float) -> PromptRow:
    return {
        "object_id": object_id,
        "frame_index": frame_index,
        "points": [{"x": x, "y": y, "positive": True}],
        "box": None,
        "mask": None,
        "category": ("cup", "ball", "hand")[(object_id - 1) % 3],
    }


def _mask(scene: Scene, prompt: PromptRow, frame_index: int) -> ObjectMask:
    """The disc that a prompt means, larger by a pixel for each further click; or nothing."""
    points, box, mask = prompt.get("points") or [], prompt.get("box"), prompt.get("mask")
    inside = [p for p in points if p["positive"]]
    if mask is not None or not (inside or box):
        pixels = np.zeros((scene.height, scene.width), bool)
    else:
        x, y = (
            (inside[0]["x"], inside[0]["y"])
            if inside
            else ((box["x0"] + box["x1"]) / 2, (box["y0"] + box["y1"]) / 2)  # type: ignore[index]
        )
        disc = scene.nearest(x, y, prompt["frame_index"])
        grow = 3 * (len(inside) - 1) - 3 * (len(points) - len(inside))
        pixels = scene.disc(disc, frame_index, grow)
    counts = rle.encode_mask(pixels)
    area = int(pixels.sum())
    wave = 0.5 + 0.5 * np.cos(frame_index / 7 + prompt["object_id"])
    return ObjectMask(
        object_id=prompt["object_id"],
        counts=counts,
        area_px=area,
        box=tuple(map(float, rle.box_xyxy(counts, *pixels.shape))) if area else None,  # type: ignore[arg-type]
        object_score=float(1.5 + 6 * wave) if area else -6.0,
        iou_pred=0.9,
        stability=float(0.72 + 0.25 * wave),
        is_prompt=frame_index == prompt["frame_index"],
    )
