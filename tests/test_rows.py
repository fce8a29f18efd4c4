"""Rows survive Arrow and Parquet, and a labelling has one identity wherever it is computed."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sam2model.prompts import Prompt, PromptError
from workflows.rows import (
    MANIFEST_SCHEMA,
    FailureReason,
    MaskObject,
    PromptRow,
    Source,
    Status,
    Track,
    VideoOutcome,
    VideoRequest,
    config_hash,
    decode_prompts,
    encode_prompt,
    fingerprint,
    outcomes_from_table,
    outcomes_to_table,
    tracks_from_table,
    tracks_to_table,
)

CONFIG = {"semantics": "labelling", "precision": "bf16", "max_conditioning_frames": None}


def click(x: float = 10.1, y: float = 20.2, **changes: Any) -> PromptRow:
    row: Any = {
        "object_id": 1,
        "frame_index": 0,
        "points": [{"x": x, "y": y, "positive": True}],
        "box": None,
        "mask": None,
        "category": "cup",
    }
    return {**row, **changes}


def through_parquet(rows: list[PromptRow], folder: Path) -> list[PromptRow]:
    request = {"video_id": "v", "video_uri": "v.mp4", "prompts": rows}
    pq.write_table(pa.Table.from_pylist([request], schema=MANIFEST_SCHEMA), folder / "m.parquet")
    (row,) = pq.read_table(folder / "m.parquet").to_pylist()
    return list(VideoRequest.from_row(row).prompts)


def test_a_fingerprint_survives_parquet_and_its_float32_coordinates(tmp_path: Path) -> None:
    rows = [
        click(10.1, 1e-40),
        click(-0.0, 1 / 3, frame_index=3, box={"x0": 0.1, "y0": 0.2, "x1": 7.7, "y1": 1e4}),
        click(object_id=2, points=[], mask={"size": [2, 3], "counts": "06"}, category=None),
    ]
    read = through_parquet(rows, tmp_path)
    assert read[0]["points"] != rows[0]["points"], "float32 must have rounded something"
    assert fingerprint(read, "abc", CONFIG) == fingerprint(rows, "abc", CONFIG)


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from workflows.rows import fingerprint;"
        "print(fingerprint([{'object_id': 1, 'frame_index': 0, 'category': 'cup',"
        " 'points': [{'positive': True, 'y': 20.2, 'x': 10.1}]}], 'abc',"
        f" dict(reversed({CONFIG!r}.items()))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint([click()], "abc", CONFIG)


def test_a_fingerprint_ignores_the_order_of_prompts_but_not_of_clicks() -> None:
    first, second = click(), click(object_id=2)
    assert fingerprint([first, second], "a", CONFIG) == fingerprint([second, first], "a", CONFIG)
    there: Any = [{"x": 1, "y": 1, "positive": True}, {"x": 2, "y": 2, "positive": False}]
    forward, backward = click(points=there), click(points=there[::-1])
    assert fingerprint([forward], "a", CONFIG) != fingerprint([backward], "a", CONFIG)


@pytest.mark.parametrize(
    "other",
    [
        fingerprint([click(10.2)], "a", CONFIG),
        fingerprint([click(points=[{"x": 10.1, "y": 20.2, "positive": False}])], "a", CONFIG),
        fingerprint([click(frame_index=1)], "a", CONFIG),
        fingerprint([click(object_id=2)], "a", CONFIG),
        fingerprint([click(category="mug")], "a", CONFIG),
        fingerprint([click(box={"x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0})], "a", CONFIG),
        fingerprint([click(), click(object_id=2)], "a", CONFIG),
        fingerprint([click()], "b", CONFIG),
        fingerprint([click()], "a", {**CONFIG, "precision": "fp32"}),
        fingerprint([click()], "a", CONFIG, 2),
        fingerprint([click()], "a", CONFIG, span=(0, None)),
        fingerprint([click()], "a", CONFIG, span=(None, 0)),
    ],
)
def test_a_fingerprint_changes_with_everything_that_changes_the_labels(other: str) -> None:
    assert other != fingerprint([click()], "a", CONFIG)


def test_a_fingerprint_refuses_a_config_that_json_cannot_spell() -> None:
    with pytest.raises(ValueError):
        fingerprint([click()], "a", {"threshold": float("nan")})
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})


def test_prompts_of_every_kind_survive_the_way_to_rows_and_back(tmp_path: Path) -> None:
    mask = np.zeros((5, 4), dtype=bool)
    mask[1:3, 2] = True
    prompts = [
        Prompt(1, 0, points_px=((1.5, 2.0), (3.0, 4.0)), positive=(True, False)),
        Prompt(2, 7, points_px=((0.0, 0.0),), positive=(True,), box_xyxy_px=(0, 0, 2.5, 3)),
        Prompt(3, 9, mask=mask),
    ]
    read = decode_prompts(through_parquet([encode_prompt(p, "cup") for p in prompts], tmp_path))
    for prompt, back in zip(prompts, read, strict=True):
        assert (back.object_id, back.frame_index) == (prompt.object_id, prompt.frame_index)
        assert (back.points_px, back.positive) == (prompt.points_px, prompt.positive)
        assert back.box_xyxy_px == prompt.box_xyxy_px
    assert read[2].mask is not None
    np.testing.assert_array_equal(read[2].mask, mask)
    assert read[0].mask is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (click(points=[]), "empty"),
        (click(points=None), "empty"),
        (click(points=[], mask={"size": [2, 2], "counts": "06"}), "object 1 on frame 0"),
        (click(points=[], mask={"size": [2], "counts": "04"}), "object 1 on frame 0"),
        (click(points=[{"x": None, "y": 1.0, "positive": True}]), "object 1 on frame 0"),
        (click(object_id=None), "on frame 0"),
        (click(box={"x0": 5.0, "y0": 0.0, "x1": 1.0, "y1": 1.0}), "wanted x0 < x1"),
    ],
)
def test_a_bad_prompt_row_is_refused_with_its_place(row: PromptRow, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        decode_prompts([row])


def test_outcomes_survive_the_way_from_actor_to_driver() -> None:
    track = Track(
        video_id="v",
        object_id=1,
        source=Source.BULK,
        prompts=(click(1.5, 2.0),),
        first_frame=0,
        last_frame=3,
        frames_present=2,
        doubt=0.5,
        flags=({"frame_index": 1, "kind": "jump", "doubt": 0.5},),
    )
    common: dict[str, Any] = {
        "video_uri": "s3://b/v.mp4",
        "fingerprint": "f",
        "run_id": "r",
        "finished_at": datetime(2026, 1, 2, tzinfo=UTC),
    }
    outcomes = [
        VideoOutcome(
            video_id="v",
            status=Status.OK,
            seconds_by_stage={"decode": 1.5},
            tracks=(track,),
            mask_object=MaskObject(path="p", size_bytes=1, num_rows=2, stats="{}"),
            **common,
        ),
        VideoOutcome(
            video_id="w",
            status=Status.FAILED,
            reason=FailureReason.NO_FRAMES,
            detail="0 frames",
            **common,
        ),
    ]
    assert outcomes_from_table(outcomes_to_table(outcomes)) == outcomes
    assert tracks_from_table(tracks_to_table([track])) == [track]


def test_an_outcome_that_contradicts_itself_is_refused() -> None:
    common: dict[str, Any] = {
        "video_id": "v",
        "video_uri": "v.mp4",
        "fingerprint": "f",
        "run_id": "r",
        "finished_at": datetime(2026, 1, 2, tzinfo=UTC),
    }
    masks = MaskObject(path="p", size_bytes=1, num_rows=2, stats="{}")
    with pytest.raises(ValueError, match="reason"):
        VideoOutcome(status=Status.FAILED, **common)
    with pytest.raises(ValueError, match="reason"):
        VideoOutcome(status=Status.OK, reason=FailureReason.TIMEOUT, **common)
    with pytest.raises(ValueError, match="neither"):
        VideoOutcome(
            status=Status.FAILED, reason=FailureReason.TIMEOUT, mask_object=masks, **common
        )
    with pytest.raises(ValueError, match="without tracks"):
        VideoOutcome(status=Status.OK, mask_object=masks, **common)


def test_a_manifest_row_needs_only_its_required_columns() -> None:
    request = VideoRequest.from_row({"video_id": "v", "video_uri": "v.mp4", "prompts": [click()]})
    assert request.prompts == (click(),)
    assert (request.first_frame, request.priority, request.tags) == (None, None, {})
    tagged = VideoRequest.from_row(
        {"video_id": "v", "video_uri": "v.mp4", "prompts": None, "tags": [("a", "b")]}
    )
    assert (tagged.prompts, tagged.tags) == ((), {"a": "b"})
