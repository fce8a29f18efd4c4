"""Labels of a dataset in the files of other tools: video by video, resumable, nothing lost unsaid.

Knows nothing of any format's files (export_format.py says what a format is) and nothing of Ray.
Beside the export lies its diary, the folder `.maskmill`: a marker for every video, written last,
says what was exported; a video whose labels are still those of its marker is skipped. When all
videos are through, the files about all of them are put, then `videos.jsonl`, which ties names in
the export to ids of the dataset, and `export.json`, the summary: where that is, all else is.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from sam2model.rle import RleError
from sam2model.video import VideoError
from workflows.export_format import (
    NO_CATEGORY,
    Account,
    Common,
    ExportError,
    ExportFormat,
    FinishedVideo,
    Output,
    folder_name,
)
from workflows.export_frames import write_frames
from workflows.labelled_videos import (
    LabelsError,
    Selection,
    VideoObjects,
    VideoReader,
    newest_labels,
    select_categories,
    select_videos,
)
from workflows.query import At, Dataset
from workflows.storage import NotFound, Storage, StorageConfig, StorageError

log = logging.getLogger(__name__)

DIARY = ".maskmill"
# what may be wrong with one video and says nothing about the next
VIDEO_FAULTS = (ExportError, LabelsError, RleError, VideoError, StorageError)

VIDEOS_READ_AT_ONCE = 64  # rows about so many videos are read together

FrameMode = Literal["references", "jpeg"]


class Outcome(StrEnum):
    EXPORTED = "exported"
    SKIPPED = "skipped"  # exported before, and unchanged since
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class VideoResult:
    """What became of one video. account: of skipped ones too; None where it failed."""

    video_id: str
    outcome: Outcome
    account: Account | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """All that exporting one video takes, whichever process does it."""

    dataset: str
    output: str
    export_format: ExportFormat
    common: Common
    at: At | None
    frames: FrameMode = "references"
    jpeg_quality: int = 95
    storage: StorageConfig = field(default_factory=StorageConfig)

    @property
    def choices(self) -> dict[str, Any]:
        """What the files depend on beside the labels, as JSON."""
        return {
            "format": self.export_format.name,
            "options": asdict(self.export_format),  # type: ignore[call-overload]
            "every": self.common.every,
            "split": self.common.split,
            "frames": self.frames,
            "jpeg_quality": self.jpeg_quality if self.frames == "jpeg" else None,
        }

    def state(self, wanted: VideoObjects) -> str:
        """Equal while exporting the video again would write the same."""
        state = json.dumps([wanted.state, self.choices], sort_keys=True)
        return hashlib.sha256(state.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export wrote. account: of all its videos, also those of earlier runs."""

    export_format: ExportFormat
    videos: int
    skipped: int
    account: Account
    failures: Mapping[str, str]  # video_id → reason
    removed: int  # videos of an earlier run that are no longer selected

    def as_json(self) -> dict[str, Any]:
        return {
            "format": self.export_format.name,
            "videos": self.videos,
            "videos_skipped": self.skipped,
            "videos_removed": self.removed,
            "videos_failed": len(self.failures),
            "failures": dict(list(self.failures.items())[:20]),
            "not_expressed": self.export_format.loses,
            **self.account.as_json(),
        }


def plan_export(
    dataset: Dataset,
    output: str,
    export_format: ExportFormat,
    selection: Selection,
    *,
    every: int = 1,
    split: str = "train",
    frames: FrameMode = "references",
    jpeg_quality: int = 95,
) -> tuple[ExportPlan, list[VideoObjects]]:
    """Fix which labels are meant, and the categories' numbers; what to export of which videos.

    Raises ExportError if the folder holds an export made with other choices.
    """
    storage = dataset.storage
    selection = replace(selection, at=selection.at or newest_labels(dataset))
    videos = select_videos(dataset, selection)
    diary = Output(storage, output)
    categories = _number_categories(diary, select_categories(dataset, selection))
    plan = ExportPlan(
        dataset=dataset.uri,
        output=output,
        export_format=export_format,
        common=Common(categories, every, split),
        at=selection.at,
        frames=frames,
        jpeg_quality=jpeg_quality,
        storage=storage.config,
    )
    _settle_choices(diary, plan.choices)
    diary.put_json(f"{DIARY}/categories.json", dict(categories))
    return plan, videos


def export_videos(
    plan: ExportPlan, videos: Iterable[VideoObjects], storage: Storage | None = None
) -> Iterator[VideoResult]:
    """Export videos one after the other. Faults of a video become its result."""
    storage = storage or Storage(plan.storage)
    reader, waiting = VideoReader(Dataset(plan.dataset, storage), plan.at), iter(videos)
    while batch := list(itertools.islice(waiting, VIDEOS_READ_AT_ONCE)):
        output = Output(storage, plan.output)
        before = {wanted.video_id: _read_marker(output, wanted.video_id) for wanted in batch}
        changed = [w for w in batch if before[w.video_id].get("state") != plan.state(w)]
        reader.prepare([wanted.video_id for wanted in changed])
        for wanted in batch:
            marker = before[wanted.video_id]
            if marker.get("state") == plan.state(wanted):
                account = Account.from_json(marker["account"])
                yield VideoResult(wanted.video_id, Outcome.SKIPPED, account)
                continue
            try:
                account = _export_video(plan, wanted, reader, storage, marker)
                yield VideoResult(wanted.video_id, Outcome.EXPORTED, account)
            except VIDEO_FAULTS as error:
                log.warning("%s: not exported: %s", wanted.video_id, error)
                reason = f"{type(error).__name__}: {error}"
                yield VideoResult(wanted.video_id, Outcome.FAILED, reason=reason)


