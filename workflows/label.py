"""The bulk pipeline: tasks over a pool of actors that label, and a small row of each back home.

The only module that imports ray.data; what Ray Data does by default has lost or stopped whole runs,
and all that is set against it stands here. Knows nothing of datasets or of what is to be done when
a task does not come home.
"""

import functools
import gc
import logging
import os
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from workflows.label_actor import LabelActor
from workflows.label_engine import EngineFactory
from workflows.rows import OUTCOMES_SCHEMA, VideoOutcome, outcomes_from_table
from workflows.run_board import Report
from workflows.video_labeller import LabellingJob

log = logging.getLogger(__name__)

# Tasks may be lost with their workers, a few in a hundred on machines that are taken away at any
# moment; a pool that loses many more is broken, and would go on so for days.
LOST_TASKS = 200
LOST_SHARE = 0.02
SPLITTERS = 2  # pieces that are cut up at once: one of 1,000 tasks keeps many actors busy
STDERR = 2
INIT_DEATHS = 5  # actors that do not come up, one after the other, before the first one does


@dataclass(frozen=True, slots=True)
class Home:
    """What came home of one task. rest: where the masks lie and with them what
    is missing of the outcome; None where nothing is."""

    task: int
    outcome: VideoOutcome
    rest: str | None


class PoolBroken(RuntimeError):
    """The pool of actors cannot go on; what came home before is good."""


class Reporter:
    """Sends an actor's reports to the board of the run, and waits for nothing."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def __call__(self, actor: str, report: Report) -> None:
        self._board.report.remote(actor, report)


def label_tasks(
    job: LabellingJob,
    open_engine: EngineFactory,
    pieces: Iterable[pa.Table],
    num_tasks: int,
    board: Any,
) -> Generator[Home, None, None]:
    """What became of tasks, in the order in which they end; some never come home.

    pieces: tables of TASK_SCHEMA, `task` and `revision`, the first to be begun first. board: an
    actor made of RunBoard. Closing the iterator ends the pool.
    """
    try:
        yield from _homes(job, open_engine, pieces, num_tasks, board)
    finally:
        # Errors of lost tasks refer in a circle to the pool, whose actors hold their processors and
        # GPUs until that is collected: the next pool would wait for them.
        gc.collect()


def _homes(
    job: LabellingJob,
    open_engine: EngineFactory,
    pieces: Iterable[pa.Table],
    num_tasks: int,
    board: Any,
) -> Iterator[Home]:
    quieten()
    warn_nobody_of_restarts()
    # In the object store, which spills to disk: the driver holds none of them.
    refs = [ray.put(piece) for piece in pieces]
    with DataContext.current(_context(num_tasks)), warnings.catch_warnings():
        # max_restarts and max_task_retries have no other name; Ray is pinned for them
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = _pipeline(job, open_engine, refs, num_tasks, board)
    for batch in _batches(dataset):
        outcomes = outcomes_from_table(batch.select(OUTCOMES_SCHEMA.names))
        for task, rest, outcome in zip(
            batch["task"].to_pylist(), batch["rest"].to_pylist(), outcomes, strict=True
        ):
            yield Home(task, outcome, rest)


def _batches(dataset: Dataset) -> Iterator[pa.Table]:
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except RayError as error:
        raise PoolBroken(
            f"actors cannot be started, or too many tasks died with theirs: {_ends_of(error)}"
        ) from error


def _pipeline(
    job: LabellingJob, open_engine: EngineFactory, refs: list[Any], num_tasks: int, board: Any
) -> Dataset:
    compute = job.config.compute
    in_flight = compute.videos_in_flight
    return (
        ray.data.from_arrow_refs(refs)
        # A block is a task: without this one actor would get a whole piece. It asks for no
        # processor, as a repartition would: where actors have them all, both would wait for ever.
        .map_batches(
            _row_by_row,
            batch_size=None,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=min(SPLITTERS, len(refs))),
            num_cpus=0,
        )
        .map_batches(
            LabelActor,
            fn_constructor_args=(job, open_engine, Reporter(board)),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=min(compute.actors, num_tasks),
                max_size=min(compute.max_actors or compute.actors, num_tasks),
                # Every task that an actor has runs: none waits there behind a longer one.
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=in_flight,
                enable_true_multi_threading=True,
            ),
            num_gpus=compute.gpus_per_actor or None,
            num_cpus=compute.cpus_per_actor,
            max_restarts=-1,
            # By default a video that kills its worker would do so for ever.
            max_task_retries=0,
        )
    )


def _row_by_row(piece: pa.Table) -> Iterator[pa.Table]:
    for row in range(piece.num_rows):
        yield piece.slice(row, 1)


def _context(num_tasks: int) -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # byte: every row that is yielded is a block
    context.max_errored_blocks = LOST_TASKS + int(LOST_SHARE * num_tasks)  # 0 would end the run
    context.execution_no_progress_timeout_s = -1  # a long video is no stall: it has a deadline
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    # Else never reached by actors that take no more tasks than they run, and no pool would grow.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [ForgetBlocks, WorkOnWithWhoIsThere]
    return context


class ForgetBlocks(ExecutionCallback):
    """Keeps the driver's memory flat.

    Operators keep statistics of every block until the dataset ends, 3 kB a video, for a summary
    that nobody reads.
    """

    def on_execution_step(self, executor: Any) -> None:
        for operator in executor._topology:
            statistics = getattr(operator, "_output_blocks_stats", None)
            if statistics:
                statistics.clear()


class WorkOnWithWhoIsThere(ExecutionCallback):
    """As long as some actors work, others that cannot start do not end the run.

    A machine whose device somebody else uses would otherwise end it when INIT_DEATHS actors were
    refused there, however well the others do.
    """

    def on_execution_step(self, executor: Any) -> None:
        for operator in executor._topology:
            if isinstance(operator, ActorPoolMapOperator) and operator.get_actor_info().running:
                operator._consecutive_actor_init_deaths = 0


class OneLineOfLostTasks(logging.Filter):
    """Ray Data logs two stack traces for each task that died with its worker, one for each actor
    that did not come up."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None:
            what = "an actor did not start" if "init" in record.msg else "a task was lost"
            record.msg = f"{what}: {type(error).__name__}: {_ends_of(error)}"
            record.args, record.exc_info, record.exc_text = (), None, None
        return True


def quieten() -> None:
    """Leave to Ray Data's log what concerns whoever runs a job."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # ours are shown
    for module in ("streaming_executor_state", "operators.actor_pool_map_operator"):
        logger = logging.getLogger(f"ray.data._internal.execution.{module}")
        if not any(isinstance(found, OneLineOfLostTasks) for found in logger.filters):
            logger.addFilter(OneLineOfLostTasks())


@functools.cache
def warn_nobody_of_restarts() -> None:
    """Have the one warning that Ray gives a process of actors that restart go nowhere.

    It says that these cannot start again when the objects that they were made of are gone, as an
    error on file descriptor 2 that no logging reaches; the operator of a pool holds them until the
    pool ends (test_workers_killed_at_random_change_no_row).
    """

    class Restarting:
        def __init__(self, made_of: object) -> None:
            pass

    sys.stderr.flush()
    kept, nowhere = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    try:
        one: Any = ray.remote(Restarting).options(num_cpus=0, max_restarts=-1).remote(ray.put(None))
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)
    ray.kill(one)


def _ends_of(error: BaseException) -> str:
    """What happened and why: the first and the last line; stack traces lie between."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"
