"""One process of the pool: a model, an engine, several videos at once.

Knows Ray by its metrics only. What cannot be mended inside a process (a device that does not
answer, code that never lets go of the interpreter) ends it, and its videos run again elsewhere.
"""

import faulthandler
import logging
import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from ray.util.metrics import Counter, Gauge, Histogram

from workflows.label_engine import (
    EngineFactory,
    device_answers,
    free_device_memory,
    is_device_lost,
    use_threads,
)
from workflows.rows import (
    OUTCOMES_SCHEMA,
    FailureReason,
    VideoOutcome,
    outcomes_to_table,
)
from workflows.run_board import ActorTally, Report
from workflows.video_labeller import LabellingJob

log = logging.getLogger(__name__)

# what travels home: an outcome, the number of its task, and, unless the outcome is complete, where
# its masks lie
HOME_SCHEMA = pa.schema([*OUTCOMES_SCHEMA, ("task", pa.int64()), ("rest", pa.string())])
# Ray sends smaller results along with the answer; larger ones stay on the actor's machine and are
# lost with it, so of those only the main facts travel: the rest lies with the masks.
LARGEST_HOME_BYTES = 64 * 1024
SAMPLE_S = 0.1
REPORT_EVERY = 20  # samples
STDERR = 2
HANG_S = 900.0  # without a sign of life, unless the deadline of a video is shorter
MIN_HANG_S = 20.0  # a crowded machine may keep a healthy process waiting for some

SendReport = Callable[[str, Report], None]


class LabelActor:
    """Called by several threads, each with one task."""

    def __init__(
        self, job: LabellingJob, open_engine: EngineFactory, send_report: SendReport
    ) -> None:
        use_threads(job.config.compute.cpus_per_actor)
        self._tally = ActorTally()
        engine = open_engine(job.config, job.weights_sha256)
        self._worker = job.worker(engine, self._tally.add_frame)
        self._videos = Counter("maskmill_videos", "videos that ended", ("status", "reason"))
        self._seconds = Histogram(
            "maskmill_video_seconds",
            "from the beginning of a video to its masks in storage",
            [1, 3, 10, 30, 100, 300, 1000, 3000, 10000],
        )
        hang_s = max(min(job.config.limits.video_deadline_s, HANG_S), MIN_HANG_S)
        self._reporter = _Reporter(self._tally, send_report, hang_s)
        threading.Thread(target=self._reporter.run, name="report", daemon=True).start()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row of a plan to one row of HOME_SCHEMA."""
        (row,) = batch.to_pylist()
        self._tally.add_in_flight(1)
        try:
            outcome = self._label(row)
        except Exception as error:
            if is_device_lost(error):
                _end_process(f"the device is lost: {error}")
            raise
        finally:
            if self._tally.add_in_flight(-1) == 0:
                self._reporter.tell()  # for this may have been the last
        self._videos.inc(tags={"status": outcome.status, "reason": outcome.reason or ""})
        self._seconds.observe(sum(outcome.seconds_by_stage.values()))
        return home_row(outcome, row["task"])

    def _label(self, row: dict[str, Any]) -> VideoOutcome:
        outcome = self._worker.work(row)
        if outcome.reason == FailureReason.OUT_OF_MEMORY:
            free_device_memory()
        if outcome.reason == FailureReason.TIMEOUT and not device_answers():
            _end_process(f"the device does not answer after {outcome.video_id} timed out")
        return outcome


class _Reporter:
    """Looks at the process and tells of it; ends it when it shows no sign of life."""

    def __init__(self, tally: ActorTally, send_report: SendReport, hang_s: float) -> None:
        self._tally, self._send_report, self._hang_s = tally, send_report, hang_s
        self._name = uuid.uuid4().hex
        self._told = Report()
        self._telling = threading.Lock()
        self._frames = Counter("maskmill_frames", "frames labelled")
        self._masks = Counter("maskmill_masks", "masks made, absent ones too")
        self._in_flight = Gauge("maskmill_videos_in_flight", "videos open in this actor")
        self._busy = Gauge("maskmill_engine_busy_share", "of this actor's time, 0 to 1")

    def run(self) -> None:
        engine = next((t for t in threading.enumerate() if t.name == "engine"), None)
        pause = threading.Event()
        while True:
            # Its own clock, outside the interpreter: when nothing here runs any more, such as
            # for native code that keeps the interpreter's lock, it prints where and ends us.
            faulthandler.dump_traceback_later(self._hang_s, exit=True, file=STDERR)
            for _ in range(REPORT_EVERY):
                self._tally.sample(engine)
                pause.wait(SAMPLE_S)
            self.tell()

    def tell(self) -> None:
        """Send the totals as they are now."""
        with self._telling:
            self._tell(self._tally.report())

    def _tell(self, report: Report) -> None:
        if report.frames > self._told.frames:
            self._frames.inc(report.frames - self._told.frames)
        if report.masks > self._told.masks:
            self._masks.inc(report.masks - self._told.masks)
        self._in_flight.set(report.videos_in_flight)
        if report.busy_s is not None:
            self._busy.set(report.busy_s / report.alive_s)
        self._told = report
        self._send_report(self._name, report)


def home_row(outcome: VideoOutcome, task: int) -> pa.Table:
    """HOME_SCHEMA; small whatever the video."""
    whole = outcomes_to_table([outcome])
    rest = None
    if whole.nbytes > LARGEST_HOME_BYTES and outcome.mask_object is not None:
        rest = outcome.mask_object.path
        for name in ("tracks", "mask_object"):
            index = OUTCOMES_SCHEMA.get_field_index(name)
            field = OUTCOMES_SCHEMA.field(name)
            whole = whole.set_column(index, field, pa.nulls(1, field.type))
    home = {name: whole[name] for name in OUTCOMES_SCHEMA.names}
    return pa.table({**home, "task": [task], "rest": [rest]}, schema=HOME_SCHEMA)


def _end_process(why: str) -> None:
    """Not sys.exit: Ray would keep the slot of an actor that leaves politely, and nobody in it."""
    log.critical("%s; this process ends, and its videos run again", why)
    logging.shutdown()
    os._exit(1)
