"""Label Studio tasks: boxes of videos, brush regions of pictures, read back by a second decoder."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import FPS, HEIGHT, WIDTH, label, same_masks, scene
from test_export import CATEGORIES, export

from workflows.export_label_studio import LabelStudio, pack_mask


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class Bits:
    """Numbers of any width from a list of bytes."""

    def __init__(self, data: list[int]) -> None:
        self.bits = np.unpackbits(np.array(data, np.uint8))
        self.place = 0

    def read(self, width: int) -> int:
        number = int("".join(map(str, self.bits[self.place : self.place + width])), 2)
        self.place += width
        return number


def unpack(data: list[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """rle-pack as thi.ng describes it, also the literal runs that ours does not write."""
    bits = Bits(data)
    total, word = bits.read(32), bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < total:
        repeated, size = bits.read(1), sizes[bits.read(2)]
        length = bits.read(size) + 1
        if repeated:
            words += [bits.read(word)] * length
        else:
            words += [bits.read(word) for _ in range(length)]
    assert len(words) == total == height * width * 4
    channels = np.array(words).reshape(height, width, 4)
    assert (channels == channels[..., :1]).all() and set(np.unique(channels)) <= {0, 255}
    mask: npt.NDArray[np.bool_] = channels[..., 3] > 0
    return mask


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_brush_regions_unpack_to_the_mask(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert (unpack(pack_mask(mask), height, width) == mask).all()


@pytest.mark.parametrize("area", [1, 2, 4, 64, 16384, 16385, 40000])
def test_runs_of_every_length_are_packed(area: int) -> None:
    mask = np.zeros((1, 50_000), bool)
    mask[0, 5 : 5 + area] = True
    assert (unpack(pack_mask(mask), 1, 50_000) == mask).all()


def test_image_tasks_hold_the_masks(root: str, out: Path) -> None:
    label(root, {"v": scene()}, categories=CATEGORIES, num_frames=7)
    export(root, out, LabelStudio(content="image", root_url="/data/local-files/?d=out"))
    tasks = json.loads((out / "tasks_image.json").read_text())
    assert [task["data"]["frame_index"] for task in tasks] == list(range(7))
    assert tasks[3]["data"]["image"] == "/data/local-files/?d=out/images/v/00003.jpg"
    seen: dict[int, dict[int, Any]] = {}
    for task in tasks:
        for region in task["annotations"][0]["result"]:
            assert (region["original_height"], region["original_width"]) == (HEIGHT, WIDTH)
            object_id = int(region["id"])
            assert region["value"]["brushlabels"] == [CATEGORIES[object_id] or "object"]
            mask = unpack(region["value"]["rle"], HEIGHT, WIDTH)
            seen.setdefault(object_id, {})[task["data"]["frame_index"]] = mask
    wanted = {i: {t: m for t, m in f.items() if m.any()} for i, f in scene().items()}
    assert same_masks(seen, wanted)


def test_video_tasks_hold_a_box_a_frame_and_end_where_the_object_goes(root: str, out: Path) -> None:
    label(root, {"v": scene()}, categories=CATEGORIES, video_uri="s3://b/v.mp4")
    summary, _ = export(root, out, LabelStudio())
    (task,) = json.loads((out / "tasks_video.json").read_text())
    assert task["data"]["video"] == "s3://b/v.mp4"
    boxes_px = 0
    for region in task["annotations"][0]["result"]:
        object_id, value = int(region["id"]), region["value"]
        assert value["framesCount"] == 6 and value["labels"] == [CATEGORIES[object_id] or "object"]
        masks = {t: m for t, m in scene()[object_id].items() if m.any()}
        assert [place["frame"] - 1 for place in value["sequence"]] == sorted(masks)
        for place in value["sequence"]:
            frame = place["frame"] - 1
            rows, columns = np.nonzero(masks[frame])
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            x, y = place["x"] * WIDTH / 100, place["y"] * HEIGHT / 100
            width, height = place["width"] * WIDTH / 100, place["height"] * HEIGHT / 100
            assert (x, y, x + width, y + height) == pytest.approx(box)
            assert place["time"] == frame / FPS
            assert place["enabled"] == (frame + 1 in masks)
            boxes_px += round(width * height)
    assert summary.account.added_px == boxes_px - summary.account.area_px > 0


@pytest.mark.parametrize("content", ["video", "image"])
def test_the_labelling_configuration_names_what_the_tasks_use(
    root: str, out: Path, content: Any
) -> None:
    label(root, {"v": scene()}, categories={1: 'a "b" <c>', 2: "ball"})
    export(root, out, LabelStudio(content=content))
    config = ElementTree.fromstring((out / "label_config.xml").read_text())
    labels = {element.get("value") for element in config.iter("Label")}
    assert labels == {'a "b" <c>', "ball", "object"}
    controls = {element.get("name") for element in config.iter()}
    (task, *_) = json.loads((out / f"tasks_{content}.json").read_text())
    for region in task["annotations"][0]["result"]:
        assert {region["from_name"], region["to_name"]} <= controls
