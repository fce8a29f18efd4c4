"""A real video from a click to a corrected label: label, queue, preview, draft, commit, query."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bulk import config_of, settings_of
from refining import click
from serve_cluster import Client, serving_dataset

from jobs import overlay, query
from sam2model import rle
from workflows.label_run import label
from workflows.manifest import write_manifest
from workflows.storage import Storage

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
pytest_plugins = ["local_ray"]

LAST = 11  # of the frames labelled
SQL = """
    SELECT t.object_id, t.revision, t.author, m.counts FROM current_tracks t
    JOIN current_masks m USING (video_id, object_id) WHERE m.frame_index = {frame}
    ORDER BY t.object_id
"""


def test_a_real_video_goes_from_a_click_to_a_corrected_label(
    local_ray: None,
    real_data: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """With the checkpoint that comes with the code, which is no model for real videos."""
    prompts = [click(1, 0, 652.0, 320.0), click(2, 0, 700.0, 200.0)]  # a ball and a man
    row = {"video_id": "juggle", "video_uri": str(real_data("05_default_juggle.mp4"))}
    settings = settings_of(tmp_path, Path("demo"))
    rows = [{**row, "prompts": prompts, "first_frame": 0, "last_frame": LAST}]
    write_manifest(rows, str(settings["manifest"]), Storage())
    summary = label(config_of(settings))
    assert (summary.ok, summary.failed) == (1, 0)
    root = str(settings["output"])

    with serving_dataset(root, Path("demo")) as url:
        ada = Client(url)
        item = ada.get("queue").json()["items"][0]
        object_id, frame = item["object_id"], item["frame_index"]
        before = asked(root, frame)
        x, y = innermost(before[object_id]["counts"])
        beside = click(object_id, frame, x, y, positive=False)
        (shown,) = ada.preview("juggle", 1, beside)["masks"]
        *frames, last = ada.refine("juggle", 1, beside, draft=True)
        assert {line["frame"]["frame_index"] for line in frames} <= set(range(LAST + 1))
        draft_id = last["result"]["draft_id"]
        assert asked(root, frame) == before, "a draft is in no view"
        assert ada.post(f"videos/juggle/drafts/{draft_id}/commit").json()["revision"] == 2

    after = asked(root, frame)
    assert after[object_id] == {"revision": 2, "author": "ada", "counts": shown["counts"]}
    assert shown["counts"] != before[object_id]["counts"]
    (other,) = before.keys() - {object_id}
    assert after[other] == before[other]
    picture = tmp_path / "sheet.png"
    assert overlay.main(["juggle", "--dataset", root, "--output", str(picture)]) == 0
    assert picture.stat().st_size > 10_000


def asked(root: str, frame: int) -> dict[int, dict[str, Any]]:
    """Object → what `maskmill query` says of it."""
    answer = Path(root).with_name("answer.jsonl")
    assert query.main([SQL.format(frame=frame), "--dataset", root, "--output", str(answer)]) == 0
    found = [json.loads(line) for line in answer.read_text().splitlines()]
    return {row.pop("object_id"): row for row in found}


def innermost(counts: str) -> tuple[float, float]:
    """A pixel of the mask: the one in its middle by row and column."""
    rows, columns = rle.decode(counts, 720, 1280).nonzero()
    return float(columns[len(columns) // 2]), float(rows[len(rows) // 2])
