"""From an annotated dataset, in whichever of the usual layouts, to a manifest. Looks at no pixels.

Knows where the layouts keep their annotations and frames; what they say is read elsewhere.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from workflows.manifest import ManifestError, write_manifest
from workflows.manifest_json import PromptKind, rows_from_json
from workflows.manifest_sources import Row, rows_from_masks, rows_from_table
from workflows.mask_sources import (
    FRAMES_PER_SAV_ANNOTATION,
    MaskSource,
    PngFolder,
    SavJson,
    read_sav_json,
)
from workflows.storage import Storage
from workflows.uris import is_local, local_path
from workflows.video_files import EncodeFrames, VideoFiles

log = logging.getLogger(__name__)

SourceKind = Literal["table", "coco", "ytvis", "davis", "mose", "sav"]
KINDS: tuple[SourceKind, ...] = get_args(SourceKind)
TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
DAVIS_SIZES = ("480p", "Full-Resolution")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to read a source; each has an option of `maskmill manifest build`."""

    kind: SourceKind | None = None  # None: told by the names of files and folders
    videos_root: str | None = None  # None: beside the source
    encode: EncodeFrames | None = None
    prompt: PromptKind = "mask"
    sav_masklets: Literal["manual", "auto"] = "manual"
    frames_per_annotation: int = FRAMES_PER_SAV_ANNOTATION


@dataclass(slots=True)
class BuildSummary:
    """What a build found; filled as it goes."""

    kind: SourceKind
    videos: int = 0
    prompts: int = 0
    videos_without_prompts: list[str] = field(default_factory=list)


def build_manifest(
    source: str, output: str, storage: Storage, options: BuildOptions | None = None
) -> BuildSummary:
    """Write the manifest of a source; videos in which nothing is annotated are left out, by name.

    Raises ManifestError, and writes nothing, where the source does not fit or a row has a fault.
    """
    options = options or BuildOptions()
    summary = BuildSummary(options.kind or source_kind(source))
    rows = _rows_of(source, summary.kind, storage, options)
    summary.videos = write_manifest(_counted(rows, summary), output, storage)
    return summary


def source_kind(source: str) -> SourceKind:
    """What a source looks like. Raises ManifestError naming the choices where nothing fits."""
    if source.endswith(TABLE_SUFFIXES):
        return "table"
    if source.endswith(("_manual.json", "_auto.json")):
        return "sav"
    if source.endswith(".json"):
        return "coco"
    if is_local(source):
        folder = local_path(source)
        if (folder / "Annotations_6fps").is_dir() or any(folder.glob("*_manual.json")):
            return "sav"
        if any((folder / "Annotations" / size).is_dir() for size in DAVIS_SIZES):
            return "davis"
        if (folder / "Annotations").is_dir():
            return "mose"
    raise ManifestError(
        f"{source}: cannot tell what it is; wanted a table ({', '.join(TABLE_SUFFIXES)}), COCO or "
        "SA-V JSON, or a folder with Annotations or *_manual.json; or say so with --from"
    )


def _counted(rows: Iterator[Row], summary: BuildSummary) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        video_id = row["video_id"]
        if video_id in seen:
            raise ManifestError(f"{video_id}: two videos have that id")
        seen.add(video_id)
        if row["prompts"]:
            summary.prompts += len(row["prompts"])
            yield row
        else:
            log.warning("%s: nothing is annotated: left out", video_id)
            summary.videos_without_prompts.append(video_id)


def _rows_of(
    source: str, kind: SourceKind, storage: Storage, options: BuildOptions
) -> Iterator[Row]:
    if kind in ("table", "coco", "ytvis"):
        beside = source.rpartition("/")[0] if "/" in source else "."
        frames = local_path(beside) / "JPEGImages" if is_local(source) else None
        videos = VideoFiles(options.videos_root or beside, storage, frames, options.encode)
        if kind == "table":
            return rows_from_table(source, storage, videos)
        return rows_from_json(source, storage, videos, options.prompt)
    if not is_local(source) or not local_path(source).exists():
        raise ManifestError(f"{source}: wanted a local folder, or the SA-V JSON file of one video")
    root = local_path(source)
    masks, frames = _sav(root, options) if kind == "sav" else _label_maps(root)
    beside = str(frames or (root if root.is_dir() else root.parent))
    videos = VideoFiles(options.videos_root or beside, storage, frames, options.encode)
    return rows_from_masks(masks, videos, log.warning)


def _label_maps(root: Path) -> tuple[MaskSource, Path]:
    """The masks and the folder of frames of DAVIS or MOSE."""
    sizes = [size for size in DAVIS_SIZES if (root / "Annotations" / size).is_dir()]
    size = sizes[0] if sizes else ""
    return PngFolder(root / "Annotations" / size), root / "JPEGImages" / size


def _sav(root: Path, options: BuildOptions) -> tuple[MaskSource, Path | None]:
    """The masks of SA-V and, in the layout of its val and test sets, the folder of frames."""
    if (root / "Annotations_6fps").is_dir():
        return PngFolder(root / "Annotations_6fps"), root / "JPEGImages_24fps"
    step = options.frames_per_annotation
    if root.is_file():
        video_id = root.stem.removesuffix("_manual").removesuffix("_auto")
        return {video_id: read_sav_json(root, step)}, None
    return SavJson(root, options.sav_masklets, step), None
