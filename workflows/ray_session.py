"""A Ray to work on, and how a run on it is stopped. Knows nothing of labelling."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import ray

from workflows.config import ComputeConfig, ConfigError

log = logging.getLogger(__name__)


class Stopped(SystemExit):
    """Somebody wants the run to end now; what is finished is to be kept."""


@contextmanager
def connected() -> Iterator[None]:
    """Use the Ray of this process, else the cluster at RAY_ADDRESS, else one on this machine.

    Whoever connects disconnects: Ray tells this process of the cluster's troubles on standard
    output as long as they are connected, and there a job's last line is its result.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # ours are shown
    # It tells at every start that a Ray of our own is safe.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(compute: ComputeConfig) -> None:
    """Raise ConfigError where no machine could ever hold one actor.

    A cluster that scales may have no machine yet: it is warned about only.
    """
    wanted = {"GPU": compute.gpus_per_actor, "CPU": compute.cpus_per_actor}
    known = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in known if node["Alive"]]
    if any(all(node.get(kind, 0) >= least for kind, least in wanted.items()) for node in nodes):
        return
    largest = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
    message = (
        f"an actor wants {compute.gpus_per_actor:g} GPUs and {compute.cpus_per_actor:g} CPUs on "
        f"one machine (compute.gpus_per_actor, compute.cpus_per_actor); the largest has "
        f"{largest['GPU']:g} GPUs and {largest['CPU']:g} CPUs"
    )
    if len(nodes) == 1 and not os.environ.get("RAY_ADDRESS"):
        raise ConfigError("; ".join([message, *_ways_out(wanted, largest)]))
    log.warning("%s; waiting for one that has more", message)


def _ways_out(wanted: dict[str, float], largest: dict[str, float]) -> Iterator[str]:
    if wanted["GPU"] > largest["GPU"]:
        yield "compute.gpus_per_actor=0 labels on CPUs"
    if wanted["CPU"] > largest["CPU"]:
        yield f"compute.cpus_per_actor={largest['CPU']:g} would fit"


@contextmanager
def stops_on_signal(keep: Callable[[], None]) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into Stopped, raised in the main thread; a second one ends at once.

    keep: called in a thread of its own, for what may not wait until the main thread has left a
    pool of actors: a job server kills a few seconds after it asked. It has ended when the block is
    left. To be entered when Ray is connected, for connecting installs a handler of Ray's own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    keeping = threading.Thread(target=keep, name="keep")

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        keeping.start()
        raise Stopped(f"signal {number}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if keeping.ident is not None:
            keeping.join()
        for number, handler in before.items():
            signal.signal(number, handler)
