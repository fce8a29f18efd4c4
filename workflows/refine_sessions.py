"""Refinements of many videos, each kept open while people work on it. Knows nothing of HTTP or Ray.

What is kept (a video's file, its decoder, image features, memories of its objects, its labels) only
saves time: every request is answered from the dataset alone, whichever process got the one before.
"""

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa

from sam2model.engine import Cancelled as EngineClosed
from sam2model.engine import EngineOptions
from sam2model.refinement_memory import MemoryBudget, VideoMemory
from sam2model.video import Video, VideoError
from workflows.checkpoints import local_checkpoint
from workflows.config import LimitsConfig, ModelConfig
from workflows.label_engine import RefineEngine, engine_of
from workflows.prompt_rows import config_hash
from workflows.query import Dataset
from workflows.refine import (
    Base,
    Labels,
    Maker,
    Recomputed,
    SeenKey,
    check_fresh,
    check_prompts,
    conflict_with,
    labels_of,
    newest_revision,
    object_mask,
    preview_frame,
    read_base,
    recompute,
    refined_objects,
    seen_key,
    warm_up,
)
from workflows.refine_drafts import DraftStore, KeptDraft, newest_revisions
from workflows.refine_history import history, restored_tracks
from workflows.refine_plan import RefinementPlan, plan_refinement
from workflows.refine_types import (
    WHOLE_VIDEO,
    Cancelled,
    Draft,
    ObjectMask,
    OpenVideo,
    PreviewRequest,
    QueueFilter,
    QueueItem,
    RefinedFrame,
    RefinementConflict,
    RefinementError,
    RefinementRequest,
    RefinementResult,
    RevisionInfo,
    RgbArray,
    Span,
    Superseded,
)
from workflows.results import DatasetWriter
from workflows.review_queue import review_queue
from workflows.revisions import StaleRevision
from workflows.rows import MASKS_SCHEMA, Review, tracks_from_table
from workflows.storage import Storage, StorageConfig
from workflows.video_labeller import video_limits
from workflows.video_masks import VideoMasks

log = logging.getLogger(__name__)

