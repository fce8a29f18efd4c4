"""A job handed to the job server of a Ray cluster, and followed to its end.

Knows nothing of what jobs do: a job is words for a command line. The name of a submission is its
identity: whoever submits the same one again meets the job that is there.
"""

import asyncio
import json
import logging
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

log = logging.getLogger(__name__)

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# Between SIGTERM and SIGKILL; Ray's own 3 s are enough to commit what is finished, and not always
# enough to say so.
STOP_WAIT_S = 60
POLL_S = 1.0
PATIENCE_S = 120.0  # with a job server that does not answer
STARTING = "No available agent"  # says a job server that is up before the machine it runs on
LAST_CHARACTERS = 1_000_000  # of a log, in which its last line is found


class SubmitError(ValueError):
    """A job server that cannot be used so; names its address, or what it said."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What is to be run, and where.

    words: a job's name and its options. python: as the cluster's machines know it.
    working_dir: a folder or URI that the cluster copies, in which the job then runs; without one
    it runs in `folder`, if the cluster has that.
    """

    submission_id: str
    words: tuple[str, ...]
    python: str = "python"
    working_dir: str | None = None
    folder: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.submission_id):
            raise SubmitError(
                f"submission id {self.submission_id!r}: wanted letters, digits, '-', '_' and '.'"
            )

    @property
    def entrypoint(self) -> str:
        """A line for the shell of the cluster's head.

        What `python` is there only shows there, so it is asked first whether it is the right one.
        """
        python = shlex.quote(self.python)
        steps = []
        if self.folder is not None and self.working_dir is None:
            folder = shlex.quote(self.folder)
            note = shlex.quote(f"{self.folder} is not on this machine; relative paths begin in")
            steps.append(f'cd {folder} 2>/dev/null || echo {note} "$PWD"')
        lacking = shlex.quote(
            f"{self.python} on this machine cannot import maskmill and Ray; "
            "name one that can with --python, or send the code with --working-dir"
        )
        steps.append(f"{python} -c 'import jobs, ray' || {{ echo {lacking}; exit 2; }}")
        module, *options = self.words
        steps.append(f"exec {python} -m {shlex.quote(f'jobs.{module}')} {shlex.join(options)}")
        return "; ".join(steps)

    @property
    def runtime_env(self) -> dict[str, Any]:
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **self.environment}
        where = {} if self.working_dir is None else {"working_dir": self.working_dir}
        return {"env_vars": variables, **where}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended. summary: the JSON object of its last line, if it came to print one."""

    status: str
    exit_code: int
    message: str | None
    summary: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class State:
    """How a job stands. summary: as in `Ended`, once it has ended."""

    status: str
    message: str | None
    summary: Mapping[str, Any] | None


class JobServer:
    """The job server of one cluster.

    address: http://HOST:8265, or what ray.init takes; None is the one of RAY_ADDRESS, else of a
    cluster on this machine. Raises SubmitError where there is none.
    """

    def __init__(self, address: str | None = None) -> None:
        try:
            with _ours_first(address):
                self._client = JobSubmissionClient(address)
        except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
            where = address or "this machine or at RAY_ADDRESS"
            raise SubmitError(f"no job server at {where}: {error}") from error

    def submit(self, submission: Submission) -> bool:
        """Whether it begins now; a job of that name that is there is left as it is."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission.submission_id,
                    runtime_env=submission.runtime_env,
                    metadata={"job": submission.words[0]},
                )
                return True
            except RuntimeError as error:
                if self._details(submission.submission_id) is not None:
                    return False
                if STARTING not in str(error) or time.monotonic() > give_up_at:
                    raise SubmitError(f"{submission.submission_id}: refused: {error}") from error
                log.info("%s: the cluster is still starting", submission.submission_id)
            time.sleep(POLL_S)

    def submit_or_join(self, submission: Submission) -> tuple[str, bool]:
        """As `submit`, but what has ended is not joined: the next one has a number behind its name.

        The name under which the job runs, and whether it begins now.
        """
        for number in count(1):
            name = submission.submission_id
            numbered = name if number == 1 else f"{name}-{number}"
            if self.submit(replace(submission, submission_id=numbered)):
                return numbered, True
            details = self._details(numbered)
            if details is not None and not details.status.is_terminal():
                return numbered, False
        raise AssertionError("numbers do not end")

    def stop(self, submission_id: str) -> None:
        """Ask a job to end; it keeps what is finished."""
        try:
            self._client.stop_job(submission_id)
        except (RuntimeError, OSError) as error:
            log.error("%s: cannot be stopped: %s", submission_id, error)

    def state(self, submission_id: str) -> "State | None":
        """How a job stands now; None for one that the cluster does not know."""
        details = self._details(submission_id)
        if details is None:
            return None
        output = LogOutput(lambda text: None)
        if details.status.is_terminal():
            output.add(self._client.get_job_logs(submission_id))
        return State(str(details.status.value), details.message, output.summary())

    def follow(self, submission_id: str, write: Callable[[str], None]) -> Ended:
        """Wait for a job's end; `write` gets its output as it comes.

        The first SIGINT or SIGTERM stops the job, which is then followed to its end; the second
        leaves it to itself. Raises SubmitError if the server does not answer any more.
        """
        try:
            return asyncio.run(self._follow(submission_id, write))
        except asyncio.CancelledError:
            return Ended("LEFT", 1, "not followed to its end; submitting it again follows it", None)

    async def _follow(self, submission_id: str, write: Callable[[str], None]) -> Ended:
        output = LogOutput(write)
        with self._stops_on_signal(submission_id):
            details = await self._followed(submission_id, output)
        exit_code = {JobStatus.SUCCEEDED: 0}.get(details.status, details.driver_exit_code or 1)
        return Ended(str(details.status.value), exit_code, details.message, output.summary())

    async def _followed(self, submission_id: str, output: "LogOutput") -> JobDetails:
        loop = asyncio.get_running_loop()
        last_answer = loop.time()
        while True:
            try:
                output.begin()
                async for text in self._client.tail_job_logs(submission_id):
                    output.add(text)
                details = await asyncio.to_thread(self._details, submission_id)
                if details is None:
                    raise SubmitError(f"{submission_id}: the cluster does not know it any more")
                if details.status.is_terminal():
                    return details
                last_answer = loop.time()
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                if loop.time() - last_answer > PATIENCE_S:
                    raise SubmitError(
                        f"{submission_id}: the job server does not answer: {error}; the job may "
                        "go on, and submitting it again follows it"
                    ) from error
                log.warning("%s: the job server does not answer: %s", submission_id, error)
            await asyncio.sleep(POLL_S)

    @contextmanager
    def _stops_on_signal(self, submission_id: str) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        assert main is not None

        def stop() -> None:
            if stops:
                main.cancel()
            else:
                log.warning("stopping %s; once more leaves it to itself", submission_id)
            stops.append(loop.run_in_executor(None, self.stop, submission_id))

        stops: list[asyncio.Future[None]] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _details(self, submission_id: str) -> JobDetails | None:
        try:
            return self._client.get_job_info(submission_id)
        except RuntimeError as error:
            if "404" in str(error):
                return None
            raise


