"""Score masks with J, F and J&F: a dataset or folder against another, or auto against corrected."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs._cli import Result, UsageError, job_parser, run
from jobs._labels import with_progress

if TYPE_CHECKING:
    from workflows.evaluation_scores import AverageScore, Evaluation, ObjectScore
    from workflows.mask_sources import MaskSource
    from workflows.storage import Storage

SOURCES = """
A source of masks is a layer of --dataset (current; corrected: what a person made, corrected or
accepted; auto: what the model made), a revision number or an ISO time of it (UTC unless it says),
or a path: COCO, YouTube-VIS or SA-V JSON, a folder in the layout of DAVIS, MOSE or SA-V, or one
with a folder of PNGs a video. How good the model was where people corrected it: --truth corrected
--predicted auto.
protocols: davis (objects of the first frame, without the first and last frame), sav (each object
from its first sighting), all-frames (every object on every frame of the truth).
"""
WORST_SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    parser = job_parser("evaluate", __doc__ or "")
    parser.epilog = SOURCES
    parser.add_argument("--dataset", metavar="URI", help="folder of the dataset")
    parser.add_argument("--truth", metavar="SOURCE", required=True, help="what is right, see below")
    parser.add_argument(
        "--predicted", metavar="SOURCE", default="current", help="what to score, default current"
    )
    parser.add_argument(
        "--protocol",
        choices=["davis", "sav", "all-frames"],
        default="all-frames",
        help="which objects and frames count, see below; default all-frames",
    )
    parser.add_argument(
        "--missing",
        choices=["fail", "skip", "empty"],
        default="fail",
        help="what becomes of videos without any prediction, default fail",
    )
    parser.add_argument("--output", metavar="URI", help="folder for scores (JSON, CSV) and plots")
    return run(parser, evaluate, argv)


def evaluate(options: argparse.Namespace) -> Result:
    """Score, print the averages and the worst objects, write files if asked to."""
    from workflows.config import StorageOnlyConfig, load_config
    from workflows.evaluate import MissingVideos, Protocol
    from workflows.evaluate import evaluate as score
    from workflows.evaluation_files import write_evaluation
    from workflows.storage import Storage

    storage = Storage(load_config(StorageOnlyConfig, options.config, options.overrides).storage)
    truth, predicted = (
        _open(spec, options.dataset, storage) for spec in (options.truth, options.predicted)
    )
    evaluation = score(
        truth,
        predicted,
        Protocol(options.protocol),
        MissingVideos(options.missing),
        progress=lambda videos: with_progress(videos, len(truth), "videos"),
    )
    print(_table(evaluation))
    summary = evaluation.summary()
    if options.output is not None:
        about = {name: getattr(options, name) for name in ("dataset", "truth", "predicted")}
        write_evaluation(evaluation, options.output, storage, about)
        summary["output"] = options.output
    return Result(summary)


def _open(spec: str, dataset_uri: str | None, storage: "Storage") -> "MaskSource":
    from workflows.import_sources import RenamedMasks, open_source
    from workflows.mask_sources import PngFolder
    from workflows.mask_views import DatasetMasks, parse_view
    from workflows.query import Dataset

    view = parse_view(spec)
    dataset = None if dataset_uri is None else Dataset(dataset_uri, storage)
    if view is not None:
        if dataset is None:
            raise UsageError(f"maskmill evaluate: {spec} is a layer of a dataset; wanted --dataset")
        return DatasetMasks(dataset, view)
    path = Path(spec)
    if "://" not in spec and not path.exists():
        raise UsageError(
            f"maskmill evaluate: {spec}: no layer and no path; wanted current, corrected, auto, a "
            "revision number, an ISO time, a file or a folder"
        )
    if path.is_dir() and not (path / "Annotations").is_dir() and any(path.glob("*/*.png")):
        return PngFolder(path)

    def num_frames(video_id: str) -> int | None:
        rows = dataset.videos([video_id]).to_pylist() if dataset else []
        return rows[0]["num_frames_decoded"] if rows else None

    return RenamedMasks(open_source(spec, storage), num_frames)


def _table(evaluation: "Evaluation") -> str:
    """The averages and the lowest objects, for people."""
    overall = evaluation.overall
    if overall is None:
        return "nothing could be scored"
    head = f"{'':32}{'J&F':>7}{'J':>7}{'recall':>8}{'decay':>7}{'F':>7}{'recall':>8}{'decay':>7}"
    worst = sorted(evaluation.objects, key=lambda score: score.j_and_f)[:WORST_SHOWN]
    lines = [_line(f"{score.video_id} · {score.object_id}", score) for score in worst]
    return "\n".join([head, _line(f"all {overall.objects} objects", overall), *lines])


def _line(name: str, s: "ObjectScore | AverageScore") -> str:
    return (
        f"{name[:31]:32}{s.j_and_f:7.3f}{s.j.mean:7.3f}{s.j.recall:8.3f}{s.j.decay:7.3f}"
        f"{s.f.mean:7.3f}{s.f.recall:8.3f}{s.f.decay:7.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
