"""Run another command on a Ray cluster through its job server, and follow it to its end."""

import argparse
import hashlib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from jobs._cli import (
    ALL_DONE,
    JobParser,
    Result,
    UsageError,
    add_log_level,
    job_parser,
    run,
    unknown_choice,
)

ID_DIGITS = 12  # of a hash: for the few jobs that a cluster remembers
HELP = """
The configuration of JOB is resolved here and travels with it; paths of manifest and dataset become
absolute. Where no id is given, it follows from the job and that configuration: a second submit
while the job runs follows the one that is there. SIGINT and SIGTERM stop the job, with all that is
finished kept; once more leaves it to itself. The exit code is that of the job.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: the job's own; 1 where it was stopped."""
    return run(_parser(), submit, argv)


def _parser() -> JobParser:
    parser = JobParser(prog="maskmill submit", description=__doc__, epilog=HELP)
    parser.add_argument(
        "--address",
        metavar="URL",
        help="of the cluster, such as http://HEAD:8265; default: RAY_ADDRESS, else one that runs "
        "on this machine",
    )
    parser.add_argument(
        "--submission-id",
        metavar="ID",
        help="name of the job on the cluster; one that is there is followed, even if it has ended",
    )
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="interpreter with maskmill on the cluster; default: this one where the cluster is on "
        "this machine, else python",
    )
    parser.add_argument(
        "--working-dir",
        metavar="DIR",
        help="folder or URI with the code, copied to the cluster; default: what is installed there",
    )
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="environment variable of the job and its actors; may be repeated",
    )
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")
    add_log_level(parser)
    parser.add_argument("job", metavar="JOB", help="label, or any other command")
    parser.add_argument("words", metavar="…", nargs=argparse.REMAINDER, help="options of JOB")
    return parser


def submit(options: argparse.Namespace) -> Result:
    """Submit, follow, and tell how it ended."""
    from workflows.submission import JobServer, Submission, is_on_this_machine

    words = (options.job, *resolved(options.job, options.words))
    submission = Submission(
        submission_id=options.submission_id or submission_id(words),
        words=words,
        python=options.python
        or (sys.executable if is_on_this_machine(options.address) else "python"),
        working_dir=options.working_dir,
        folder=os.getcwd(),
        environment=dict(_variable(word) for word in options.env),
    )
    server = JobServer(options.address)
    if options.submission_id is None:
        name, is_new = server.submit_or_join(submission)
    else:
        name, is_new = submission.submission_id, server.submit(submission)
    known = {"submission_id": name, "job": options.job, "joined": not is_new}
    print(f"{name}: {'submitted' if is_new else 'is there already'}", file=sys.stderr)
    if options.no_wait:
        return Result(known, ALL_DONE)
    ended = server.follow(name, lambda text: print(text, end="", file=sys.stderr, flush=True))
    how = {"status": ended.status, "message": ended.message, "summary": ended.summary}
    return Result({**known, **how}, ended.exit_code)


def _job(name: str) -> ModuleType:
    from jobs.__main__ import commands

    choices = [command for command in commands() if command != "submit"]
    if name not in choices:
        raise UsageError(f"submit: unknown job {unknown_choice(name, choices)}")
    return importlib.import_module(f"jobs.{name}")


def resolved(name: str, words: Sequence[str]) -> list[str]:
    """The options of job `name` such that they need no file and no folder of this process.

    A job with a configuration has `add_options`, `config_of` to read it, and `anchored` to make it
    independent of the folder. The options of others are left as they are.
    """
    job = _job(name)
    if not hasattr(job, "config_of"):
        return list(words)
    from workflows.config import to_tree
    from workflows.submission import settings

    parser = job_parser(name, job.__doc__ or "")
    job.add_options(parser)
    options = parser.parse_args(words)
    tree = to_tree(job.anchored(job.config_of(options)))
    return [*settings(tree), "--log-level", options.log_level]


def submission_id(words: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()
    return f"{words[0]}-{digest[:ID_DIGITS]}"


def _variable(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or not equals:
        raise UsageError(f"--env {word}: wanted NAME=VALUE")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
