"""What callers send and get over HTTP, for checking and for the published schema.

Knows nothing of routes. Strangers' text enters here: unknown keys, numbers that are none and text
in place of a number are refused. Answers are made from the records of refine_types.py; the models
of answers below only describe them, and a test compares the two.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from workflows.prompt_rows import PromptRow
from workflows.refine_types import PreviewRequest, RefinementRequest, Span
from workflows.rows import Review

MAX_INT32 = 2**31 - 1
Index = Annotated[int, Field(ge=0, le=MAX_INT32)]
Coordinate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=200)]


class Body(BaseModel):
    """Something sent: exactly these keys, of exactly these kinds."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Point(Body):
    """A click, in pixels of the video, upright; x right, y down."""

    x: Coordinate
    y: Coordinate
    positive: bool = Field(description="whether the object is there")


class Box(Body):
    x0: Coordinate
    y0: Coordinate
    x1: Coordinate
    y1: Coordinate


class MaskRle(Body):
    """COCO compressed run lengths; a mask without a pixel says that the object is absent."""

    size: tuple[Index, Index] = Field(description="height, width", strict=False)
    counts: str = Field(max_length=4_000_000)


class PromptBody(Body):
    """What was said about one object on one frame. Nothing at all withdraws what was said."""

    object_id: Index
    frame_index: Index
    points: list[Point] = []
    box: Box | None = None
    mask: MaskRle | None = None
    category: Text | None = None

    def to_row(self) -> PromptRow:
        mask = self.mask
        return {
            "object_id": self.object_id,
            "frame_index": self.frame_index,
            "points": [{"x": p.x, "y": p.y, "positive": p.positive} for p in self.points],
            "box": None if self.box is None else self.box.model_dump(),
            "mask": None if mask is None else {"size": list(mask.size), "counts": mask.counts},
            "category": self.category,
        }


CLICK: Any = {
    "object_id": 1,
    "frame_index": 41,
    "points": [{"x": 402.5, "y": 466, "positive": True}],
}


class PreviewBody(Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "base_revision": 3,
                    "frame_index": 41,
                    "prompts": [CLICK],
                    "client": "7c0d",
                    "sequence": 12,
                }
            ]
        }
    )

    base_revision: Index = Field(description="the video's revision that the caller looked at")
    frame_index: Index
    prompts: list[PromptBody] = Field(
        min_length=1, description="all that are new on this frame, at every click anew"
    )
    client: Text = Field("", description="whose clicks `sequence` counts")
    sequence: Index | None = Field(None, description="an older one than the newest is dropped")

    def to_request(self, video_id: str) -> PreviewRequest:
        return PreviewRequest(
            video_id=video_id,
            base_revision=self.base_revision,
            frame_index=self.frame_index,
            prompts=tuple(prompt.to_row() for prompt in self.prompts),
            client=self.client,
            sequence=self.sequence,
        )


class SpanBody(Body):
    """Both ends included; without last_frame to the video's end."""

    first_frame: Index = 0
    last_frame: Index | None = None


class RefinementBody(Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "base_revision": 3,
                    "prompts": [CLICK],
                    "span": {"first_frame": 30, "last_frame": 120},
                    "until_converged": True,
                    "draft": False,
                    "request_id": "7c0d-41",
                }
            ]
        }
    )

    base_revision: Index
    prompts: list[PromptBody] = Field(
        [], description="join those there are; one on the same object and frame replaces it"
    )
    object_ids: list[Index] = Field([], description="further objects to compute again")
    remove_object_ids: list[Index] = Field([], description="objects to take out of the labels")
    span: SpanBody = Field(default_factory=SpanBody)
    until_converged: bool = Field(False, description="stop where masks agree with the base's")
    draft: bool = Field(False, description="keep the result aside instead of committing it")
    request_id: Text | None = Field(
        None, description="the same one is committed once however often it is sent"
    )
    sequence: Index | None = None

    def to_request(self, video_id: str, author: str) -> RefinementRequest:
        return RefinementRequest(
            video_id=video_id,
            base_revision=self.base_revision,
            author=author,
            prompts=tuple(prompt.to_row() for prompt in self.prompts),
            object_ids=tuple(self.object_ids),
            remove_object_ids=tuple(self.remove_object_ids),
            span=Span(self.span.first_frame, self.span.last_frame),
            until_converged=self.until_converged,
            draft=self.draft,
            request_id=self.request_id,
            sequence=self.sequence,
        )


class AcceptBody(Body):
    """A person's judgement of objects, all by default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"base_revision": 3, "review": "accepted", "object_ids": [1]}]
        }
    )

    base_revision: Index
    review: Literal["accepted", "rejected", "open"] = "accepted"
    object_ids: list[Index] | None = None

    def verdict(self) -> Review:
        return Review(self.review)


class RestoreBody(Body):
    """Show objects (all by default) as they were at an earlier revision."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"base_revision": 5, "revision": 3}]})

    base_revision: Index
    revision: Index
    object_ids: list[Index] | None = None


