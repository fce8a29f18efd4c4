"""Refinements of many videos over a cluster, by the same pipeline as labelling. Knows no model."""

import time
import uuid
from datetime import UTC, datetime

from workflows.checkpoints import local_checkpoint
from workflows.config import ConfigError, RefineConfig
from workflows.label_engine import EngineFactory, open_engine
from workflows.label_run import run_plan
from workflows.label_summary import Summary
from workflows.progress import OnProgress
from workflows.query import Dataset
from workflows.refine_requests import RefinePlan, read_requests
from workflows.results import DatasetWriter
from workflows.storage import Storage
from workflows.video_labeller import code_version
from workflows.video_refiner import RefiningJob


def refine_requests(
    config: RefineConfig,
    engine_factory: EngineFactory = open_engine,
    on_progress: OnProgress = lambda progress: None,
) -> Summary:
    """Carry out the requests of a file that the dataset does not have yet, each once.

    One that cannot be carried out is a row of `refinements` with a reason. Stops as `label` does.
    Raises NotFound where there is no dataset.
    """
    began, started_at = time.monotonic(), datetime.now(UTC)
    if config.requests is None:
        raise ConfigError("requests is not given; wanted the URI of a file of requests")
    storage = Storage(config.storage)
    requests = read_requests(config.requests, storage)
    Dataset(config.dataset, storage)  # a refinement makes none
    job = RefiningJob(
        config=config,
        run_id=f"refine-{started_at:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}",
        weights_sha256=local_checkpoint(config.model.checkpoint, storage).sha256,
        code_version=code_version(),
    )
    writer = DatasetWriter(storage, config.dataset)
    finished = writer.finished(config.retry_reasons)
    plan = RefinePlan(requests, finished)
    return run_plan(job, plan, writer, finished, engine_factory, on_progress, began, started_at)