MOST_SEEN = 1000  # masks of previews remembered of one video, a few hundred bytes each


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How much is kept; no effect on masks.

    videos: kept open, the least recently used leaves. on_device: of those, the ones whose features
    may stay on the device. warm_frames: tracked in the background when a video is opened, so that a
    first click need not wait for the way to it; 0 for none.
    """

    videos: int = 8
    on_device: int = 2
    warm_frames: int = 2000
    budget: MemoryBudget = field(default_factory=MemoryBudget)


class RefineSessions:
    """`Refinements` over one dataset and one engine, which is closed with it."""

    def __init__(
        self,
        dataset_uri: str,
        engine: RefineEngine,
        maker: Maker,
        storage: Storage | None = None,
        limits: LimitsConfig | None = None,
        options: SessionOptions | None = None,
    ) -> None:
        self.storage = storage or Storage()
        self._dataset = Dataset(dataset_uri, self.storage)  # before anything is made
        self._writer = DatasetWriter(self.storage, dataset_uri)
        self._drafts = DraftStore(self.storage, dataset_uri)
        self._engine, self._maker = engine, maker
        self._limits = limits or LimitsConfig()
        self._options = options or SessionOptions()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of_model(
        cls,
        dataset_uri: str,
        model: ModelConfig,
        storage: StorageConfig,
        engine_options: EngineOptions | None = None,
        limits: LimitsConfig | None = None,
        options: SessionOptions | None = None,
    ) -> "RefineSessions":
        """With an engine of its own on the device that this process was given."""
        store = Storage(storage)
        checkpoint = local_checkpoint(model.checkpoint, store)
        run_id = f"refine-{uuid.uuid4().hex[:12]}"
        engine = engine_of(model, checkpoint, engine_options or EngineOptions())
        maker = maker_of(model, checkpoint.sha256, run_id)
        return cls(dataset_uri, engine, maker, store, limits, options)

    def open(self, video_id: str) -> OpenVideo:
        dataset = self._newest()
        with self._session(dataset, video_id) as session:
            base = session.base(dataset, newest_revision(dataset, video_id))
            session.warm(self._engine, base, self._options.warm_frames)
            return session.facts(base)

    def frame(self, video_id: str, frame_index: int) -> RgbArray:
        with self._session(self._dataset, video_id) as session:
            try:
                return session.video.frame(frame_index).rgb
            except IndexError as e:
                raise RefinementError(str(e)) from e

    def masks(
        self,
        video_id: str,
        object_ids: Sequence[int] | None = None,
        span: Span = WHOLE_VIDEO,
        at: int | datetime | None = None,
    ) -> Iterator[RefinedFrame]:
        last = 2**31 - 1 if span.last_frame is None else span.last_frame
        frames = (span.first_frame, last)
        return frames_of_rows(self._newest().masks(video_id, object_ids, frames, at))

    def preview(self, request: PreviewRequest) -> RefinedFrame:
        with self._session(self._dataset, request.video_id) as session:
            session.check_sequence(request)
            base = session.known_base(request.base_revision)
            if base is None:
                base = session.base(self._newest(), request.base_revision)
            wanted = RefinementRequest(
                video_id=request.video_id,
                base_revision=request.base_revision,
                author="",
                prompts=request.prompts,
            )
            plan = plan_refinement(wanted, base.tracks)
            session.check_prompts(plan)
            frame = preview_frame(self._engine, session.video, session.memory, base, plan, request)
            session.check_sequence(request)
            session.show(base, plan, frame)
            return frame

    def refine(
        self, request: RefinementRequest, cancelled: Cancelled = lambda: False
    ) -> Generator[RefinedFrame | RefinementResult, None, None]:
        began = time.monotonic()
        dataset = self._newest()
        if (known := self._committed(dataset, request.video_id, request.request_id)) is not None:
            yield known
            return
        with self._session(dataset, request.video_id) as session:
            base = session.base(dataset, request.base_revision)
            plan = plan_refinement(request, base.tracks)
            check_fresh(dataset, base, plan.object_ids)
            session.check_prompts(plan)
            done = Recomputed(VideoMasks(request.video_id))
            steps = recompute(
                self._engine,
                session.video,
                session.memory,
                base,
                plan,
                request,
                done,
                cancelled,
                seen=session.seen(),
            )
            try:
                yield from steps
            except GeneratorExit:
                if request.draft and done.num_frames:
                    self._keep(base, labels_of(base, plan, done, request, self._maker), request)
                raise
        if done.was_cancelled and not (request.draft and done.num_frames):
            return
        labels = labels_of(base, plan, done, request, self._maker)
        if not labels.tracks:
            raise RefinementError(f"{request.video_id}: no frame of the span could be computed")
        revision, draft_id = None, None
        if request.draft:
            draft_id = self._keep(base, labels, request).draft_id
        else:
            try:
                revision = self._commit(request.video_id, base.revision, labels)
            except RefinementConflict:
                known = self._committed(self._newest(), request.video_id, request.request_id)
                if known is None:
                    raise
                yield known  # the same request came twice at once
                return
        yield RefinementResult(
            video_id=request.video_id,
            base_revision=base.revision,
            revision=revision,
            draft_id=draft_id,
            objects=refined_objects(labels.tracks, base.tracks),
            frames_computed=done.num_frames,
            wall_s=time.monotonic() - began,
            cancelled=done.was_cancelled,
            request_id=request.request_id,
            sequence=request.sequence,
        )

    def review(
        self,
        video_id: str,
        base_revision: int,
        review: Review,
        author: str,
        object_ids: Sequence[int] | None = None,
    ) -> int:
        try:
            return self._writer.review(video_id, base_revision, review, author, object_ids)
        except StaleRevision as stale:
            raise self._conflict(stale) from stale
        except ValueError as error:
            raise RefinementError(str(error)) from error

    def restore(
        self,
        video_id: str,
        base_revision: int,
        revision: int,
        author: str,
        object_ids: Sequence[int] | None = None,
    ) -> RefinementResult:
        dataset = self._newest()
        base = read_base(dataset, video_id, base_revision)
        earlier = read_base(dataset, video_id, revision)
        tracks = restored_tracks(base, earlier, author, object_ids, self._maker.run_id)
        labels = Labels(tracks, MASKS_SCHEMA.empty_table())
        return RefinementResult(
            video_id=video_id,
            base_revision=base_revision,
            revision=self._commit(video_id, base_revision, labels),
            draft_id=None,
            objects=refined_objects(tracks, base.tracks),
        )

    def history(self, video_id: str) -> tuple[RevisionInfo, ...]:
        return history(self._newest(), video_id)

    def drafts(self, video_id: str, author: str | None = None) -> tuple[Draft, ...]:
        newest = newest_revisions(self._newest(), video_id)
        return tuple(
            Draft(
                draft_id=kept.draft_id,
                video_id=video_id,
                base_revision=kept.base_revision,
                author=kept.author,
                created_at=kept.created_at,
                objects=refined_objects(kept.tracks, {}),
                prompts=kept.prompts,
                is_stale=kept.is_stale(newest),
            )
            for kept in self._drafts.of_video(video_id)
            if author is None or kept.author == author
        )

    def draft_masks(self, video_id: str, draft_id: str) -> Iterator[RefinedFrame]:
        return frames_of_rows(self._drafts.labels(self._drafts.get(video_id, draft_id)).masks)

    def commit_draft(self, video_id: str, draft_id: str) -> RefinementResult:
        kept = self._drafts.get(video_id, draft_id)
        request_id = kept.tracks[0].refinement and kept.tracks[0].refinement["request_id"]
        result = self._committed(self._newest(), video_id, request_id)
        if result is None:  # else somebody committed it and died before it was deleted
            labels = self._drafts.labels(kept)
            revision = self._commit(video_id, kept.base_revision, labels)
            parents = read_base(self._dataset, video_id, kept.base_revision).tracks
            result = RefinementResult(
                video_id=video_id,
                base_revision=kept.base_revision,
                revision=revision,
                draft_id=None,
                objects=refined_objects(kept.tracks, parents),
                request_id=request_id,
            )
        self._drafts.discard(video_id, draft_id)
        return result

    def discard_draft(self, video_id: str, draft_id: str) -> None:
        self._drafts.discard(video_id, draft_id)

    def queue(self, wanted: QueueFilter) -> list[QueueItem]:
        return review_queue(self._newest(), wanted)

    def close(self) -> None:
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.close()
        self._engine.close()

    def _newest(self) -> Dataset:
        return self._dataset.refresh()

    @contextmanager
    def _session(self, dataset: Dataset, video_id: str) -> Iterator["_Session"]:
        """The open video, in use while the block runs."""
        with self._lock:
            session = self._sessions.get(video_id)
            if session is None:
                session = self._sessions[video_id] = _Session(video_id, self._options.budget)
            self._sessions.move_to_end(video_id)
            session.users += 1
            idle = self._idle()
            others = [s for s in list(self._sessions.values())[: -self._options.on_device]]
        for left in idle:
            left.close()
        for other in others:
            other.memory.leave_device()
        try:
            session.ensure_open(dataset, self.storage, self._limits)
            yield session
        except VideoError:
            self._drop(session)
            raise
        finally:
            with self._lock:
                session.users -= 1

    def _idle(self) -> list["_Session"]:
        """Taken out: the least recently used beyond the number that may stay."""
        found = []
        for video_id, session in list(self._sessions.items()):
            if len(self._sessions) <= self._options.videos:
                break
            if not session.users:
                found.append(self._sessions.pop(video_id))
        return found

    def _drop(self, session: "_Session") -> None:
        """Open it anew next time: its file may have been mended."""
        with self._lock:
            if self._sessions.get(session.video_id) is session and session.users == 1:
                del self._sessions[session.video_id]
                session.close()

    def _keep(self, base: Base, labels: Labels, request: RefinementRequest) -> KeptDraft:
        return self._drafts.put(
            request.video_id, base.revision, request.author, request.prompts, labels
        )

    def _commit(self, video_id: str, base_revision: int, labels: Labels) -> int:
        try:
            return self._writer.commit_revision(
                video_id, base_revision, labels.tracks, labels.masks
            )
        except StaleRevision as stale:
            raise self._conflict(stale) from stale

    def _conflict(self, stale: StaleRevision) -> RefinementConflict:
        rows = self._newest().tracks([stale.video_id], with_removed=True)
        track = next(t for t in tracks_from_table(rows) if t.object_id == stale.object_id)
        return RefinementConflict(conflict_with(track, stale.base_revision))

    def _committed(
        self, dataset: Dataset, video_id: str, request_id: str | None
    ) -> RefinementResult | None:
        """What a request came to, if it was committed before."""
        if request_id is None:
            return None
        query = "SELECT * FROM tracks WHERE video_id = ? AND refinement.request_id = ?"
        tracks = tracks_from_table(dataset.sql(query, [video_id, request_id]))
        # reviews of a refinement's objects are rows that name the same request
        first = min((track.revision or 0 for track in tracks), default=None)
        if first is None:
            return None
        of_request = [track for track in tracks if track.revision == first]
        refinement = of_request[0].refinement
        assert refinement is not None  # it was found by it
        parents = {t.object_id: t.parent_revision for t in of_request}
        return RefinementResult(
            video_id=video_id,
            base_revision=refinement["base_revision"],
            revision=first,
            draft_id=None,
            objects=refined_objects(of_request, parents),
            request_id=request_id,
        )


def maker_of(model: ModelConfig, weights_sha256: str, run_id: str) -> Maker:
    """Who computes with a configuration's model."""
    settings = model.inference_config
    return Maker(model.checkpoint, weights_sha256, settings, config_hash(settings), run_id)


