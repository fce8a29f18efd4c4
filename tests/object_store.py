"""An S3 server for tests: moto behind a door that can throttle, fail and lose answers."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from workflows.storage import Storage, StorageConfig

BUCKET = "maskmill-test"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass
class ObjectStore:
    """The server's address, what it was asked, and which of the next answers go wrong.

    throttled: so many coming requests are refused. lost: so many are obeyed, but answered as if
    they had failed. Both count only requests whose method and path contain what `faulty` says.
    """

    endpoint_url: str = ""
    requests: list[str] = field(default_factory=list)
    throttled: int = 0
    lost: int = 0
    faulty: str = ""

    @property
    def config(self) -> StorageConfig:
        return StorageConfig(
            endpoint_url=self.endpoint_url,
            region="us-east-1",
            allow_http=True,
            max_video_bytes_in_memory=1000,
        )

    @property
    def storage(self) -> Storage:
        return Storage(self.config)

    def serve(self, app: Any, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.requests.append(request)
        if self.throttled and self.faulty in request:
            self.throttled -= 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._slow_down(environ, start_response)
        if self.lost and self.faulty in request:
            self.lost -= 1
            list(app(environ, lambda *_: None))
            return self._slow_down(environ, start_response)
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    def _slow_down(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else SLOW_DOWN
        start_response("503 Slow Down", [("Content-Length", str(len(body)))])
        return [body]


@pytest.fixture(scope="session")
def _object_store_server() -> Iterator[ObjectStore]:
    store = ObjectStore()
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server(
        "127.0.0.1", 0, lambda e, s: store.serve(app, e, s), True, 1, MotoRequestHandler
    )
    store.endpoint_url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield store
    server.shutdown()
    thread.join()


@pytest.fixture
def object_store(
    _object_store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    """The server with an empty bucket `maskmill-test`, in good health."""
    import botocore.session

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = _object_store_server
    store.throttled = store.lost = 0
    client = botocore.session.get_session().create_client("s3", endpoint_url=store.endpoint_url)
    client.create_bucket(Bucket=BUCKET)
    store.requests.clear()
    yield store
    store.throttled = store.lost = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])
