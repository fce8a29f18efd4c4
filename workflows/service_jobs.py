"""Batches of refinements on the cluster, submitted to its job server. Knows nothing of HTTP.

A batch is `maskmill refine` with the service's own dataset, model and storage. Its name is made of
the request's id, so that the same request is submitted once; what becomes of it stands in the
dataset, for the job server forgets.
"""

import sys
import uuid
from typing import Any

from workflows.config import to_tree
from workflows.service_config import ServeConfig
from workflows.service_errors import ServiceError, busy
from workflows.storage import Storage, UriNotAllowed
from workflows.submission import JobServer, Submission, SubmitError, settings

PREFIX = "refine-"


class RefineJobs:
    """A job server, asked for at each batch.

    cluster: address of the cluster that the service runs on, taken where the configuration names
    no other. Jobs run with this process's interpreter, which all machines of a cluster have.
    """

    def __init__(self, config: ServeConfig, cluster: str | None = None) -> None:
        self._config = config
        self._address = config.jobs_address or cluster

    def submit(self, requests: str, request_id: str | None) -> dict[str, Any]:
        """Raises ServiceError for a table that may not be read, or where no job server is."""
        try:
            Storage(self._config.storage).check_allowed(requests)
        except UriNotAllowed as error:
            raise ServiceError(422, "uri_not_allowed", str(error)) from error
        name = PREFIX + (request_id or uuid.uuid4().hex[:12])
        submission = Submission(
            submission_id=name,
            words=self.words(requests),
            python=sys.executable,
        )
        try:
            self._server().submit(submission)
        except SubmitError as error:
            raise busy(str(error), code="no_job_server") from error
        return self.status(name)

    def status(self, job_id: str) -> dict[str, Any]:
        """Raises ServiceError 404 for a job that is none of ours."""
        state = self._server().state(job_id) if job_id.startswith(PREFIX) else None
        if state is None:
            raise ServiceError(404, "not_found", f"no batch {job_id!r}")
        return {
            "job_id": job_id,
            "status": state.status,
            "message": state.message,
            "summary": state.summary,
        }

    def words(self, requests: str) -> tuple[str, ...]:
        """The command that carries out a table of requests; an actor takes what a replica takes."""
        tree, models, engine = to_tree(self._config), self._config.models, self._config.engine
        shared = {key: tree[key] for key in ("dataset", "model", "limits", "storage")}
        compute = {
            "gpus_per_actor": models.gpus,
            "cpus_per_actor": models.cpus,
            "slots_per_actor": engine.slots,
            "frame_batch": engine.frame_batch,
            "cuda_graphs": engine.cuda_graphs,
            "compile_encoder": engine.compile_encoder,
        }
        return ("refine", "--requests", requests, *settings({**shared, "compute": compute}))

    def _server(self) -> JobServer:
        try:
            return JobServer(self._address)
        except SubmitError as error:
            raise busy(str(error), code="no_job_server") from error