def finish_export(
    plan: ExportPlan, videos: Sequence[VideoObjects], results: Sequence[VideoResult]
) -> ExportSummary:
    """Put the files about all videos and the summary, once every video has its result.

    Videos that failed are left out of them; videos exported before but not selected now go.
    """
    storage = Storage(plan.storage)
    output = Output(storage, plan.output)
    done = {result.video_id for result in results if result.outcome != Outcome.FAILED}
    removed = _remove_others(output, storage, {video.video_id for video in videos})
    finished = [video.video_id for video in videos if video.video_id in done]
    plan.export_format.write_dataset(_parts(output, finished), plan.common, output)
    with output.write_text("videos.jsonl") as sink:
        for video_id in finished:
            sink.write(json.dumps(output.read_json(_marker(video_id))["about"]) + "\n")
    account = Account()
    for result in results:
        account.add(result.account or Account())
    summary = ExportSummary(
        export_format=plan.export_format,
        videos=len(finished),
        skipped=sum(result.outcome == Outcome.SKIPPED for result in results),
        account=account,
        failures={r.video_id: r.reason or "" for r in results if r.outcome == Outcome.FAILED},
        removed=removed,
    )
    output.put_json("export.json", {**summary.as_json(), **plan.choices, "dataset": plan.dataset})
    return summary


def _export_video(
    plan: ExportPlan,
    wanted: VideoObjects,
    reader: VideoReader,
    storage: Storage,
    before: Mapping[str, Any],
) -> Account:
    """before: the marker of an earlier export, which may have left other files."""
    output, folder = Output(storage, plan.output), folder_name(wanted.video_id)
    video = reader.read(wanted)
    export = plan.export_format.write_video(video, folder, plan.common, output)
    if plan.frames == "jpeg":
        write_frames(
            video, folder, plan.export_format, plan.common, storage, output, plan.jpeg_quality
        )
    written = output.written
    for path in sorted(set(before.get("files", ())) - set(written)):
        output.delete(path)
    output.put_json(_part(video.video_id), export.part)
    about = {
        "video_id": video.video_id,
        "video_uri": video.video_uri,
        "folder": folder,
        "height": video.height,
        "width": video.width,
        "num_frames": video.num_frames,
        "fps": video.fps,
        "object_ids": video.object_ids,
        "labels": [[label, object_id] for object_id, label in export.labels.items()],
    }
    marker = {
        "state": plan.state(wanted),
        "about": about,
        "account": export.account.as_json(),
        "files": written,
    }
    output.put_json(_marker(video.video_id), marker)
    return export.account


def _number_categories(diary: Output, names: Iterable[str | None]) -> dict[str, int]:
    """Numbers from 1 in order of names; an earlier run's numbers stay."""
    categories: dict[str, int] = {}
    try:
        categories.update(diary.read_json(f"{DIARY}/categories.json"))
    except NotFound:
        pass
    for name in sorted({name or NO_CATEGORY for name in names} - categories.keys()):
        categories[name] = len(categories) + 1
    return categories


def _settle_choices(diary: Output, choices: dict[str, Any]) -> None:
    path = f"{DIARY}/choices.json"
    try:
        before = diary.read_json(path)
    except NotFound:
        return diary.put_json(path, choices)
    if before != choices:
        differ = [
            f"{key} was {before.get(key)}, now {choices.get(key)}"
            for key in before
            if before.get(key) != choices.get(key)
        ]
        raise ExportError(
            f"{diary.root} holds another export: {'; '.join(differ)}; wanted an "
            "empty folder, or the same choices"
        )


def _remove_others(output: Output, storage: Storage, selected: set[str]) -> int:
    """Delete what was exported of videos that are not selected; how many."""
    removed = 0
    for stored in list(storage.list(f"{output.root}/{DIARY}/videos")):
        marker = json.loads(storage.read_bytes(stored.uri))
        video_id = marker["about"]["video_id"]
        if video_id not in selected:
            for path in [*marker["files"], _part(video_id), _marker(video_id)]:
                output.delete(path)
            removed += 1
    return removed


def _parts(output: Output, video_ids: Iterable[str]) -> Iterator[FinishedVideo]:
    for video_id in video_ids:
        yield FinishedVideo(video_id, folder_name(video_id), output.read_json(_part(video_id)))


def _read_marker(output: Output, video_id: str) -> dict[str, Any]:
    try:
        marker: dict[str, Any] = output.read_json(_marker(video_id))
    except NotFound:
        return {}
    return marker


def _marker(video_id: str) -> str:
    return f"{DIARY}/videos/{folder_name(video_id)}.json"


def _part(video_id: str) -> str:
    return f"{DIARY}/parts/{folder_name(video_id)}.json"
