"""Label the videos of a manifest with SAM 2 on Ray; a second run does what is left."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs._cli import Result, UsageError, job_parser, run, unknown_choice
from jobs._progress import ProgressLines, result_of

if TYPE_CHECKING:
    from workflows.config import LabelConfig, ModelConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all labelled, 3 some videos failed, 1 stopped before the end."""
    parser = job_parser("label", __doc__ or "")
    add_options(parser)
    return run(parser, label, argv)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `label` takes besides --config, --set and --log-level."""
    parser.add_argument(
        "--retry",
        metavar="reason=REASON[,REASON…]",
        action="append",
        default=[],
        help="take videos again that failed for these reasons, as retry_reasons does",
    )


def config_of(options: argparse.Namespace) -> "LabelConfig":
    """The configuration that the options make. Raises ConfigError or UsageError."""
    from workflows.config import LabelConfig, load_config

    overrides = [*options.overrides, *retry_override(options.retry)]
    return load_config(LabelConfig, options.config, overrides)


def anchored(config: "LabelConfig") -> "LabelConfig":
    """The same for a process that runs in another folder: paths are absolute."""
    from dataclasses import replace

    return replace(
        config,
        manifest=absolute(config.manifest),
        output=absolute(config.output),
        model=absolute_model(config.model),
    )


def absolute(uri: str) -> str:
    """A local path as another folder's process finds it."""
    from workflows.uris import is_local, local_path

    return str(local_path(uri)) if is_local(uri) else uri


def absolute_model(model: "ModelConfig") -> "ModelConfig":
    """With the checkpoint where it is here; else it is a name at the hub."""
    from dataclasses import replace

    from workflows.uris import is_local, local_path

    checkpoint = model.checkpoint
    is_here = is_local(checkpoint) and local_path(checkpoint).exists()
    return replace(model, checkpoint=absolute(checkpoint) if is_here else checkpoint)


def label(options: argparse.Namespace) -> Result:
    """Label what is left of the manifest."""
    from workflows.label_run import label as label_manifest

    config = config_of(options)
    lines = ProgressLines()
    summary = label_manifest(config, on_progress=lines.show)
    lines.end()
    return result_of(summary, config, "videos", "rows in the manifest")


def retry_override(retries: Sequence[str]) -> list[str]:
    """`--retry reason=a,b` as the configuration's own key."""
    from workflows.rows import FailureReason

    reasons: list[str] = []
    for retry in retries:
        key, equals, values = retry.partition("=")
        if key != "reason" or not equals:
            raise UsageError(f"--retry {retry}: wanted reason=REASON, such as reason=timeout")
        for value in values.split(","):
            if value not in set(FailureReason):
                raise UsageError(f"--retry: {unknown_choice(value, list(FailureReason))}")
            reasons.append(value)
    return [f"retry_reasons=[{', '.join(reasons)}]"] if reasons else []


if __name__ == "__main__":
    sys.exit(main())
