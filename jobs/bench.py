"""Measure our model beside transformers' on this machine and keep the table as JSON.

The reference is in the same process with the same weights, frames and prompts; ratios are what
counts, since machines differ and are busy. The last line of stdout is the result as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs._cli import Result, job_parser, run
from workflows.benchmark import BenchConfig, as_json, machine, measure_objects, measure_rle
from workflows.config import load_config


def main(argv: Sequence[str] | None = None) -> int:
    return run(job_parser("bench", (__doc__ or "").partition("\n")[0]), bench, argv)


def bench(options: argparse.Namespace) -> Result:
    """Run the suites of the configuration, printing each row as it is known."""
    config = load_config(BenchConfig, options.config, options.overrides)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    result: dict[str, object] = {"machine": machine(), "size": config.size, "dtype": config.dtype}
    if "rle" in config.suites:
        rle = measure_rle()
        print(
            f"RLE of a 1080p mask: ours {rle.ours_ms:.2f} ms, pycocotools "
            f"{rle.pycocotools_ms:.2f} ms, {rle.ratio:.1f} times faster",
            flush=True,
        )
        result["rle"] = as_json(rle)
    if "objects" in config.suites:
        print(f"{config.size}, {config.dtype}, {config.device}: seconds a frame, memory full")
        print("objects     ours  transformers  ratio  lowest mask IoU", flush=True)
        rows = []
        for row in measure_objects(config):
            print(
                f"{row.objects:7d} {row.ours_s:8.3f} {row.transformers_s:13.3f} "
                f"{row.ratio:6.2f} {row.mask_iou:16.4f}",
                flush=True,
            )
            rows.append(as_json(row))
        result["objects"] = rows
    folder = Path(config.results)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return Result(result | {"kept_in": str(path)})


if __name__ == "__main__":
    sys.exit(main())
