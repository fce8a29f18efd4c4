"""The suites of `maskmill bench`: what each is called and what its rows say.

Knows nothing of how anything is measured, nor how rows are shown. Reference programs are imported
by the suites that need them, and nothing is measured that a configuration does not name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workflows.benchmark_clicks import measure_clicks
from workflows.benchmark_config import BenchConfig, Row, SuiteName
from workflows.benchmark_length import measure_length
from workflows.benchmark_machine import measure_products
from workflows.benchmark_objects import measure_objects
from workflows.benchmark_pipeline import measure_pipeline
from workflows.benchmark_queries import measure_queries
from workflows.benchmark_rle import measure_rle
from workflows.benchmark_service import measure_service
from workflows.benchmark_stages import measure_stages
from workflows.benchmark_videos import measure_videos


@dataclass(frozen=True, slots=True)
class Suite:
    """title: one line, formatted with the configuration's keys; measure: rows as they are known."""

    title: str
    measure: Callable[[BenchConfig], Iterator[Row]]


SUITES: dict[SuiteName, Suite] = {
    "products": Suite("Matrix products on {device}, the best of some", measure_products),
    "rle": Suite("Run lengths of one 1080p mask on one core beside pycocotools", measure_rle),
    "stages": Suite("Stages of a frame, {size} in {dtype} on {device}", measure_stages),
    "objects": Suite(
        "Seconds a frame once the memory is full, {size} in {dtype} on {device}; "
        "TFLOP and share_of_products are ours",
        measure_objects,
    ),
    "videos": Suite(
        "Short videos from file to run lengths, {video_model} model: all at once through the "
        "engine, one after the other through transformers",
        measure_videos,
    ),
    "clicks": Suite("A correction in a labelled video, {video_model} model", measure_clicks),
    "length": Suite("Peak memory against length, {video_model} model", measure_length),
    "pipeline": Suite("A bulk job of one-frame videos whose engine does no work", measure_pipeline),
    "queries": Suite("Questions to a dataset on this disk", measure_queries),
    "service": Suite("A click's way through the service on Ray Serve, no model", measure_service),
}
