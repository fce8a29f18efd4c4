"""Label a small dataset from nothing: a video, clicks, a model, masks, a query, an overlay.

Every step is a command that anyone can type; the demo prints it and runs it.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import label, query
from jobs._cli import ALL_DONE, JobParser, Result, UsageError, add_log_level, run
from sam2model.video import Video
from workflows.demo_inputs import DRAWN_NAME, demo_prompts, write_demo_video
from workflows.manifest import write_manifest
from workflows.overlay import Panel, sheet_frames, write_contact_sheet, write_overlay
from workflows.prompt_rows import encode_prompt
from workflows.query import Dataset
from workflows.storage import Storage

OVERLAY_HEIGHT_PX = 480
SHEET_FRAMES = 6


def main(argv: Sequence[str] | None = None) -> int:
    parser = JobParser(prog="maskmill demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("demo-output"),
        help="made anew each time, default demo-output",
    )
    parser.add_argument(
        "--videos",
        metavar="DIR",
        type=Path,
        help="MP4 files to label in place of the demo's own drawing",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        default="demo",
        help="hub id, folder or file; default: the small model that comes with maskmill",
    )
    add_log_level(parser)
    return run(parser, demo, argv)


def demo(options: argparse.Namespace) -> Result:
    """Make inputs, label, query, draw; where everything is."""
    output: Path = options.output
    if output.exists() and not (output / "manifest.parquet").exists() and any(output.iterdir()):
        raise UsageError(f"--output {output}: not empty and not a demo's; give another folder")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    videos = _videos(options.videos, output)
    manifest, dataset = output / "manifest.parquet", output / "labels"
    rows = [
        {
            "video_id": video.stem,
            "video_uri": str(video.resolve()),
            "prompts": [encode_prompt(prompt) for prompt in demo_prompts(video)],
        }
        for video in videos
    ]
    write_manifest(rows, str(manifest), Storage())
    settings = {
        "manifest": manifest,
        "output": dataset,
        "model.checkpoint": options.checkpoint,
        "model.dtype": "float32",
        "compute.gpus_per_actor": 0,
        "compute.cpus_per_actor": 1,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    words = [*sets, "--log-level", options.log_level]
    _type("label", label.main, words)
    print("\nAgain: every video is done, so nothing is labelled.")
    _type("label", label.main, words)
    _type("query", query.main, ["--dataset", str(dataset)])
    pictures = [_draw(video, dataset, output) for video in videos]
    return Result(
        {
            "manifest": str(manifest),
            "dataset": str(dataset),
            "overlays": [str(path) for path in pictures],
        }
    )


def _videos(folder: Path | None, output: Path) -> list[Path]:
    if folder is None:
        video = output / DRAWN_NAME
        write_demo_video(video)
        return [video]
    videos = sorted(folder.glob("*.mp4"))
    if not videos:
        raise UsageError(f"--videos {folder}: no .mp4 file in it")
    return videos


def _type(name: str, job: Callable[[list[str]], int], words: list[str]) -> None:
    print(f"\n$ maskmill {name} {shlex.join(words)}", flush=True)
    code = job(words)
    if code != ALL_DONE:
        raise RuntimeError(f"maskmill {name} ended with exit code {code}")


def _draw(video: Path, dataset: Path, output: Path) -> Path:
    """An overlay video and a contact sheet of a video's current masks."""
    masks = Dataset(str(dataset)).masks(video.stem).to_pylist()
    panel = Panel.from_rows(video.stem, masks, demo_prompts(video))
    overlay = output / f"{video.stem}-overlay.mp4"
    with Video(video, name=video.name) as opened:
        write_overlay(opened, [panel], overlay, picture_height_px=OVERLAY_HEIGHT_PX)
        sheet = output / f"{video.stem}-sheet.png"
        write_contact_sheet(opened, [panel], sheet, sheet_frames([panel], SHEET_FRAMES))
    return overlay


if __name__ == "__main__":
    sys.exit(main())
