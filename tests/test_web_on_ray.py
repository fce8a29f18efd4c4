"""The page, Ray Serve, the engine and the dataset together, as an annotator has them."""

from pathlib import Path
from typing import Any

import pytest
from annotator import Annotator
from checkpoints import small_checkpoint
from refining import FRAMES, click, label_video, labels
from serve_cluster import serving_dataset
from serving import TOKENS

from workflows.query import Dataset
from workflows.rows import Review

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
pytest_plugins = ["browser", "local_ray"]


def test_what_an_annotator_saw_is_what_the_dataset_holds(
    chromium: Any, local_ray: None, tmp_path: Path
) -> None:
    checkpoint = small_checkpoint(tmp_path)
    label_video(tmp_path, checkpoint, [click(1, 4, 20.0), click(2, 0, 100.0)])
    before = labels(tmp_path)
    with serving_dataset(str(tmp_path / "labels"), checkpoint) as url:
        ada = Annotator(chromium, url, TOKENS["ada"])
        ada.open("v", 12)
        ada.click(80, 50)
        ada.until("desk => desk.open.masks.preview.size === 1 && !desk.open.preview")
        seen = ada.desk("desk => desk.open.masks.shown(1, 12)[0].counts")
        assert seen != before[12]
        ada.press("p")
        ada.until("desk => desk.open.draft && !desk.open.propagating")
        ada.press("Control+s")
        ada.until("desk => desk.open.isSaved && desk.open.video.revision === 2")
        assert labels(tmp_path)[12] == seen
        shown = ada.desk(
            f"desk => Array.from({{length: {FRAMES}}}, (_, k) => "
            "desk.open.masks.shown(1, k)[0].counts)"
        )
        assert shown == [labels(tmp_path)[k] for k in range(FRAMES)]
        ada.press("Enter")
        ada.until("desk => desk.open.video.revision === 3 || desk.open.objectId === 2")
        ada.page_of.close()
    tracks = Dataset(str(tmp_path / "labels")).tracks(["v"]).to_pylist()
    assert [track["review"] for track in tracks] == [Review.ACCEPTED, Review.OPEN]
    assert [track["author"] for track in tracks] == ["ada", None]
    assert tracks[0]["prompts"][-1]["frame_index"] == 12