def frames_of_rows(masks: pa.Table) -> Iterator[RefinedFrame]:
    """Rows of MASKS_SCHEMA as frames, in the order of time."""
    rows = masks.sort_by([("frame_index", "ascending"), ("object_id", "ascending")]).to_pylist()
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end]["frame_index"] != rows[start]["frame_index"]:
            first = rows[start]
            yield RefinedFrame(
                frame_index=first["frame_index"],
                pts_s=first["pts_s"],
                height=first["height"],
                width=first["width"],
                masks=tuple(object_mask(row) for row in rows[start:end]),
            )
            start = end


class _Session:
    """One video kept open."""

    def __init__(self, video_id: str, budget: MemoryBudget) -> None:
        self.video_id = video_id
        self.memory = VideoMemory(budget)
        self.users = 0  # guarded by the lock of whoever keeps the sessions
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._video: Video | None = None
        self._num_frames: int | None = None
        self._bases: OrderedDict[int, Base] = OrderedDict()
        self._newest_sequence: dict[str, int] = {}
        self._seen: OrderedDict[SeenKey, ObjectMask] = OrderedDict()
        self._closed = threading.Event()
        self._warming: threading.Thread | None = None

    @property
    def video(self) -> Video:
        assert self._video is not None, "opened before it is used"
        return self._video

    def ensure_open(self, dataset: Dataset, storage: Storage, limits: LimitsConfig) -> None:
        """Raises NotFound, StorageError or VideoError, and then may be tried again."""
        with self._lock:
            if self._video is not None:
                return
            base = read_base(dataset, self.video_id, newest_revision(dataset, self.video_id))
            with ExitStack() as opening:
                source = opening.enter_context(
                    storage.open_video(base.video_uri, limits.max_video_bytes)
                )
                video = opening.enter_context(
                    Video(source, name=base.video_uri, limits=video_limits(limits))
                )
                self._num_frames = base.about.get("num_frames_decoded") or video.count_frames()
                self._stack = opening.pop_all()
            self._video = video
            self._remember(base)

    def facts(self, base: Base) -> OpenVideo:
        info = self.video.info
        assert self._num_frames is not None  # known since it was opened
        return OpenVideo(
            video_id=self.video_id,
            video_uri=base.video_uri,
            revision=base.revision,
            height=info.height,
            width=info.width,
            num_frames=self._num_frames,
            fps=info.fps,
            duration_s=info.duration_s,
            tracks=tuple(t for _, t in sorted(base.tracks.items()) if not t.removed),
        )

    def base(self, dataset: Dataset, revision: int) -> Base:
        """The labels at a revision, read unless they were just now."""
        known = self.known_base(revision)
        if known is None:
            known = read_base(dataset, self.video_id, revision)
            with self._lock:
                self._remember(known)
        return known

    def known_base(self, revision: int) -> Base | None:
        with self._lock:
            return self._bases.get(revision)

    def check_prompts(self, plan: RefinementPlan) -> None:
        check_prompts(plan, self._num_frames, self.video.info.height, self.video.info.width)

    def check_sequence(self, request: PreviewRequest) -> None:
        """Raise Superseded if the same client has asked for something newer."""
        if request.sequence is None:
            return
        with self._lock:
            newest = max(self._newest_sequence.get(request.client, 0), request.sequence)
            self._newest_sequence[request.client] = newest
        if newest > request.sequence:
            raise Superseded(
                f"{self.video_id}: preview {request.sequence} of {request.client!r}; "
                f"it has asked for {newest} since"
            )

    def show(self, base: Base, plan: RefinementPlan, frame: RefinedFrame) -> None:
        """Remember what somebody is shown, so that it becomes what is committed."""
        shown = {mask.object_id: mask for mask in frame.masks}
        with self._lock:
            for each in plan.objects:
                if each.object_id in shown and frame.frame_index in each.changed:
                    key = seen_key(base, each, frame.frame_index)
                    self._seen[key] = shown[each.object_id]
                    self._seen.move_to_end(key)
            while len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)

    def seen(self) -> dict[SeenKey, ObjectMask]:
        with self._lock:
            return dict(self._seen)

    def warm(self, engine: RefineEngine, base: Base, most_frames: int) -> None:
        """Once: track what the labels' prompts say, in the background, for the memories of it."""
        with self._lock:
            if self._warming is not None or not most_frames:
                return
            self._warming = threading.Thread(
                target=self._warm, args=(engine, base, most_frames), name="warm", daemon=True
            )
            self._warming.start()

    def close(self) -> None:
        self._closed.set()
        if self._warming is not None:
            self._warming.join()
        with self._lock:
            self._video = None
            self._stack.close()
            self.memory.clear()

    def _warm(self, engine: RefineEngine, base: Base, most_frames: int) -> None:
        try:
            for count, _ in enumerate(warm_up(engine, self.video, self.memory, base)):
                if count >= most_frames or self._closed.is_set():
                    return
        except (EngineClosed, VideoError, ValueError) as error:
            # Whoever clicks is told; nobody waits for this.
            log.info("%s: not warmed up: %s", self.video_id, error)

    def _remember(self, base: Base) -> None:
        self._bases[base.revision] = base
        while len(self._bases) > 2:  # the newest, and the one that somebody still works from
            self._bases.popitem(last=False)
