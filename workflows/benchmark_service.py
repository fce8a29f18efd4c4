"""What the service itself costs a click: everything between a request and its answer but the model.

A real Ray Serve on this machine with the model left out: HTTP, token, checks, the way to the
replica that owns the video and back. Knows nothing of models and datasets.
"""

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from sam2model.rle import encode_mask
from workflows.benchmark_config import BenchConfig, Row
from workflows.ray_session import connected
from workflows.refine_types import (
    WHOLE_VIDEO,
    ObjectMask,
    OpenVideo,
    PreviewRequest,
    RefinedFrame,
    RefinementRequest,
    RefinementResult,
    Refinements,
    RgbArray,
    Span,
)
from workflows.service_auth import TokenConfig, make_token
from workflows.service_config import ServeConfig, load_serve_file, with_tokens
from workflows.service_videos import VideoQuery

HEIGHT, WIDTH = 1080, 1920
CLICKS, WARM_UP = 500, 50
SETTINGS = ("dataset=none", "models.gpus=0", "models.cpus=0.5")


class NoModel:
    """Answers at once, a disc 400 pixels wide: a `Refinements` that computes and reads nothing."""

    def __init__(self) -> None:
        rows, columns = np.ogrid[:HEIGHT, :WIDTH]
        disc = (columns - WIDTH // 2) ** 2 + (rows - HEIGHT // 2) ** 2 < 200**2
        self._counts, self._area_px = encode_mask(disc), int(disc.sum())

    def open(self, video_id: str) -> OpenVideo:
        return OpenVideo(
            video_id=video_id,
            video_uri="",
            revision=1,
            height=HEIGHT,
            width=WIDTH,
            num_frames=1,
            fps=None,
            duration_s=None,
            tracks=(),
        )

    def frame(self, video_id: str, frame_index: int) -> RgbArray:
        return np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    def masks(
        self,
        video_id: str,
        object_ids: Sequence[int] | None = None,
        span: Span = WHOLE_VIDEO,
        at: int | datetime | None = None,
    ) -> Iterator[RefinedFrame]:
        return iter(())

    def preview(self, request: PreviewRequest) -> RefinedFrame:
        mask = ObjectMask(
            object_id=request.prompts[0]["object_id"],
            counts=self._counts,
            area_px=self._area_px,
            box=(760.0, 340.0, 1160.0, 740.0),
            object_score=0.0,
            iou_pred=0.0,
            stability=0.0,
            is_prompt=True,
        )
        return RefinedFrame(
            frame_index=request.frame_index,
            pts_s=0.0,
            height=HEIGHT,
            width=WIDTH,
            masks=(mask,),
            sequence=request.sequence,
        )

    def refine(
        self, request: RefinementRequest, cancelled: Any = None
    ) -> Iterator[RefinedFrame | RefinementResult]:
        return iter(())

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"{name}: nothing is measured of it")


class NoVideos:
    def page(self, wanted: VideoQuery) -> dict[str, Any]:
        return {"videos": [], "next": None}


@dataclass(frozen=True, slots=True)
class NoModelParts:
    """Replicas that compute and read nothing."""

    def refinements(self, config: ServeConfig, *, with_engine: bool) -> Refinements:
        made: Any = NoModel()
        return made  # type: ignore[no-any-return]  # what is not measured is left out

    def videos(self, config: ServeConfig, refinements: Refinements) -> NoVideos:
        return NoVideos()


def measure_service(config: BenchConfig) -> Iterator[Row]:
    """One click after the other through one replica of each kind."""
    del config
    yield through_service(CLICKS, WARM_UP)


def through_service(clicks: int, warm_up: int) -> Row:
    """Milliseconds from a click's request to its mask."""
    from workflows.refine_app import running

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    token, digest = make_token()
    file = load_serve_file(None, SETTINGS, {"port": port})
    file = with_tokens(file, [TokenConfig("bench", ("refine",), digest)])
    with connected(), running(file, NoModelParts()):
        seconds = list(_clicks(port, token, warm_up + clicks))
    milliseconds = np.array(seconds[warm_up:]) * 1e3
    return {
        "clicks": clicks,
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 1),
        "p95_ms": round(float(np.percentile(milliseconds, 95)), 1),
        "fastest_ms": round(float(milliseconds.min()), 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _clicks(port: int, token: str, count: int) -> Iterator[float]:
    """Seconds of each click, over one connection as a page keeps it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    point = {"x": 960.0, "y": 540.0, "positive": True}
    prompt = {"object_id": 1, "frame_index": 0, "points": [point]}
    for number in range(count):
        body = {"base_revision": 1, "frame_index": 0, "prompts": [prompt], "sequence": number}
        began_s = time.perf_counter()
        connection.request("POST", "/v1/videos/v/preview", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        took_s = time.perf_counter() - began_s
        if answer.status != 200:
            raise RuntimeError(f"click {number}: {answer.status}: {text[:200]!r}")
        yield took_s
    connection.close()
