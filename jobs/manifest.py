"""Build a manifest of an annotated dataset, or list every fault of one."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs._cli import (
    ALL_DONE,
    BAD_INPUT,
    JobParser,
    Result,
    UsageError,
    add_config_options,
    add_log_level,
    run,
)
from jobs._labels import add_sav_options

if TYPE_CHECKING:
    from workflows.storage import Storage

FAULTS_SHOWN = 100
TABLES = """
Columns of a flat table: video_id, object_id, frame_index (from 0), and on each row a point (x, y,
positive: true where not given), a box (x0, y0, x1, y1), a point and a box, or a mask (mask_height,
mask_width, mask_counts as COCO compressed run lengths), in pixels of the video as shown. Rows of
the same video, object and frame are one prompt. May be left out: video_uri (then VIDEO_ID.mp4 is
looked for), category, first_frame, last_frame, priority, and any tags.NAME.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 2 where the source or the manifest has faults."""
    return run(_parser(), lambda options: options.work(options), argv)


def _parser() -> JobParser:
    parser = JobParser(prog="maskmill manifest", description=__doc__)
    actions = parser.add_subparsers(dest="action", metavar="build|check", required=True)
    _add_build(
        actions.add_parser("build", help="make a manifest of an annotated dataset", epilog=TABLES)
    )
    _add_check(actions.add_parser("check", help="list every fault of a manifest, by row"))
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a flat table (.parquet, .csv, .jsonl; a row per point, box or mask), COCO, "
        "YouTube-VIS or SA-V JSON, or a folder in the layout of DAVIS, MOSE or SA-V",
    )
    parser.add_argument("--output", metavar="MANIFEST", required=True, help="path or URI")
    parser.add_argument(
        "--from",
        dest="kind",
        default="auto",
        choices=["auto", "table", "coco", "ytvis", "davis", "mose", "sav"],
        help="what SOURCE is; auto tells by the names of files and folders",
    )
    parser.add_argument(
        "--videos-root",
        metavar="URI",
        help="where relative video_uri start, and VIDEO_ID.mp4 lies; default: beside SOURCE",
    )
    parser.add_argument(
        "--encode-frames",
        metavar="DIR",
        type=Path,
        help="encode folders of JPEG frames as near-lossless videos in DIR, once each",
    )
    parser.add_argument(
        "--crf",
        type=int,
        default=10,
        help="of --encode-frames: x264 quality, lower is better, default 10",
    )
    parser.add_argument(
        "--fps", type=int, default=24, help="of --encode-frames: frames a second, default 24"
    )
    parser.add_argument(
        "--prompt",
        choices=["mask", "box"],
        default="mask",
        help="of COCO and YouTube-VIS: what becomes the prompt, default mask",
    )
    add_sav_options(parser)
    _add_shared(parser, _build)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST", help="path or URI; a folder ends in /")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="open every video: is it there, do prompts and masks fit its size and length",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=FAULTS_SHOWN,
        help=f"faults shown, default {FAULTS_SHOWN}; all are counted",
    )
    _add_shared(parser, _check)


def _add_shared(
    parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], Result]
) -> None:
    add_config_options(parser)
    add_log_level(parser)
    parser.set_defaults(work=work)


def _build(options: argparse.Namespace) -> Result:
    from workflows.manifest_build import BuildOptions, build_manifest
    from workflows.video_files import EncodeFrames

    encode = None
    if options.encode_frames is not None:
        encode = EncodeFrames(options.encode_frames, options.crf, options.fps)
    summary = build_manifest(
        options.source,
        options.output,
        _storage(options),
        BuildOptions(
            kind=None if options.kind == "auto" else options.kind,
            videos_root=options.videos_root,
            encode=encode,
            prompt=options.prompt,
            sav_masklets=options.masklets,
            frames_per_annotation=options.frames_per_annotation,
        ),
    )
    left_out = summary.videos_without_prompts
    return Result(
        {
            "manifest": options.output,
            "from": summary.kind,
            "videos": summary.videos,
            "prompts": summary.prompts,
            "videos_without_prompts": len(left_out),
        }
    )


def _check(options: argparse.Namespace) -> Result:
    from workflows.manifest_check import ManifestCheck, probe_with

    if options.limit < 0:
        raise UsageError(f"--limit {options.limit}: wanted 0 or more")
    storage = _storage(options)
    check = ManifestCheck(options.manifest, storage, probe_with(storage) if options.probe else None)
    faults = 0
    for fault in check.faults():
        faults += 1
        if faults <= options.limit:
            print(fault)
    if faults > options.limit:
        print(f"… and {faults - options.limit} more, shown with --limit {faults}")
    return Result(
        {
            "manifest": options.manifest,
            "videos": check.videos,
            "prompts": check.prompts,
            "faults": faults,
        },
        BAD_INPUT if faults else ALL_DONE,
    )


def _storage(options: argparse.Namespace) -> "Storage":
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.storage import Storage

    return Storage(load_config(StorageOnlyConfig, options.config, options.overrides).storage)


if __name__ == "__main__":
    sys.exit(main())
