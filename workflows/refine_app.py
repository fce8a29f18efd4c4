"""The refinement service on Ray Serve: its three deployments, and how a request finds its replica.

The only module that imports ray.serve. The ingress is thin and knows HTTP; the library reads, needs
no GPU and scales by itself; a models replica owns one engine. All calls about a video go to the
same replica while there is one, so that its caches are warm; any other could answer them.

Serve's own port lets everybody in: who may do what is service_http.py's matter.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application
from ray.serve.config import (
    AutoscalingConfig,
    BackpressureConfig,
    HTTPOptions,
    RequestRouterConfig,
)
from ray.serve.context import _get_internal_replica_context
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import ServeDeploySchema

from workflows.config import ConfigError
from workflows.refine_types import Refinements
from workflows.service_auth import Tokens
from workflows.service_config import (
    ReplicasConfig,
    ServeConfig,
    ServeFile,
    check_keys,
    serve_config,
)
from workflows.service_errors import (
    RETRY_AFTER_S,
    ServiceError,
    busy,
    internal,
    unless_error,
)
from workflows.service_frames import FrameShelf
from workflows.service_http import make_app
from workflows.service_jobs import RefineJobs
from workflows.service_routes import Backend
from workflows.service_videos import VideoPages
from workflows.service_workers import Library, ModelWorker

log = logging.getLogger(__name__)

Handle = DeploymentHandle[Any]

CONSISTENT_HASH = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 30.0
DEVICE_ANSWER_S = 20.0


class Parts(Protocol):
    """What replicas are made of; service_parts.py has the real ones, tests put other engines in."""

    def refinements(self, config: ServeConfig, *, with_engine: bool) -> Refinements: ...

    def videos(self, config: ServeConfig, refinements: Refinements) -> VideoPages: ...


def dataset_parts() -> Parts:
    """Loaded where they are needed: an ingress does without torch."""
    from workflows.service_parts import DatasetParts

    return DatasetParts()


class LibraryReplica(Library):
    """Reads for everybody."""

    def __init__(self, config: ServeConfig, parts: Parts | None) -> None:
        parts = parts or dataset_parts()
        refinements = parts.refinements(config, with_engine=False)
        frames = FrameShelf(refinements.frame, config.frames)
        super().__init__(refinements, parts.videos(config, refinements), frames)

    def __del__(self) -> None:
        self.close()


class ModelReplica(ModelWorker):
    """Owns an engine. Unhealthy, and so replaced, when its device completes no work any more."""

    def __init__(self, config: ServeConfig, parts: Parts | None) -> None:
        parts = parts or dataset_parts()
        super().__init__(parts.refinements(config, with_engine=True))

    async def check_health(self) -> None:
        from workflows.label_engine import device_answers

        if not await asyncio.to_thread(device_answers, DEVICE_ANSWER_S):
            raise RuntimeError(f"the device completed nothing in {DEVICE_ANSWER_S:g} s")

    def __del__(self) -> None:
        self.close()


class IngressReplica:
    """HTTP and the page."""

    def __init__(self, config: ServeConfig, library: Handle, models: Handle) -> None:
        self._config = config
        cluster = ray.get_runtime_context().gcs_address
        jobs = RefineJobs(config, cluster)
        self._backend = Backend(ReplicaCaller(library), ReplicaCaller(models), jobs)

    def __serve_build_asgi_app__(self) -> Any:
        context = _get_internal_replica_context()  # type: ignore[no-untyped-call]
        replica = context.replica_id.unique_id if context is not None else "local"
        tokens = Tokens(self._config.tokens)
        return make_app(self._backend, tokens, self._config.requests, replica)


class ReplicaCaller:
    """Calls methods of one deployment; a video's calls go to the same replica."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def call(self, method: str, video_id: str | None, *args: Any) -> Any:
        handle = self._handle.options(method_name=method)
        if video_id is not None:
            handle, args = handle.options(session_id=video_id), (video_id, *args)
        try:
            return unless_error(await handle.remote(*args))
        except (RayError, RayServeException) as error:
            raise _as_service_error(error, method) from error

    async def stream(self, method: str, video_id: str, *args: Any) -> AsyncGenerator[bytes]:
        handle = self._handle.options(method_name=method, session_id=video_id, stream=True)
        response: DeploymentResponseGenerator[bytes] = handle.remote(video_id, *args)  # type: ignore[assignment]  # stream=True gives one
        try:
            async for item in response:
                yield unless_error(item)
        except (RayError, RayServeException) as error:
            raise _as_service_error(error, method) from error
        finally:
            # Of a call that no replica took, Ray's cancel raises again what its caller was told.
            with suppress(RayError, RayServeException):
                response.cancel()  # type: ignore[no-untyped-call]


def _as_service_error(error: Exception, method: str) -> ServiceError:
    """What became of a call that was not answered."""
    if isinstance(error, BackPressureError):
        return busy("too much is waiting already", error.retry_after_s or RETRY_AFTER_S)
    if isinstance(error, RayTaskError):
        return internal(error.cause)
    log.warning("%s: no replica: %s", method, error)
    return busy("the replica went away; another takes over", code="replica_lost")


def build(args: Mapping[str, Any]) -> Application:
    """The application of a configuration, for `serve run` and `serve deploy`."""
    return application(serve_config(args))


def application(config: ServeConfig, parts: Parts | None = None) -> Application:
    """parts: other than a dataset's. Raises ConfigError before anything is started."""
    Tokens(config.tokens)
    library = _deployment(LibraryReplica, "library", config.library, by_video=True)
    models = _deployment(ModelReplica, "models", config.models, by_video=True)
    ingress = _deployment(serve.ingress()(IngressReplica), "ingress", config.ingress)
    application: Application = ingress.bind(
        config, library.bind(config, parts), models.bind(config, parts)
    )
    return application


def check_file(file: ServeFile) -> None:
    """Raise ConfigError for a key that Ray Serve would ignore without a word."""
    check_keys(ServeDeploySchema, file.deploy, file.where)
    (described,) = file.deploy["applications"]
    if "deployments" in described:
        raise ConfigError(
            f"{file.where}: applications.0.deployments: replicas and queues are set in args"
        )


@contextmanager
def running(file: ServeFile, parts: Parts | None = None) -> Iterator[str]:
    """Serve on the Ray that this process is connected to; the URL.

    At the end what is being answered is answered first.
    """
    check_file(file)
    app = application(file.config, parts)
    (described,) = file.deploy["applications"]
    http = HTTPOptions(**{"host": "127.0.0.1", "port": 8000, **file.deploy["http_options"]})
    serve.start(http_options=http)
    try:
        serve.run(app, name=described["name"], route_prefix=described["route_prefix"])
        yield f"http://{http.host}:{http.port}{described['route_prefix'].rstrip('/')}"
        serve.delete(described["name"])
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _deployment(
    replica: type[Any], name: str, config: ReplicasConfig, by_video: bool = False
) -> Any:
    routing: dict[str, Any] = {}
    if by_video:
        routing["request_router_config"] = RequestRouterConfig(
            request_router_class=CONSISTENT_HASH,  # type: ignore[arg-type]  # a path is as good
            # no other replica steps in when one is full: its caches would begin from nothing
            request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 0},
        )
    return serve.deployment(
        replica,
        name=name,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        max_ongoing_requests=config.ongoing,
        max_queued_requests=config.queued,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min,
            max_replicas=config.max,
            target_ongoing_requests=config.target_ongoing,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
        ),
        graceful_shutdown_timeout_s=config.drain_s,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        **routing,
    )
