"""Options that several jobs have: which labels, as of when, from what; and a line of progress.

Knows nothing of datasets: what the options mean is workflows/labelled_videos.py.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from workflows.labelled_videos import Selection

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0  # of progress, where standard error is no terminal
REVIEWS = ("open", "accepted", "rejected")


def add_selection_options(parser: argparse.ArgumentParser) -> None:
    """--video, --where, --review and --at."""
    parser.add_argument(
        "--video",
        dest="videos",
        metavar="ID",
        action="append",
        help="only this video; may be repeated; default: all",
    )
    parser.add_argument(
        "--where",
        metavar="SQL",
        help="only these objects: a condition on current_tracks, such as \"category = 'cup'\"",
    )
    parser.add_argument(
        "--review",
        dest="reviews",
        action="append",
        choices=REVIEWS,
        help="only objects a person judged so; may be repeated; default: all but rejected",
    )
    add_at_option(parser)


def add_at_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--at",
        metavar="TIME|REVISION",
        type=time_or_revision,
        help="labels as they were: an ISO time (UTC unless it says), or a revision number",
    )


def add_sav_options(parser: argparse.ArgumentParser) -> None:
    """--masklets and --frames-per-annotation, of every job that reads SA-V's files."""
    parser.add_argument(
        "--masklets",
        choices=["manual", "auto"],
        default="manual",
        help="of a folder of SA-V JSON: which of the two files, default manual",
    )
    parser.add_argument(
        "--frames-per-annotation",
        type=int,
        default=4,
        metavar="N",
        help="of SA-V JSON that does not say itself: frames from one annotation to the next, "
        "default 4",
    )


def selection_of(options: argparse.Namespace) -> "Selection":
    """What the options of `add_selection_options` mean."""
    from workflows.labelled_videos import Selection
    from workflows.rows import Review

    chosen = {} if options.reviews is None else {"reviews": tuple(map(Review, options.reviews))}
    return Selection(
        at=options.at,
        video_ids=None if options.videos is None else tuple(options.videos),
        where=options.where,
        **chosen,
    )


def time_or_revision(text: str) -> datetime | int:
    from workflows.query import QueryError, parse_at

    try:
        return parse_at(text)
    except QueryError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def with_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, and now and then how many of them are through, on standard error."""
    began, shown = time.monotonic(), 0.0
    is_terminal = sys.stderr.isatty()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == total or now - shown > (0.2 if is_terminal else SECONDS_BETWEEN_LINES):
            shown = now
            left_s = (now - began) / done * (total - done)
            line = f"{done} of {total} {what}, {left_s:.0f} s to go"
            end = "" if is_terminal and done < total else "\n"
            print(f"\r{line}\x1b[K" if is_terminal else line, end=end, file=sys.stderr, flush=True)
