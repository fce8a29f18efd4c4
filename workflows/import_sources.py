"""Annotated datasets, as imports see them: whose masks, on which frames of which video of ours.

Knows where layouts keep their masks and how their names relate to ids; what becomes of the masks is
import_masks.py. Of our own exports `videos.jsonl` says which name is which id.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from sam2model.video import Video
from workflows.import_masks import ImportOptions, ImportOutcome, ImportResult, import_video
from workflows.mask_json import CocoMasks
from workflows.mask_sources import (
    FRAMES_PER_SAV_ANNOTATION,
    MaskSource,
    MaskSourceError,
    PngFolder,
    SavJson,
    VideoMasks,
    read_sav_json,
)
from workflows.query import Dataset
from workflows.results import DatasetWriter
from workflows.revisions import StaleRevision
from workflows.rows import Status, VideoOutcome
from workflows.storage import NotFound, Storage, StorageError
from workflows.uris import is_local, join_uri, local_path
from workflows.video_files import VideoFiles

log = logging.getLogger(__name__)

ImportKind = Literal["coco", "ytvis", "davis", "mose", "sav"]
KINDS: tuple[ImportKind, ...] = get_args(ImportKind)
DAVIS_SIZES = ("480p", "Full-Resolution")
PARENTS_SEARCHED = 3  # for videos.jsonl, above the file or folder named
# what may be wrong with one video and says nothing about the next: ours are ValueErrors
VIDEO_FAULTS = (ValueError, StorageError, StaleRevision)


@dataclass(frozen=True, slots=True)
class ImportSource:
    """Masks under the names that the source gives to videos, objects and frames.

    exported: name → its line of videos.jsonl. frames_root: a folder of numbered pictures a video.
    """

    masks: MaskSource
    categories: Callable[[str], Mapping[int, str]] = lambda _: {}
    frames_root: Path | None = None
    exported: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def video_id(self, name: str) -> str:
        return str(self.exported[name]["video_id"]) if name in self.exported else name

    def read(self, name: str, num_frames: int | None) -> VideoMasks:
        """Masks by our object ids and frame indices. num_frames: of the video, if known."""
        object_ids = dict(self.exported.get(name, {}).get("labels", ()))
        numbers = self._numbers(name)
        # pictures that are all of the video's frames count them, whatever their names begin with
        places = {n: i for i, n in enumerate(numbers)} if len(numbers) == num_frames else {}
        return {
            object_ids.get(label, label): {places.get(t, t): mask for t, mask in frames.items()}
            for label, frames in self.masks[name].items()
        }

    def _numbers(self, name: str) -> list[int]:
        folder = self.frames_root / name if self.frames_root is not None else None
        if folder is None or not folder.is_dir():
            return []
        stems = (path.stem for path in folder.iterdir() if path.suffix in (".jpg", ".jpeg", ".png"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())


class RenamedMasks(Mapping[str, VideoMasks]):
    """A source's masks by our ids. num_frames: of a video of ours, None where that is unknown."""

    def __init__(self, source: ImportSource, num_frames: Callable[[str], int | None]) -> None:
        self._source = source
        self._num_frames = num_frames
        self._names = {source.video_id(name): name for name in source.masks}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._names

    def __getitem__(self, video_id: str) -> VideoMasks:
        return self._source.read(self._names[video_id], self._num_frames(video_id))


def open_source(
    source: str,
    storage: Storage,
    kind: ImportKind | None = None,
    masklets: Literal["manual", "auto"] = "manual",
    frames_per_annotation: int = FRAMES_PER_SAV_ANNOTATION,
) -> ImportSource:
    """kind None: told by names. Raises MaskSourceError where the source is not what it should be.

    JSON may lie anywhere; folders and SA-V files are local.
    """
    kind = kind or _kind_of(source)
    if kind in ("coco", "ytvis"):
        coco = CocoMasks(storage.read_bytes(source), source)
        return ImportSource(coco, coco.categories)
    if not is_local(source) or not local_path(source).exists():
        raise MaskSourceError(f"{source}: wanted a local folder, or one SA-V file")
    root, exported = local_path(source), _exported(source, storage)
    if kind == "sav":
        if (root / "Annotations_6fps").is_dir():
            return ImportSource(PngFolder(root / "Annotations_6fps"), exported=exported)
        if root.is_file():
            name = root.stem.removesuffix("_manual").removesuffix("_auto")
            return ImportSource(
                {name: read_sav_json(root, frames_per_annotation)}, exported=exported
            )
        return ImportSource(SavJson(root, masklets, frames_per_annotation), exported=exported)
    sizes = [size for size in DAVIS_SIZES if (root / "Annotations" / size).is_dir()]
    size = sizes[0] if sizes else ""
    masks = PngFolder(root / "Annotations" / size)
    return ImportSource(masks, frames_root=root / "JPEGImages" / size, exported=exported)


