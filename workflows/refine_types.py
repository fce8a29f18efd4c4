"""What refining a video takes and gives. Knows nothing of HTTP, models, storage or Ray.

The words here are those of the API, the batch job and the client alike. Coordinates are source
pixels after rotation; frames are counted from 0; spans include both ends. A refinement is made
from a base: the video's newest revision when the person looked, 0 where nothing is labelled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt

from workflows.prompt_rows import PromptRow
from workflows.revisions import StaleRevision
from workflows.rows import FlagRow, Review, Source, Track

RgbArray = npt.NDArray[np.uint8]
Cancelled = Callable[[], bool]  # asked between frames; True: nobody waits for the rest
Box = tuple[float, float, float, float]  # x0, y0, x1, y1; half open


class RefinementError(ValueError):
    """A request that cannot be carried out; the message says what, where, got and wanted."""


class DraftNotFound(LookupError):
    """No such draft: never kept, committed or discarded by now."""


class Superseded(RuntimeError):
    """A preview that nobody waits for: the same client has asked for a newer one meanwhile."""


@dataclass(frozen=True, slots=True)
class Span:
    """Frames to compute again; last_frame None is the video's end."""

    first_frame: int = 0
    last_frame: int | None = None


WHOLE_VIDEO = Span()


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementRequest:
    """One refinement of one video: the same for a page, a program and a batch.

    prompts join those that the objects have; one on the same object and frame replaces the old,
    and one without points, box and mask withdraws it. An object that the video does not have yet is
    added. A mask without a pixel says that the object is absent there.
    object_ids: further objects to compute again, with the prompts they have.
    remove_object_ids: objects to take out of the labels (earlier revisions keep them).
    span: where masks are computed anew; elsewhere they stay as in the base. until_converged: stop,
    on either side of the new prompts, where the new masks agree with the base's.
    draft: keep the result aside, in no view, until it is committed or discarded.
    request_id: the same one is committed once however often it is sent. sequence: the client's own
    count, handed back.
    """

    video_id: str
    base_revision: int
    author: str
    prompts: tuple[PromptRow, ...] = ()
    object_ids: tuple[int, ...] = ()
    remove_object_ids: tuple[int, ...] = ()
    span: Span = WHOLE_VIDEO
    until_converged: bool = False
    draft: bool = False
    request_id: str | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRequest:
    """What would the masks of one frame be with these prompts? Nothing is kept.

    prompts: all that are new on this frame, at every click anew; those of the base's tracks are
    known. client: whose clicks `sequence` counts; an older one than the newest seen is dropped.
    """

    video_id: str
    base_revision: int
    frame_index: int
    prompts: tuple[PromptRow, ...]
    client: str = ""
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMask:
    """One object on one frame. counts: COCO compressed run lengths; absent: area 0, box None.

    object_score: logit, above 0 when present; iou_pred and stability in [0, 1].
    """

    object_id: int
    counts: str
    area_px: int
    box: Box | None
    object_score: float | None
    iou_pred: float | None
    stability: float | None
    is_prompt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinedFrame:
    """The masks of one frame as they come, in the order of computing, not of time."""

    frame_index: int
    pts_s: float
    height: int
    width: int
    masks: tuple[ObjectMask, ...]
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinedObject:
    """What became of one object. Frames outside first_frame … last_frame are the parent's.

    converged_frames: where the masks began to agree with the base's and computing stopped, at most
    one on either side. parent_revision: None for an object that is new.
    """

    object_id: int
    parent_revision: int | None
    removed: bool = False
    first_frame: int | None = None
    last_frame: int | None = None
    converged_frames: tuple[int, ...] = ()
    frames_present: int = 0
    doubt: float | None = None
    flags: tuple[FlagRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementResult:
    """The end of a refinement: a committed revision, or a draft; one of the two is None.

    cancelled: the draft holds what was computed until then, the rest is the base's.
    """

    video_id: str
    base_revision: int
    revision: int | None
    draft_id: str | None
    objects: tuple[RefinedObject, ...]
    frames_computed: int = 0
    wall_s: float = 0.0
    cancelled: bool = False
    request_id: str | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Somebody changed an object since the base: which one, and their revision."""

    video_id: str
    object_id: int
    base_revision: int
    newest_revision: int
    author: str | None
    source: Source
    created_at: datetime | None


class RefinementConflict(StaleRevision):
    """The base is stale; `conflict` names the newer revision. Nothing was committed."""

    def __init__(self, conflict: Conflict) -> None:
        super().__init__(
            conflict.video_id, conflict.object_id, conflict.base_revision, conflict.newest_revision
        )
        self.conflict = conflict


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A refinement kept aside: whole, surviving restarts, seen by no view."""

    draft_id: str
    video_id: str
    base_revision: int
    author: str
    created_at: datetime
    objects: tuple[RefinedObject, ...]
    prompts: tuple[PromptRow, ...]
    is_stale: bool = False  # one of its objects has a newer revision: it cannot be committed


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVideo:
    """A video as a page needs it: facts, and the newest labels. tracks: without removed objects."""

    video_id: str
    video_uri: str
    revision: int
    height: int
    width: int
    num_frames: int
    fps: float | None
    duration_s: float | None
    tracks: tuple[Track, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionInfo:
    """One revision of a video, for a history to choose from. object_ids: those it changed."""

    revision: int
    source: Source
    author: str | None
    created_at: datetime | None
    object_ids: tuple[int, ...]
    review: Review
    removed_object_ids: tuple[int, ...] = ()
    restored_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFilter:
    """Which objects are worth a look. kinds: of flags; None takes any, flagged or not."""

    video_ids: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    sources: tuple[Source, ...] | None = None
    kinds: tuple[str, ...] | None = None
    reviews: tuple[Review, ...] = (Review.OPEN,)
    min_doubt: float = 0.0
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueItem:
    """An object to look at, and the frame to click on first; the most doubtful come first.

    kind: of the flag on that frame; None where nothing was flagged and the frame is its middle.
    """

    video_id: str
    object_id: int
    frame_index: int
    kind: str | None
    doubt: float | None
    revision: int
    category: str | None
    source: Source
    review: Review
    flags: tuple[FlagRow, ...] = ()


class Refinements(Protocol):
    """What a service calls; `workflows.refine_sessions.RefineSessions` is the real one.

    Holds caches only: any replica answers any request from the dataset alone. Safe to share among
    threads. All raise NotFound for a video that the dataset does not have, VideoError for one that
    cannot be decoded and StorageError where storage fails.
    """

    def open(self, video_id: str) -> OpenVideo:
        """The video and its newest labels; begins to warm its caches."""
        ...

    def frame(self, video_id: str, frame_index: int) -> RgbArray:
        """(H, W, 3) uint8, upright. Raises RefinementError for a frame that is not there."""
        ...

    def masks(
        self,
        video_id: str,
        object_ids: Sequence[int] | None = None,
        span: Span = WHOLE_VIDEO,
        at: int | datetime | None = None,
    ) -> Iterator[RefinedFrame]:
        """The labels as they are, or were at a revision or time, in the order of frames."""
        ...

    def preview(self, request: PreviewRequest) -> RefinedFrame:
        """Masks of one frame, of the objects prompted on it; commits nothing.

        Equal to what `refine` would give on that frame. Raises PromptError, RefinementError,
        RefinementConflict or Superseded.
        """
        ...

    def refine(
        self, request: RefinementRequest, cancelled: Cancelled = lambda: False
    ) -> Iterator[RefinedFrame | RefinementResult]:
        """Frames as they are computed, then, last, the result; committed before it is yielded.

        Cancelled, or closed before its end, it commits nothing: a draft keeps what was computed, a
        commit ends without a result. Raises, before the first frame where it is known then,
        PromptError, RefinementError or RefinementConflict.
        """
        ...

    def review(
        self,
        video_id: str,
        base_revision: int,
        review: Review,
        author: str,
        object_ids: Sequence[int] | None = None,
    ) -> int:
        """Accept, reject or reopen objects (all by default); the new revision, of the same masks.

        Raises RefinementConflict or RefinementError.
        """
        ...

    def restore(
        self,
        video_id: str,
        base_revision: int,
        revision: int,
        author: str,
        object_ids: Sequence[int] | None = None,
    ) -> RefinementResult:
        """A new revision that shows objects (all by default) as they were at an earlier one.

        An object that was not there yet is removed. Raises RefinementConflict or RefinementError.
        """
        ...

    def history(self, video_id: str) -> tuple[RevisionInfo, ...]:
        """All revisions of a video, newest first."""
        ...

    def drafts(self, video_id: str, author: str | None = None) -> tuple[Draft, ...]:
        """Drafts of a video, oldest first."""
        ...

    def draft_masks(self, video_id: str, draft_id: str) -> Iterator[RefinedFrame]:
        """The masks a draft would commit, in the order of frames. Raises DraftNotFound."""
        ...

    def commit_draft(self, video_id: str, draft_id: str) -> RefinementResult:
        """Make a draft the newest revision. Raises DraftNotFound or RefinementConflict."""
        ...

    def discard_draft(self, video_id: str, draft_id: str) -> None:
        """Delete a draft; one that is gone is as good."""
        ...

    def queue(self, wanted: QueueFilter) -> list[QueueItem]:
        """Objects to review, the most doubtful first."""
        ...

    def close(self) -> None:
        """Let go of engine and videos."""
        ...
