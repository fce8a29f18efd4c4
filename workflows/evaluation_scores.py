"""What an evaluation found: scores of objects, their averages, and what was left out and why.

Knows nothing of masks or protocols. J, F and their recalls lie in [0, 1], decays in [-1, 1].
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa

RECALL_THRESHOLD = 0.5  # a frame counts as found above it

STATISTICS_FIELDS = [
    (name, pa.float64())
    for name in ("j_and_f", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")
]
OBJECTS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("object_id", pa.int32()),
        ("frames", pa.int32()),
        ("frames_unpredicted", pa.int32()),
        *STATISTICS_FIELDS,
    ]
)
VIDEOS_SCHEMA = pa.schema(
    [("video_id", pa.string()), ("objects", pa.int32()), ("frames", pa.int64()), *STATISTICS_FIELDS]
)
OMISSIONS_SCHEMA = pa.schema(
    [("video_id", pa.string()), ("object_id", pa.int32()), ("reason", pa.string())]
)


class OmissionReason(StrEnum):
    """Why an object, or a whole video, has no score."""

    NO_OBJECT = "the truth has no object in this video"
    NOT_ON_FIRST_FRAME = "davis: not among the objects of the first frame"
    NEVER_VISIBLE = "the truth never shows it on a scored frame"
    NO_SCORED_FRAME = "no frame is left once the first and the last are dropped"
    NOT_IN_TRUTH = "predicted, but unknown to the truth"
    NOT_PREDICTED = "the video has no prediction"


@dataclass(frozen=True, slots=True)
class Omission:
    """Something without a score; object_id None: the whole video."""

    video_id: str
    object_id: int | None
    reason: OmissionReason


@dataclass(frozen=True, slots=True)
class Statistics:
    """One measure, J or F: of an object over its frames, or averaged over objects.

    recall: share of frames above 0.5. decay: mean of the first quarter less that of the last.
    """

    mean: float
    recall: float
    decay: float

    @classmethod
    def over_frames(cls, values: Sequence[float]) -> "Statistics":
        """values: one a scored frame, in order of frames, at least one."""
        scores = np.asarray(values, dtype=np.float64)
        # Quarters share their edge frames; halves round up. Source: DAVIS' db_statistics.
        edges = np.round(np.linspace(1, len(scores), 5) + 1e-10).astype(np.int64) - 1
        first, last = scores[: edges[1] + 1], scores[edges[3] :]
        return cls(
            mean=float(scores.mean()),
            recall=float((scores > RECALL_THRESHOLD).mean()),
            decay=float(first.mean() - last.mean()),
        )

    @classmethod
    def average(cls, parts: Sequence["Statistics"]) -> "Statistics":
        return cls(
            mean=float(np.mean([part.mean for part in parts])),
            recall=float(np.mean([part.recall for part in parts])),
            decay=float(np.mean([part.decay for part in parts])),
        )


@dataclass(frozen=True, slots=True)
class ObjectScore:
    """One object of one video. frames_unpredicted: scored frames without a predicted mask."""

    video_id: str
    object_id: int
    frames: int
    frames_unpredicted: int
    j: Statistics
    f: Statistics

    @property
    def j_and_f(self) -> float:
        return (self.j.mean + self.f.mean) / 2


@dataclass(frozen=True, slots=True)
class AverageScore:
    """A video or a dataset: every object weighs the same, however many frames it has."""

    objects: int
    frames: int
    j: Statistics
    f: Statistics

    @classmethod
    def of(cls, scores: Sequence[ObjectScore]) -> "AverageScore":
        """scores: at least one."""
        return cls(
            objects=len(scores),
            frames=sum(score.frames for score in scores),
            j=Statistics.average([score.j for score in scores]),
            f=Statistics.average([score.f for score in scores]),
        )

    @property
    def j_and_f(self) -> float:
        return (self.j.mean + self.f.mean) / 2


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a dataset. Every object of truth and prediction is in objects or in omissions."""

    protocol: str
    objects: tuple[ObjectScore, ...]
    omissions: tuple[Omission, ...]

    @property
    def overall(self) -> AverageScore | None:
        """Over all objects, not over videos; None if nothing could be scored."""
        return AverageScore.of(self.objects) if self.objects else None

    def by_video(self) -> dict[str, AverageScore]:
        """The videos with at least one scored object, in order of evaluation."""
        objects: dict[str, list[ObjectScore]] = {}
        for score in self.objects:
            objects.setdefault(score.video_id, []).append(score)
        return {video_id: AverageScore.of(scores) for video_id, scores in objects.items()}

    def objects_table(self) -> pa.Table:
        """A row per scored object, OBJECTS_SCHEMA."""
        rows = [
            {
                "video_id": score.video_id,
                "object_id": score.object_id,
                "frames": score.frames,
                "frames_unpredicted": score.frames_unpredicted,
                **_statistics(score),
            }
            for score in self.objects
        ]
        return pa.Table.from_pylist(rows, schema=OBJECTS_SCHEMA)

    def videos_table(self) -> pa.Table:
        """A row per video with a scored object, VIDEOS_SCHEMA."""
        rows = [
            {
                "video_id": video_id,
                "objects": score.objects,
                "frames": score.frames,
                **_statistics(score),
            }
            for video_id, score in self.by_video().items()
        ]
        return pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA)

    def omissions_table(self) -> pa.Table:
        """A row per omission, OMISSIONS_SCHEMA."""
        rows = [
            {"video_id": o.video_id, "object_id": o.object_id, "reason": str(o.reason)}
            for o in self.omissions
        ]
        return pa.Table.from_pylist(rows, schema=OMISSIONS_SCHEMA)

    def summary(self) -> dict[str, Any]:
        """The dataset's averages and counts, ready for JSON; averages are null without objects."""
        overall = self.overall
        averages = (
            _statistics(overall) if overall else {name: None for name, _ in STATISTICS_FIELDS}
        )
        return {
            "protocol": self.protocol,
            **averages,
            "videos": len({score.video_id for score in self.objects}),
            "objects": len(self.objects),
            "frames": overall.frames if overall else 0,
            "frames_unpredicted": sum(score.frames_unpredicted for score in self.objects),
            "omissions": dict(Counter(str(omission.reason) for omission in self.omissions)),
        }


def _statistics(score: ObjectScore | AverageScore) -> dict[str, float]:
    return {
        "j_and_f": score.j_and_f,
        "j_mean": score.j.mean,
        "j_recall": score.j.recall,
        "j_decay": score.j.decay,
        "f_mean": score.f.mean,
        "f_recall": score.f.recall,
        "f_decay": score.f.decay,
    }
