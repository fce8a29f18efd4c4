"""An S3 server for tests: moto behind a door that can throttle and lose answers.

It is a process of its own: clients written in Rust may wait for an answer with the interpreter's
lock held, and a server in their process would then never give one.
"""

import json
import logging
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

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


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """The server as tests see it."""

    endpoint_url: str

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

    def misbehave(self, faulty: str, throttled: int = 0, lost: int = 0) -> None:
        """Of the coming requests that contain `faulty`, refuse some, then obey but deny others."""
        self._ask({"faulty": faulty, "throttled": throttled, "lost": lost, "requests": []})

    def behave(self) -> None:
        """No faults from now on; forget the requests so far."""
        self.misbehave("")

    @property
    def requests(self) -> list[str]:
        """As "METHOD /bucket/key", since the last `misbehave` or `behave`."""
        requests: list[str] = self._ask({})["requests"]
        return requests

    @property
    def faults_left(self) -> int:
        state = self._ask({})
        return int(state["throttled"] + state["lost"])

    def _ask(self, changes: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(changes).encode()
        with urllib.request.urlopen(self.endpoint_url + "/_door", body, timeout=30) as answer:
            state: dict[str, Any] = json.load(answer)
            return state


@dataclass
class Door:
    """What stands before moto, in the server's process."""

    app: Any
    state: dict[str, Any] = field(
        default_factory=lambda: {"faulty": "", "throttled": 0, "lost": 0, "requests": []}
    )

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        state, path = self.state, environ["PATH_INFO"]
        if path == "/_door":
            state |= json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            return self._answer("200 OK", json.dumps(state).encode(), start_response)
        request = f"{environ['REQUEST_METHOD']} {path}"
        state["requests"].append(request)
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else SLOW_DOWN
        if state["throttled"] and state["faulty"] in request:
            state["throttled"] -= 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._answer("503 Slow Down", body, start_response)
        if state["lost"] and state["faulty"] in request:
            state["lost"] -= 1
            list(self.app(environ, lambda *_: None))
            return self._answer("503 Slow Down", body, start_response)
        answer: Iterable[bytes] = self.app(environ, start_response)
        return answer

    def _answer(self, status: str, body: bytes, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]


@pytest.fixture(scope="session")
def object_store_server() -> Iterator[ObjectStore]:
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield ObjectStore(f"http://127.0.0.1:{port}")
        server.kill()


@pytest.fixture
def object_store(
    object_store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    """The server with an empty bucket `maskmill-test`, in good health."""
    with empty_bucket(object_store_server, monkeypatch) as store:
        yield store


@contextmanager
def empty_bucket(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A server with the bucket, whose contents are gone afterwards."""
    import botocore.session

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    client = botocore.session.get_session().create_client("s3", endpoint_url=store.endpoint_url)
    client.create_bucket(Bucket=BUCKET)
    store.behave()
    yield store
    store.behave()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])


def main() -> None:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    door = Door(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, door, True, 1, MotoRequestHandler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
