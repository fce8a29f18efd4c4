"""The service without Ray: its app over workers in this process, on a real port where wanted."""

import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from workflows.refine_types import Refinements
from workflows.service_auth import TokenConfig, Tokens, sha256_of
from workflows.service_config import RequestLimits
from workflows.service_errors import ServiceError, unless_error
from workflows.service_frames import FramesConfig, FrameShelf
from workflows.service_http import make_app
from workflows.service_routes import Backend
from workflows.service_workers import Library, ModelWorker

TOKENS = {"ada": "ada's token, which is long", "bob": "bob's token, which is long"}
READER = "a token that only reads, and is long"
ADMIN = "a token that may do everything, long"


def known_tokens() -> Tokens:
    configs = [TokenConfig(name, ("refine",), sha256_of(t)) for name, t in TOKENS.items()]
    configs.append(TokenConfig("rita", ("read",), sha256_of(READER)))
    configs.append(TokenConfig("root", ("admin",), sha256_of(ADMIN)))
    return Tokens(configs)


def bearer(token: str = TOKENS["ada"]) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


class LocalCaller:
    """Calls a worker of this process, as a deployment's handle calls a replica's."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    async def call(self, method: str, video_id: str | None, *args: Any) -> Any:
        given = args if video_id is None else (video_id, *args)
        return unless_error(await getattr(self.worker, method)(*given))

    async def stream(self, method: str, video_id: str, *args: Any) -> AsyncGenerator[bytes]:
        lines = getattr(self.worker, method)(video_id, *args)
        try:
            async for item in lines:
                yield unless_error(item)
        finally:
            await lines.aclose()


class NoJobs:
    """Jobs of nobody: remembers what was submitted."""

    def __init__(self) -> None:
        self.submitted: dict[str, str] = {}

    def submit(self, requests: str, request_id: str | None) -> dict[str, Any]:
        job_id = f"refine-{request_id or len(self.submitted)}"
        self.submitted.setdefault(job_id, requests)
        return {"job_id": job_id, "status": "PENDING", "message": None, "summary": None}

    def status(self, job_id: str) -> dict[str, Any]:
        if job_id not in self.submitted:
            raise ServiceError(404, "not_found", f"no job {job_id!r}")
        return {"job_id": job_id, "status": "RUNNING", "message": None, "summary": None}


def app_over(
    refinements: Refinements,
    videos: Any,
    limits: RequestLimits | None = None,
    frames: FramesConfig | None = None,
    jobs: Any = None,
) -> FastAPI:
    """The whole app over one library and one model worker."""
    shelf = FrameShelf(refinements.frame, frames or FramesConfig())
    library = Library(refinements, videos, shelf)
    models = ModelWorker(refinements)
    backend = Backend(LocalCaller(library), LocalCaller(models), jobs or NoJobs())
    return make_app(backend, known_tokens(), limits or RequestLimits())


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app on a port of this machine; its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
