"""What all jobs share at the command line: options, logging, exit codes, the last JSON line.

Knows nothing of any job's work. A job parses, configures, runs one workflow and returns a
`Result`; `run` turns it, or the exception that replaced it, into output and an exit code.
"""

import argparse
import difflib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

ALL_DONE = 0
BROKEN = 1  # a defect (traceback on stderr) or a failing machine or store
BAD_INPUT = 2  # the caller can mend it: one line on stderr
FINISHED_WITH_FAILURES = 3

# An exception of our own packages blames the input if it is a ValueError or has one of these names;
# by name, because importing the classes would load pyarrow and fsspec for every `--help`.
OUR_PACKAGES = ("sam2model", "workflows", "jobs")
INPUT_ERRORS = frozenset({"NotFound", "StaleRevision", "TooLarge", "UriNotAllowed"})
# what a disk or a store refused, and the message says all: no traceback would tell more
STORE_ERRORS = frozenset({"Unreadable"})


class UsageError(ValueError):
    """A command line that cannot be used; the message names the option and the choices."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a job hands back: the exit code and what goes into the last line of stdout."""

    summary: Mapping[str, object]
    exit_code: int = field(default=ALL_DONE)


class JobParser(argparse.ArgumentParser):
    """argparse that raises UsageError, names the choices and accepts no abbreviations."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def parse_known_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse unknown options here, where the subcommand's own options are known."""
        parsed, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if word.startswith("-"):
                option = word.partition("=")[0]
                raise UsageError(f"{self.prog}: unknown option {_with_choices(option, self)}")
        if unknown:
            raise UsageError(f"{self.prog}: unexpected argument {unknown[0]!r}")
        return parsed, []

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def job_parser(name: str, purpose: str) -> JobParser:
    """The parser of a job with a configuration: --config, --set and --log-level."""
    parser = JobParser(prog=f"maskmill {name}", description=purpose)
    add_config_options(parser)
    add_log_level(parser)
    return parser


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """--config and --set, as `config` and `overrides` of workflows.config.load_config."""
    parser.add_argument("--config", metavar="FILE", help="YAML file, see configs/")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override one key, such as compute.actors=4; may be repeated",
    )


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """--log-level, of every job and subcommand."""
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="what is logged to standard error",
    )


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], Result],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, work, print the summary as the last line of stdout; the exit code."""

    def job() -> int:
        options = parser.parse_args(argv)
        configure_logging(getattr(options, "log_level", "info"))
        result = work(options)
        print_last_line(result.summary)
        return result.exit_code

    return guarded(job)


def guarded(call: Callable[[], int]) -> int:
    """The call's exit code; an exception becomes a message, a last JSON line and a code."""
    try:
        return call()
    except BrokenPipeError as error:
        return _broken_pipe(error)
    except KeyboardInterrupt:
        return _report("Interrupted", "stopped by the keyboard or SIGINT", BROKEN)
    except Exception as error:
        name = _input_error(error)
        if name is not None:
            return _report(name, " ".join(str(error).split()), BAD_INPUT)
        if type(error).__name__ not in STORE_ERRORS:
            traceback.print_exc()
        return _report(type(error).__name__, " ".join(str(error).split()), BROKEN)


def configure_logging(level: str) -> None:
    """Log to stderr, so that stdout holds results only; the one place that configures logging."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,  # Ray and pytest may have put handlers on the root already
    )
    for library in ("aiobotocore", "botocore"):  # tell every time where credentials came from
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))


def print_last_line(summary: Mapping[str, object]) -> None:
    """One JSON object on one line; flushed, so that a closed pipe shows here."""
    print(json.dumps(summary, allow_nan=False), flush=True)


def unknown_choice(word: str, choices: Sequence[str]) -> str:
    """`word` with a suggestion and the choices, for messages about anything misspelt."""
    close = difflib.get_close_matches(word, choices, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{word}{hint}; choices are {', '.join(choices)}"


def _with_choices(option: str, parser: argparse.ArgumentParser) -> str:
    choices = [name for name in parser._option_string_actions if name.startswith("--")]
    return unknown_choice(option, choices)


def _input_error(error: BaseException) -> str | None:
    """The noun that blames the input, if the exception is one of ours or derives from one."""
    for cls in type(error).__mro__:
        is_ours = cls.__module__.partition(".")[0] in OUR_PACKAGES
        if is_ours and (issubclass(cls, ValueError) or cls.__name__ in INPUT_ERRORS):
            return cls.__name__
    return None


def _report(code: str, message: str, exit_code: int) -> int:
    print(f"maskmill: {code}: {message}", file=sys.stderr)
    try:
        print_last_line({"error": {"code": code, "message": message}})
    except BrokenPipeError:
        _abandon_stdout()
    return exit_code


def _broken_pipe(error: BrokenPipeError) -> int:
    """Quiet when the reader of stdout left (`| head`); anyone else's broken pipe is reported."""
    try:
        print_last_line({"error": {"code": "BrokenPipeError", "message": str(error)}})
    except BrokenPipeError:
        _abandon_stdout()
        return BROKEN
    traceback.print_exception(error)
    return BROKEN


def _abandon_stdout() -> None:
    """Let Python's flush at exit go nowhere instead of failing once more."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
