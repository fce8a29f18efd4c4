"""What `maskmill bench` measures. Units and reasons of each key stand in configs/bench.yaml."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from workflows.config import STRICT, AtLeast1

Row = dict[str, float | int | str]  # one line of a table: columns named with their units

SuiteName = Literal[
    "products",
    "rle",
    "stages",
    "objects",
    "videos",
    "clicks",
    "length",
    "pipeline",
    "queries",
    "service",
]
Size = Literal["tiny", "small", "base-plus", "large"]


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What to measure, on which device, at which sizes."""

    __pydantic_config__ = STRICT

    suites: tuple[SuiteName, ...] = (
        "products",
        "rle",
        "stages",
        "objects",
        "videos",
        "clicks",
        "length",
        "pipeline",
        "queries",
        "service",
    )
    device: str = "cpu"
    threads: AtLeast1 | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    size: Size = "tiny"
    objects: tuple[AtLeast1, ...] = (1, 4)
    frames: Annotated[int, Field(ge=9)] = 10
    meta: str | None = None
    meta_compiled: bool = False
    video_model: Literal["demo", "tiny", "small", "base-plus", "large"] = "demo"
    videos: AtLeast1 = 32
    video_frames: AtLeast1 = 16
    lengths: tuple[AtLeast1, ...] = (200, 2_000)
    pipeline_videos: AtLeast1 = 200
    query_rows: tuple[AtLeast1, ...] = (1_000_000,)
    results: str = "bench-results"
