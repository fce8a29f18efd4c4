"""The demo, as a newcomer runs it: its masks follow the shapes that it drew."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.demo import main
from sam2model import rle
from workflows.demo_inputs import DRAWN_NAME, demo_prompts, drawn_clip, drawn_objects
from workflows.mask_metrics import region_similarity
from workflows.query import Dataset

pytest_plugins = ["local_ray"]


def test_every_click_is_on_its_shape() -> None:
    first = drawn_clip().labels[0]
    prompts = demo_prompts(Path(DRAWN_NAME))
    found = [first[int(y), int(x)] for prompt in prompts for x, y in prompt.points_px]
    assert found == drawn_objects(first) and len(found) >= 3


@pytest.mark.cluster
def test_the_demo_follows_the_shapes_it_drew(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "demo"), "--log-level", "warning"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(Path(path).stat().st_size > 10_000 for path in summary["overlays"])
    labels = drawn_clip().labels
    scores = []
    for row in Dataset(summary["dataset"]).masks(Path(DRAWN_NAME).stem).to_pylist():
        number = drawn_objects(labels[0])[row["object_id"] - 1]
        mask = rle.decode(row["counts"], row["height"], row["width"])
        scores.append(region_similarity(mask, labels[row["frame_index"]] == number))
    assert len(scores) == len(labels) * len(drawn_objects(labels[0]))
    assert np.mean(scores) > 0.5
