"""The service on a real Ray Serve, over a dataset on disk, for tests that speak to it by HTTP."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from serving import ADMIN, READER, TOKENS, bearer

from workflows.config import to_tree
from workflows.prompt_rows import PromptRow
from workflows.refine_app import Parts, running
from workflows.service_auth import TokenConfig, sha256_of
from workflows.service_config import load_serve_file, with_tokens

SETTINGS = (
    *("model.dtype=float32", "models.gpus=0", "models.cpus=0.5", "library.cpus=0.25"),
    *("ingress.cpus=0.25", "engine.slots=1", "engine.frame_batch=1", "sessions.warm_frames=0"),
    *("models.drain_s=5.0", "library.drain_s=5.0", "ingress.drain_s=5.0"),
)


class Client:
    """Somebody with a token, who speaks to the service."""

    def __init__(self, url: str, token: str = TOKENS["ada"]) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.headers.update(bearer(token))

    def get(self, path: str, **options: Any) -> requests.Response:
        return self._session.get(f"{self.url}/v1/{path}", timeout=120, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return self._session.post(f"{self.url}/v1/{path}", json=body, timeout=120, **options)

    def revision(self, video_id: str) -> int:
        return int(self.get(f"videos/{video_id}").json()["revision"])

    def refine(self, video_id: str, base: int, *prompts: PromptRow, **more: Any) -> list[Any]:
        """The lines of an answer of 200."""
        response = self.post(f"videos/{video_id}/refinements", refinement(base, *prompts, **more))
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def preview(self, video_id: str, base: int, prompt: PromptRow) -> Any:
        body = {"base_revision": base, "frame_index": prompt["frame_index"], "prompts": [prompt]}
        response = self.post(f"videos/{video_id}/preview", body)
        assert response.status_code == 200, response.text
        return response.json()


def refinement(base: int, *prompts: PromptRow, **more: Any) -> dict[str, Any]:
    return {"base_revision": base, "prompts": list(prompts), **more}


@contextmanager
def serving_dataset(
    dataset: str, checkpoint: Path, settings: Sequence[str] = (), parts: Parts | None = None
) -> Iterator[str]:
    """The URL of the service while the block runs, on the Ray of this process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    given = [f"dataset={dataset}", f"model.checkpoint={checkpoint}", *SETTINGS, *settings]
    file = load_serve_file(None, given, {"port": port})
    scopes: dict[str, Any] = {**dict.fromkeys(TOKENS.values(), "refine"), READER: "read"}
    scopes[ADMIN] = "admin"
    names = {**{token: name for name, token in TOKENS.items()}, READER: "rita", ADMIN: "root"}
    tokens = [TokenConfig(names[t], (scope,), sha256_of(t)) for t, scope in scopes.items()]
    file = with_tokens(file, tokens)
    assert to_tree(file.config)["dataset"] == dataset
    with running(file, parts) as url:
        yield url


def replica_pids(deployment: str) -> list[int]:
    """Of the processes of a deployment that run now, on the Ray of this process."""
    import ray._private.worker as worker

    (raylet,) = worker._global_node.all_processes["raylet"]
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    title = f"ray::ServeReplica:maskmill:{deployment}"
    return [
        int(pid)
        for pid, parent, *args in rows
        if int(parent) == raylet.process.pid and args and args[0].startswith(title)
    ]


def kill_replicas(deployment: str, only: int | None = None) -> list[int]:
    """All (or only some) at once, without a warning, as a machine that goes away does."""
    pids = replica_pids(deployment)[:only]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def until_replaced(deployment: str, killed: Sequence[int], limit_s: float = 300.0) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if set(replica_pids(deployment)) - set(killed):
            return
        time.sleep(0.2)
    raise AssertionError(f"no replica of {deployment} came back")
