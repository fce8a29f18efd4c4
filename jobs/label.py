"""Label the videos of a manifest with SAM 2 on Ray; a second run does what is left."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jobs._cli import ALL_DONE, FINISHED_WITH_FAILURES, Result, job_parser, run

if TYPE_CHECKING:
    from workflows.label import Summary

SECONDS_BETWEEN_LINES = 10.0  # of progress, where standard error is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all labelled, 3 some videos failed."""
    return run(job_parser("label", __doc__ or ""), label, argv)


def label(options: argparse.Namespace) -> Result:
    """Label what is left of the manifest."""
    from workflows.config import LabelConfig, load_config

    config = load_config(LabelConfig, options.config, options.overrides)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    from workflows.label import label as label_manifest

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    summary = label_manifest(config, progress=_progress())
    print(
        f"{summary.videos} videos in the manifest = {summary.skipped + summary.adopted} done before"
        f" + {summary.ok} labelled + {summary.failed} failed"
    )
    for reason, count in summary.failures.most_common():
        print(f"  {count} {reason}")
    code = FINISHED_WITH_FAILURES if summary.failed else ALL_DONE
    return Result(summary.to_json() | {"dataset": config.output}, code)


def _progress() -> "Callable[[Summary, int], None]":
    """A line on standard error: rewritten on a terminal, now and then elsewhere."""
    began = time.monotonic()
    is_terminal = sys.stderr.isatty()
    last = [began]

    def show(summary: "Summary", left: int) -> None:
        now = time.monotonic()
        if left and not is_terminal and now - last[0] < SECONDS_BETWEEN_LINES:
            return
        last[0] = now
        done = summary.ok + summary.failed
        rest_s = (now - began) / done * left if done else 0.0
        line = (
            f"{done} videos, {left} left, {summary.frames / (now - began):.1f} frames/s, "
            f"{summary.object_frames} masks, {summary.failed} failed, {rest_s:.0f} s to go"
        )
        end = "\n" if not is_terminal or not left else ""
        text = f"\r{line}\x1b[K" if is_terminal else line
        print(text, end=end, file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    sys.exit(main())