def import_all(
    source: ImportSource,
    dataset_uri: str,
    storage: Storage,
    options: ImportOptions,
    videos_root: str | None = None,
) -> Iterator[ImportResult]:
    """Import every video, and record the run at the end; faults of a video become its result.

    videos_root: where to find videos that the dataset does not have.
    """
    began, results = datetime.now(UTC), []
    writer = DatasetWriter(storage, dataset_uri)
    dataset = Dataset(dataset_uri, storage)
    for name in source.masks:
        video_id = source.video_id(name)
        try:
            result = _import_one(source, name, writer, dataset, options, videos_root)
        except VIDEO_FAULTS as error:
            log.warning("%s: not imported: %s", video_id, error)
            reason = f"{type(error).__name__}: {error}"
            result = ImportResult(video_id, ImportOutcome.FAILED, reason=reason)
        results.append(result)
        yield result
    count = {o: sum(result.outcome == o for result in results) for o in ImportOutcome}
    writer.record_run(
        {
            "run_id": options.run_id,
            "job": "import",
            "started_at": began,
            "finished_at": datetime.now(UTC),
            "videos_requested": len(results),
            "videos_skipped": count[ImportOutcome.UNCHANGED],
            "videos_ok": count[ImportOutcome.IMPORTED],
            "videos_failed": count[ImportOutcome.FAILED],
            "object_frames": sum(result.masks for result in results),
        }
    )


def _import_one(
    source: ImportSource,
    name: str,
    writer: DatasetWriter,
    dataset: Dataset,
    options: ImportOptions,
    videos_root: str | None,
) -> ImportResult:
    video_id = source.video_id(name)
    attempt = None
    known = dataset.videos([video_id]).to_pylist()
    if not known:
        if videos_root is None:
            raise MaskSourceError(
                f"{video_id}: not in the dataset; wanted --videos-root, where its file lies"
            )
        attempt = _probe(video_id, videos_root, dataset.storage, source.frames_root, options)
    num_frames = attempt.num_frames_decoded if attempt else known[-1]["num_frames_decoded"]
    masks = source.read(name, num_frames)
    return import_video(writer, dataset, video_id, masks, source.categories(name), options, attempt)


def _probe(
    video_id: str,
    videos_root: str,
    storage: Storage,
    frames_root: Path | None,
    options: ImportOptions,
) -> VideoOutcome:
    """What the row of a video that nobody labelled says."""
    uri = VideoFiles(videos_root, storage, frames_root).find(video_id).uri
    with storage.open_video(uri) as data, Video(data, name=uri) as video:
        info, num_frames = video.info, video.count_frames()
    identity = hashlib.sha256(json.dumps(["import", video_id, uri]).encode()).hexdigest()[:32]
    return VideoOutcome(
        video_id=video_id,
        video_uri=uri,
        fingerprint=identity,
        status=Status.OK,
        run_id=options.run_id,
        finished_at=datetime.now(UTC),
        num_frames_header=info.num_frames_header,
        num_frames_decoded=num_frames,
        fps=info.fps,
        width=info.width,
        height=info.height,
        rotation_deg=info.rotation_deg,
        duration_s=info.duration_s,
    )


def _kind_of(source: str) -> ImportKind:
    if source.endswith(("_manual.json", "_auto.json")):
        return "sav"
    if source.endswith(".json"):
        return "coco"
    folder = local_path(source) if is_local(source) else None
    if folder is not None and folder.is_dir():
        sav_files = any(folder.glob("*_manual.json")) or any(folder.glob("*_auto.json"))
        if (folder / "Annotations_6fps").is_dir() or sav_files:
            return "sav"
        if (folder / "Annotations").is_dir():
            return "davis"
    raise MaskSourceError(
        f"{source}: cannot tell what it is; wanted COCO or SA-V JSON, or a folder with Annotations "
        f"or *_manual.json, or to be told its kind ({', '.join(KINDS)})"
    )


def _exported(source: str, storage: Storage) -> dict[str, dict[str, Any]]:
    """Of our own exports the lines of videos.jsonl, by the name that the video has there."""
    path = local_path(source)
    for folder in [path, *path.parents][: PARENTS_SEARCHED + 1]:
        try:
            lines = storage.read_bytes(join_uri(str(folder), "videos.jsonl")).splitlines()
        except (NotFound, StorageError):
            continue
        return {about["folder"]: about for about in map(json.loads, lines)}
    return {}
