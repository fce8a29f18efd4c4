"""Take masks made elsewhere into a dataset as new revisions: COCO, YouTube-VIS, DAVIS, SA-V."""

import argparse
import sys
import uuid
from collections.abc import Sequence

from jobs._cli import ALL_DONE, FINISHED_WITH_FAILURES, Result, job_parser, run
from jobs._labels import add_sav_options, with_progress

FAILURES_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all imported or unchanged, 3 some videos failed."""
    parser = job_parser("import", __doc__ or "")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="COCO or YouTube-VIS JSON, or a folder in the layout of DAVIS, MOSE or SA-V",
    )
    parser.add_argument("--dataset", metavar="URI", required=True, help="folder of the dataset")
    parser.add_argument(
        "--from",
        dest="kind",
        default="auto",
        choices=["auto", "coco", "ytvis", "davis", "mose", "sav"],
        help="what SOURCE is; auto tells by the names of files and folders",
    )
    parser.add_argument(
        "--videos-root",
        metavar="URI",
        help="where VIDEO_ID.mp4 lies of videos that the dataset does not have",
    )
    parser.add_argument("--author", help="who made the masks, as it should stand in tracks")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="mark the objects as accepted: bulk jobs then leave them alone",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="drop an object's masks on frames of which SOURCE says nothing; default: keep them",
    )
    add_sav_options(parser)
    return run(parser, import_masks, argv)


def import_masks(options: argparse.Namespace) -> Result:
    """Import every video of the source, one commit each."""
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.import_masks import ImportOptions, ImportOutcome
    from workflows.import_sources import import_all, open_source
    from workflows.rows import Review
    from workflows.storage import Storage

    config = load_config(StorageOnlyConfig, options.config, options.overrides)
    storage = Storage(config.storage)
    source = open_source(
        options.source,
        storage,
        None if options.kind == "auto" else options.kind,
        options.masklets,
        options.frames_per_annotation,
    )
    how = ImportOptions(
        run_id=f"import-{uuid.uuid4().hex[:12]}",
        author=options.author,
        review=Review.ACCEPTED if options.accept else Review.OPEN,
        replace=options.replace,
    )
    results = list(
        with_progress(
            import_all(source, options.dataset, storage, how, options.videos_root),
            len(source.masks),
            "videos",
        )
    )
    count = {o: sum(result.outcome == o for result in results) for o in ImportOutcome}
    failures = {r.video_id: r.reason for r in results if r.outcome == ImportOutcome.FAILED}
    summary = {
        "dataset": options.dataset,
        "run_id": how.run_id,
        **{f"videos_{outcome}": number for outcome, number in count.items()},
        "objects": sum(result.objects for result in results),
        "objects_unchanged": sum(result.objects_unchanged for result in results),
        "masks": sum(result.masks for result in results),
        "failures": dict(list(failures.items())[:FAILURES_SHOWN]),
    }
    return Result(summary, FINISHED_WITH_FAILURES if failures else ALL_DONE)


if __name__ == "__main__":
    sys.exit(main())