class LogOutput:
    """A log that is sent from its beginning after each lost connection, passed on once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._sent = self._seen = 0
        self._last = ""

    def begin(self) -> None:
        self._sent = 0

    def add(self, text: str) -> None:
        fresh = text[max(self._seen - self._sent, 0) :]
        self._sent += len(text)
        self._seen = max(self._seen, self._sent)
        if fresh:
            self._write(fresh)
            self._last = (self._last + fresh)[-LAST_CHARACTERS:]

    def summary(self) -> Mapping[str, Any] | None:
        """The last line that is a JSON object; what Ray says behind it is none."""
        for line in reversed(self._last.splitlines()):
            if line.startswith("{"):
                try:
                    found: Mapping[str, Any] = json.loads(line)
                except ValueError:
                    continue
                return found
        return None


def settings(tree: Mapping[str, Any]) -> list[str]:
    """A resolved configuration as `--set` words, so that no file need travel."""
    pairs = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in tree.items())
    return [word for pair in pairs for word in ("--set", pair)]


def is_on_this_machine(address: str | None) -> bool:
    """Whether an address leads back to here, where this process's own Python is known."""
    address = address or next((os.environ[n] for n in ADDRESS_VARIABLES if n in os.environ), "auto")
    host = address.rpartition("//")[2].partition(":")[0]
    return host in ("auto", "local", "localhost", "127.0.0.1")


@contextmanager
def _ours_first(address: str | None) -> Iterator[None]:
    """An address that is given goes before Ray's environment variables, which else override it."""
    hidden = {} if address is None else {n: os.environ.pop(n, None) for n in ADDRESS_VARIABLES}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in hidden.items() if value is not None})