class JobBody(Body):
    """A batch of refinements, carried out by `maskmill refine` as a Ray job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"requests": "s3://bucket/requests.parquet", "request_id": "night-7"}]
        }
    )

    requests: str = Field(
        min_length=1, max_length=2000, description="URI of the Parquet table of requests"
    )
    request_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._-]{1,100}$", description="the same one is submitted once"
    )


# Answers, described.


class Described(BaseModel):
    """Something answered; never checked on its way, so it costs nothing."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Described):
    code: str = Field(examples=["conflict"])
    message: str = Field(examples=["video-7: object 1 is at revision 4; …"])
    detail: dict[str, Any] | None = Field(examples=[{"newest_revision": 4, "author": "ada"}])


class ErrorAnswer(Described):
    error: ErrorDetail


class Flag(Described):
    frame_index: int
    kind: str
    doubt: float


class Mask(Described):
    """One object on one frame; absent: area 0, no box."""

    object_id: int
    counts: str | None = Field(description="COCO compressed run lengths; null with counts=false")
    area_px: int
    box: tuple[float, float, float, float] | None = Field(description="x0, y0, x1, y1, half open")
    object_score: float | None = Field(description="logit, above 0 when present")
    iou_pred: float | None
    stability: float | None
    is_prompt: bool


class FrameLine(Described):
    """The masks of one frame."""

    frame_index: int
    pts_s: float
    height: int
    width: int
    masks: list[Mask]
    sequence: int | None = None


class ObjectResult(Described):
    object_id: int
    parent_revision: int | None
    removed: bool
    first_frame: int | None
    last_frame: int | None
    converged_frames: list[int]
    frames_present: int
    doubt: float | None
    flags: list[Flag]


class ResultAnswer(Described):
    """The end of a refinement: a revision, or a draft."""

    video_id: str
    base_revision: int
    revision: int | None
    draft_id: str | None
    objects: list[ObjectResult]
    frames_computed: int
    wall_s: float
    cancelled: bool
    request_id: str | None
    sequence: int | None


class RefinementLine(Described):
    """A line of a refinement's answer: frames, then the result, or an error."""

    frame: FrameLine | None = None
    result: ResultAnswer | None = None
    error: ErrorDetail | None = None


class TrackAnswer(Described):
    """One object at its newest revision."""

    object_id: int
    revision: int | None
    parent_revision: int | None
    source: str
    author: str | None
    category: str | None
    prompts: list[dict[str, Any]]
    first_frame: int
    last_frame: int
    frames_present: int
    object_score_mean: float | None
    object_score_min: float | None
    iou_pred_mean: float | None
    iou_pred_min: float | None
    stability_mean: float | None
    stability_min: float | None
    doubt: float | None
    flags: list[Flag]
    review: str
    model_id: str | None
    created_at: str | None


class VideoAnswer(Described):
    """A video and its newest labels."""

    video_id: str
    video_uri: str
    revision: int
    height: int
    width: int
    num_frames: int
    fps: float | None
    duration_s: float | None
    pictures: str = Field(description="names the content of the frames, for `?v=` of their URLs")
    tracks: list[TrackAnswer]


class VideoListed(Described):
    video_id: str
    status: str
    reason: str | None
    num_frames: int | None
    width: int | None
    height: int | None
    fps: float | None
    revision: int | None
    objects: int
    accepted: int
    rejected: int
    flags: int
    doubt: float | None


class VideosAnswer(Described):
    videos: list[VideoListed]
    next: str | None = Field(description="the `cursor` of the next page; null on the last")


class QueueListed(Described):
    video_id: str
    object_id: int
    frame_index: int
    kind: str | None
    doubt: float | None
    revision: int
    category: str | None
    source: str
    review: str
    flags: list[Flag]


class QueueAnswer(Described):
    items: list[QueueListed]


class RevisionListed(Described):
    revision: int
    source: str
    author: str | None
    created_at: str | None
    object_ids: list[int]
    review: str
    removed_object_ids: list[int]
    restored_from: int | None


class RevisionsAnswer(Described):
    revisions: list[RevisionListed]


class DraftListed(Described):
    draft_id: str
    video_id: str
    base_revision: int
    author: str
    created_at: str
    objects: list[ObjectResult]
    prompts: list[dict[str, Any]]
    is_stale: bool


class DraftsAnswer(Described):
    drafts: list[DraftListed]


class ReviewAnswer(Described):
    video_id: str
    revision: int


class JobAnswer(Described):
    job_id: str
    status: str
    message: str | None = None
    summary: dict[str, Any] | None = None


class HealthAnswer(Described):
    status: Literal["ok"]
