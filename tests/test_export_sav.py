"""SA-V files say of real masklets what Meta's own file says of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from labelled import blank, label, relabel, same_masks, sav_objects, scene
from pycocotools import mask as coco_mask
from test_export import export

from sam2model import rle
from workflows.export_sav import Sav
from workflows.mask_sources import SavJson

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Mask = npt.NDArray[np.bool_]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def load(path: Path, frame_id: int, ann_every: int) -> dict[int, Mask]:
    """A second reader, after sam2's training: entry frame_id // ann_every, decoded all at once."""
    assert frame_id % ann_every == 0
    entries = json.loads(path.read_text())["masklet"][frame_id // ann_every]
    stack = coco_mask.decode(entries)
    return {place: stack[..., place].astype(bool) for place in range(stack.shape[-1])}


def test_every_object_has_a_mask_on_every_frame_empty_where_absent(root: str, out: Path) -> None:
    label(root, {"v": scene()}, num_frames=8)
    export(root, out, Sav())
    for frame in range(8):
        masks = load(out / "train/v_manual.json", frame, 1)
        wanted = [scene()[i].get(frame, blank()) for i in (1, 2, 7)]
        assert all((masks[place] == mask).all() for place, mask in enumerate(wanted))
    assert json.loads((out / "train/v_manual.json").read_text())["masklet_id"] == [1, 2, 7]


def test_our_own_reader_gets_the_masks_back(root: str, out: Path) -> None:
    label(root, {"v": scene(), "w": scene()})
    export(root, out, Sav(masklets="auto"), every=2)
    read = SavJson(out / "train", "auto", frames_per_annotation=2)
    assert list(read) == ["v", "w"]
    masks = {
        i: {t: rle.decode(m.counts, m.height, m.width) for t, m in frames.items()}
        for i, frames in read["w"].items()
    }
    assert same_masks(
        masks, {i: {t: f.get(t, blank()) for t in (0, 2, 4)} for i, f in scene().items()}
    )
    assert (out / "train.txt").read_text() == "v\nw\n"


def test_a_real_file_comes_back_field_by_field(
    root: str, out: Path, real_data: Callable[[str], Path]
) -> None:
    path = real_data("sav_000001_manual.json")
    original = json.loads(path.read_text())
    about: dict[str, Any] = {"num_frames": 483, "fps": 24.0, "duration_s": 20.125}
    label(root, {"sav_000001": sav_objects(path)}, **about)
    export(root, out, Sav(strict=True))
    written = json.loads((out / "train/sav_000001_manual.json").read_text())
    unknown = {"video_environment", "masklet_edited_frame_count"}
    measured = {"masklet_size_rel", "masklet_size_abs"}
    for key in original.keys() - unknown - measured:
        assert written[key] == original[key], key
        assert type(written[key]) is type(original[key]), key
    for key in measured:
        assert written[key] == pytest.approx(original[key], rel=1e-6), key
    assert unknown <= written.keys() and written["ann_every"] == 4


def test_auto_files_hold_the_stability_of_each_mask(root: str, out: Path) -> None:
    label(root, {"v": scene()})
    export(root, out, Sav(masklets="auto"))
    written = json.loads((out / "train/v_auto.json").read_text())
    assert written["masklet_stability_score"][0] == [pytest.approx(0.9)] * 2 + [None]
    assert written["masklet_type"] == ["auto"] * 3


def test_frames_that_a_person_prompted_count_as_edited(root: str, out: Path) -> None:
    label(root, {"v": scene()})
    prompts = [
        {"object_id": 1, "frame_index": t, "points": [{"x": 1.0, "y": 1.0, "positive": True}]}
        for t in (0, 4, 4)
    ]
    relabel(root, "v", {1: scene()[1]}, prompts=tuple(prompts))
    export(root, out, Sav())
    written = json.loads((out / "train/v_manual.json").read_text())
    assert written["masklet_edited_frame_count"] == [2, 0, 0]


def test_strict_needs_a_rate(root: str, out: Path) -> None:
    label(root, {"v": scene()}, fps=None)
    summary, _ = export(root, out, Sav(strict=True))
    assert "wanted every = 1 and a video that says its rate" in summary.failures["v"]
