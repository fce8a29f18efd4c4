"""Refine labels: requests of a file over Ray, or one video right here by clicks and boxes."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs._cli import Result, UsageError, job_parser, run
from jobs._progress import ProgressLines, result_of
from jobs.label import retry_override

if TYPE_CHECKING:
    from workflows.config import RefineConfig
    from workflows.refine_types import RefinementRequest

OF_ONE_VIDEO = ("click", "no_click", "box", "withdraw", "again", "remove")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all done, 3 some requests failed, 1 stopped before the end."""
    parser = job_parser("refine", __doc__ or "")
    add_options(parser)
    return run(parser, refine, argv)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `refine` takes besides --config, --set and --log-level."""
    parser.add_argument(
        "--requests", metavar="FILE", help="Parquet or JSON lines, a row per video; sets requests"
    )
    parser.add_argument(
        "--retry",
        metavar="reason=REASON[,REASON…]",
        action="append",
        default=[],
        help="take requests again that failed for these reasons, as retry_reasons does",
    )
    one = parser.add_argument_group("one video", "in this process, without Ray")
    one.add_argument("--video", metavar="ID", help="its id in the dataset")
    for name, numbers, purpose in (
        ("click", "OBJECT,FRAME,X,Y", "this pixel belongs to the object"),
        ("no-click", "OBJECT,FRAME,X,Y", "this pixel does not"),
        ("box", "OBJECT,FRAME,X0,Y0,X1,Y1", "the object fills this box"),
        ("withdraw", "OBJECT,FRAME", "take back what was said there"),
        ("again", "OBJECT", "compute it again with the prompts it has"),
        ("remove", "OBJECT", "take it out of the labels"),
    ):
        one.add_argument(
            f"--{name}", metavar=numbers, action="append", default=[], help=f"{purpose}; repeatable"
        )
    one.add_argument("--frames", metavar="FIRST:LAST", help="compute only these, both included")
    one.add_argument("--until-converged", action="store_true", help="stop where masks agree again")
    one.add_argument("--author", help="who says so; default: the configuration's")


def config_of(options: argparse.Namespace) -> "RefineConfig":
    """The configuration that the options make, of a file of requests.

    Raises ConfigError or UsageError, the latter for options about one video.
    """
    given = [name for name in (*OF_ONE_VIDEO, "video") if getattr(options, name)]
    if given:
        raise UsageError(
            f"refine: --{given[0].replace('_', '-')} is for one video, "
            + ("here, not on a cluster" if options.video else "which --video names")
        )
    return _config(options)


def _config(options: argparse.Namespace) -> "RefineConfig":
    from workflows.config import RefineConfig, load_config

    requests = [f"requests={options.requests}"] if options.requests else []
    overrides = [*options.overrides, *requests, *retry_override(options.retry)]
    return load_config(RefineConfig, options.config, overrides)


def anchored(config: "RefineConfig") -> "RefineConfig":
    """The same for a process that runs in another folder: paths are absolute."""
    from dataclasses import replace

    from jobs.label import absolute, absolute_model

    return replace(
        config,
        requests=config.requests and absolute(config.requests),
        dataset=absolute(config.dataset),
        model=absolute_model(config.model),
    )


def refine(options: argparse.Namespace) -> Result:
    """Carry out a file of requests, or one request from the options."""
    if options.video is not None:
        return _refine_here(_config(options), options)
    return _refine_requests(config_of(options))


def _refine_requests(config: "RefineConfig") -> Result:
    from workflows.refine_batch import refine_requests

    lines = ProgressLines()
    summary = refine_requests(config, on_progress=lines.show)
    lines.end()
    return result_of(summary, config, "requests", "requests")


def _refine_here(config: "RefineConfig", options: argparse.Namespace) -> Result:
    from contextlib import closing
    from dataclasses import asdict

    from workflows.label_engine import options_of
    from workflows.refine_sessions import RefineSessions, SessionOptions
    from workflows.refine_types import RefinedFrame, RefinementResult

    sessions = RefineSessions.of_model(
        config.dataset,
        config.model,
        config.storage,
        options_of(config.compute),
        config.limits,
        SessionOptions(videos=1, warm_frames=0),
    )
    with closing(sessions):
        request = _request(options, sessions.open(options.video).revision, config.author)
        frames, result = 0, None
        for step in sessions.refine(request):
            if isinstance(step, RefinedFrame):
                frames += 1
                if frames % 100 == 0:
                    print(f"{frames} frames", file=sys.stderr)
            elif isinstance(step, RefinementResult):
                result = step
    assert result is not None  # nobody cancelled it
    print(f"{options.video}: revision {result.revision}, {result.frames_computed} frames computed")
    return Result({"dataset": config.dataset, **asdict(result)})


def _request(options: argparse.Namespace, revision: int, author: str) -> "RefinementRequest":
    from workflows.refine_types import RefinementRequest, Span

    prompts: dict[tuple[int, int], dict[str, Any]] = {}

    def prompt(object_id: float, frame_index: float) -> dict[str, Any]:
        place = int(object_id), int(frame_index)
        named = {"object_id": place[0], "frame_index": place[1], "points": []}
        return prompts.setdefault(place, named)

    for positive, words in ((True, options.click), (False, options.no_click)):
        for word in words:
            o, t, x, y = _numbers(word, "click", 4)
            prompt(o, t)["points"].append({"x": x, "y": y, "positive": positive})
    for word in options.box:
        o, t, *corners = _numbers(word, "box", 6)
        prompt(o, t)["box"] = dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True))
    for word in options.withdraw:
        prompt(*_numbers(word, "withdraw", 2))
    first, last = 0, None
    if options.frames is not None:
        parts = options.frames.split(":")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise UsageError(f"--frames {options.frames}: wanted FIRST:LAST, such as 10:40")
        first, last = int(parts[0]), int(parts[1])
    return RefinementRequest(
        video_id=options.video,
        base_revision=revision,
        author=options.author or author,
        prompts=tuple(prompts.values()),  # type: ignore[arg-type]  # dicts as PromptRow says
        object_ids=tuple(int(_numbers(word, "again", 1)[0]) for word in options.again),
        remove_object_ids=tuple(int(_numbers(word, "remove", 1)[0]) for word in options.remove),
        span=Span(first, last),
        until_converged=options.until_converged,
    )


def _numbers(word: str, option: str, count: int) -> list[float]:
    parts = word.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError as error:
        raise UsageError(f"--{option} {word}: wanted numbers with commas between") from error
    whole = numbers[: min(count, 2)]
    if len(numbers) != count or any(number != int(number) for number in whole):
        raise UsageError(f"--{option} {word}: wanted {count} numbers, object and frame whole ones")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
