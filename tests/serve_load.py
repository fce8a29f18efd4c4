"""Many people at once: what they were told, and whether the dataset says the same."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from refining import FRAMES, click
from serve_cluster import Client

from workflows.query import Dataset

READS = ("masks?frames=0:3", "frames/2.jpg", "", "revisions")


@dataclass
class Heard:
    """All that the clients were told. done: request id → (video, revision, frame → counts)."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    done: dict[str, tuple[str, int, dict[int, str]]] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)
    previews: dict[tuple[str, int, int], set[str]] = field(default_factory=dict)
    broken_streams: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, response: requests.Response) -> int:
        with self.lock:
            self.statuses[what, response.status_code] += 1
            if response.status_code == 503 and "retry-after" not in response.headers:
                self.faults.append(f"{what}: 503 without Retry-After: {response.text[:200]}")
            if response.status_code not in (200, 409, 503):
                self.faults.append(f"{what}: {response.status_code}: {response.text[:200]}")
        return response.status_code


def load(
    url: str,
    videos: Sequence[str],
    clients: int,
    seconds: float,
    halfway: Callable[[], None] = lambda: None,
) -> Heard:
    """Let so many people work for so long; `halfway` is called in the midst of it."""
    heard = Heard()
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_work, args=(url, videos, number, end, heard))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    halfway()
    for thread in threads:
        thread.join()
    return heard


def _work(url: str, videos: Sequence[str], number: int, end: float, heard: Heard) -> None:
    rng = random.Random(number)
    client = Client(url)
    video_id = videos[number % len(videos)]
    turn = 0
    while time.monotonic() < end:
        turn += 1
        what = rng.choice(("read", "preview", "preview", "refine"))
        try:
            if what == "read":
                path = f"videos/{video_id}/{rng.choice(READS)}".rstrip("/")
                heard.note(what, client.get(path))
            elif what == "preview":
                _preview(client, video_id, rng, heard)
            else:
                _refine(client, video_id, f"c{number}-{turn}", rng, end, heard)
        except Exception as error:  # crosses to the test: whatever it is, it is a fault
            with heard.lock:
                heard.faults.append(f"{what}: {type(error).__name__}: {error}")


def _preview(client: Client, video_id: str, rng: random.Random, heard: Heard) -> None:
    frame, x = rng.randrange(FRAMES), rng.choice((20, 60, 100))
    prompt = click(1, frame, float(x))
    # of the labels as they were at first, so that every answer to it must be the same
    body = {"base_revision": 1, "frame_index": frame, "prompts": [prompt]}
    response = client.post(f"videos/{video_id}/preview", body)
    if heard.note("preview", response) == 200:
        counts = response.json()["masks"][0]["counts"]
        with heard.lock:
            heard.previews.setdefault((video_id, frame, x), set()).add(counts)


def _refine(
    client: Client, video_id: str, request_id: str, rng: random.Random, end: float, heard: Heard
) -> None:
    """Until it is committed or refused: what broke is sent again under the same name."""
    frame, x = rng.randrange(FRAMES), rng.choice((20, 60, 100))
    with heard.lock:
        heard.sent.add(request_id)
    while True:
        video = client.get(f"videos/{video_id}")
        if heard.note("read", video) == 200:
            body = {
                "base_revision": video.json()["revision"],
                "prompts": [click(rng.choice((1, 2)), frame, float(x))],
                "span": {"first_frame": max(frame - 3, 0), "last_frame": frame + 3},
                "request_id": request_id,
            }
            response = client.post(f"videos/{video_id}/refinements", body)
            status = heard.note("refine", response)
            if status == 200 and _finished(response, video_id, request_id, heard):
                return
        if time.monotonic() > end + 300:
            with heard.lock:
                heard.faults.append(f"{request_id}: never came to an end")
            return
        time.sleep(rng.uniform(0.05, 0.4))


def _finished(response: requests.Response, video_id: str, request_id: str, heard: Heard) -> bool:
    import json

    lines: list[dict[str, Any]] = [json.loads(line) for line in response.text.splitlines()]
    if "error" in lines[-1]:
        with heard.lock:
            heard.broken_streams += 1
            if lines[-1]["error"]["code"] not in ("replica_lost", "busy", "conflict", "timeout"):
                heard.faults.append(f"refine: {lines[-1]}")
        return False
    masks = {
        line["frame"]["frame_index"]: line["frame"]["masks"][0]["counts"]
        for line in lines[:-1]
        if line["frame"]["masks"]
    }
    with heard.lock:
        heard.done[request_id] = (video_id, lines[-1]["result"]["revision"], masks)
    return True


def check(folder: Path, heard: Heard) -> None:
    """No revision lost or doubled, no mask other than was shown, no answer but clean ones."""
    assert not heard.faults, "\n".join(heard.faults[:20])
    dataset = Dataset(str(folder / "labels"))
    query = """
        SELECT video_id, revision, object_id, refinement.request_id AS request_id
        FROM tracks WHERE source = 'refine' ORDER BY ALL
    """
    rows = dataset.sql(query).to_pylist()
    by_request: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        if row["request_id"] in heard.sent:
            place = (row["video_id"], row["revision"])
            by_request.setdefault(row["request_id"], []).append(place)
    assert {r: places for r, places in by_request.items() if len(places) > 1} == {}, "doubled"
    for request_id, (video_id, revision, masks) in heard.done.items():
        assert by_request.get(request_id) == [(video_id, revision)], f"lost: {request_id}"
        object_id = next(r["object_id"] for r in rows if r["request_id"] == request_id)
        stored = dataset.masks(video_id, [object_id], at=revision)
        found = dict(
            zip(stored["frame_index"].to_pylist(), stored["counts"].to_pylist(), strict=True)
        )
        assert {t: found[t] for t in masks} == masks, f"{request_id}: masks differ"
    for video_id in {video_id for video_id, _, _ in heard.done.values()}:
        revisions = dataset.sql(
            "SELECT DISTINCT revision FROM tracks WHERE video_id = ? ORDER BY 1", [video_id]
        )["revision"].to_pylist()
        assert revisions == list(range(1, len(revisions) + 1)), "revisions follow one another"
    answered_twice = {key: found for key, found in heard.previews.items() if len(found) > 1}
    assert answered_twice == {}, "one click, one answer, whatever replica gives it"
