"""The HTTP service and the page, as a FastAPI app made by one function. Knows no model and no Ray.

Thin: it checks the token, the form and the size of a request, passes it to the replica that works
(`Caller`) and hands on the bytes that come back. What a replica sends is JSON already. Everything
but the page and /healthz is closed to whoever has no token, also routes that forgot to ask.
"""

import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workflows.service_auth import Tokens
from workflows.service_bodies import ErrorAnswer, HealthAnswer
from workflows.service_config import RequestLimits
from workflows.service_errors import ServiceError, internal
from workflows.service_json import encode
from workflows.service_metrics import CONTENT_TYPE, Metrics
from workflows.service_routes import (
    Backend,
    Service,
    job_routes,
    needs,
    reading_routes,
    refining_routes,
)

PAGE_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
ERROR_STATUSES = (401, 403, 404, 409, 413, 422, 503)
OPEN_PATHS = ("/", "/healthz")
OPEN_FOLDER = "/web/"


def make_app(
    backend: Backend, tokens: Tokens, limits: RequestLimits, replica: str = "local"
) -> FastAPI:
    """The whole service. replica: names this process in its metrics."""
    app = FastAPI(
        title="maskmill refinement",
        version="1",
        summary="Look at labels, correct them with clicks, keep every revision.",
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # published below, behind a token like everything else
        responses={status: {"model": ErrorAnswer} for status in ERROR_STATUSES},
    )
    service = Service(backend, limits, Metrics(replica))
    for routes in (reading_routes, refining_routes, job_routes):
        app.include_router(routes(service))
    _add_page(app)
    _add_operations(app, service)
    _answer_errors_as_json(app)
    # the last one added sees a request first
    app.add_middleware(LimitedBody, max_bytes=limits.max_body_bytes)
    app.add_middleware(Guarded, tokens=tokens)
    app.add_middleware(Measured, metrics=service.metrics)
    return app


def _add_page(app: FastAPI) -> None:
    """The page and its files, which are no secret: read once, from the package."""
    folder = files("workflows") / "web"
    contents = {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if "." + entry.name.rpartition(".")[2] in PAGE_TYPES
    }
    page = (folder / "index.html").read_bytes()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html", headers=PAGE_HEADERS)

    @app.get("/web/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in contents:
            raise ServiceError(404, "not_found", f"the page has no file {name!r}")
        suffix = "." + name.rpartition(".")[2]
        return Response(contents[name], media_type=PAGE_TYPES[suffix], headers=PAGE_HEADERS)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operation"], response_model=HealthAnswer)
    async def healthz() -> dict[str, str]:
        """Whether this ingress answers; needs no token."""
        return {"status": "ok"}

    @app.get(
        "/metrics",
        tags=["operation"],
        dependencies=[needs("read")],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus text"}},
    )
    async def metrics() -> Response:
        """Counts of this ingress replica."""
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/v1/openapi.json", include_in_schema=False, dependencies=[needs("read")])
    async def openapi() -> Any:
        return _corrected(app.openapi())


def _corrected(schema: Any) -> Any:
    """FastAPI takes answers that are bytes for text, and errors for what the answer would be."""
    for methods in schema["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                contents = answer.get("content", {})
                for content in contents.values():
                    if "$ref" in content.get("schema", {}):
                        content["schema"].pop("type", None)
                if int(status) >= 400 and contents:
                    answer["content"] = {"application/json": next(iter(contents.values()))}
    return schema


def _answer_errors_as_json(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [
            {"where": ".".join(str(step) for step in fault["loc"]), "fault": fault["msg"]}
            for fault in error.errors()
        ]
        said = "; ".join(f"{fault['where']}: {fault['fault']}" for fault in faults[:5])
        return answer_of(ServiceError(422, "invalid", said, {"faults": faults[:100]}))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "invalid")
        status = 422 if error.status_code == 400 else error.status_code  # text that is no UTF-8
        message = f"{request.method} {request.url.path}: {error.detail}"
        answer = answer_of(ServiceError(status, code, message))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ServiceError)
    async def known(request: Request, error: ServiceError) -> Response:
        return answer_of(error)

    @app.exception_handler(Exception)
    async def other(request: Request, error: Exception) -> Response:
        return answer_of(internal(error))


def answer_of(error: ServiceError) -> Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(encode(error.to_json()), error.status, headers, "application/json")


class Measured:
    """Counts every request once its answer has begun."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began_s = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                took_s = time.perf_counter() - began_s
                self._metrics.request(scope["method"], route, message["status"], took_s)
            await send(message)

        await self._app(scope, receive, counted)


class Guarded:
    """Nobody without a known token comes further, but to the page and /healthz."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            given = dict(scope["headers"]).get(b"authorization")
            try:
                person = self._tokens.caller(given.decode("latin-1") if given else None)
            except ServiceError as error:
                return await answer_of(error)(scope, receive, send)
            scope.setdefault("state", {})["person"] = person
        elif scope["type"] == "websocket":
            return  # there are none
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


class LimitedBody:
    """Reads a body before anything is done with it, and refuses one that is too long."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return await self._app(scope, receive, send)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            return await answer_of(self._too_long(int(announced)))(scope, receive, send)
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # gone before it was all said
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return await answer_of(self._too_long(len(body)))(scope, receive, send)
            if not message.get("more_body", False):
                break
        await self._app(scope, _replayed(body, receive), send)

    def _too_long(self, size_bytes: int) -> ServiceError:
        return ServiceError(
            413,
            "too_large",
            f"a body of {size_bytes} bytes or more; wanted at most {self._max_bytes}",
            {"limit": self._max_bytes},
        )


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """The body once, then whatever comes after it, such as that the caller has left."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
