"""Train or fine-tune a SAM 2 video model, on one worker or on many of a Ray cluster."""

import argparse
import sys
import time
from collections.abc import Sequence

from jobs._cli import Result, job_parser, run


def main(argv: Sequence[str] | None = None) -> int:
    return run(job_parser("train", __doc__ or ""), train, argv)


def train(options: argparse.Namespace) -> Result:
    """Train to the end, or go on where the output folder was left."""
    from workflows.config import load_config
    from workflows.train_config import TrainConfig

    config = load_config(TrainConfig, options.config, options.overrides)
    began = time.perf_counter()
    if config.workers.count > 1:
        from workflows.train_ray import train_on_ray

        summary = train_on_ray(config)
    else:
        from workflows.train import one_worker, run_training

        summary = run_training(config, one_worker(config))
    seconds = round(time.perf_counter() - began, 1)
    return Result({"output": config.output, **summary, "wall_s": seconds})


if __name__ == "__main__":
    sys.exit(main())
