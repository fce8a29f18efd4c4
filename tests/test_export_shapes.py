"""YOLO polygons and CVAT shapes, read by a second reader each, are the masks of the dataset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from labelled import HEIGHT, WIDTH, disk, label, same_masks, sav_objects, scene
from test_export import CATEGORIES, export

from workflows.export_cvat import Cvat, row_runs
from workflows.export_yolo import YoloSeg

Mask = npt.NDArray[np.bool_]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def filled(polygon: npt.NDArray[np.int32], height: int, width: int) -> Mask:
    """Even-odd by winding over each row, and every pixel of every edge: slow, shares no code.

    The pixels of an edge are those nearest to it, one for each step along its longer side.
    """
    inside = np.zeros((height, width), bool)
    edges = list(zip(polygon.tolist(), np.roll(polygon, -1, axis=0).tolist(), strict=True))
    columns = np.arange(width)
    for (x0, y0), (x1, y1) in edges:
        for y in range(min(y0, y1), max(y0, y1)):
            inside[y] ^= columns >= x0 + (x1 - x0) * (y - y0) / (y1 - y0)
    for (x0, y0), (x1, y1) in edges:
        for step in range(length := max(abs(x1 - x0), abs(y1 - y0))):
            x, y = x0 + (x1 - x0) * step / length, y0 + (y1 - y0) * step / length
            inside[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))] = True
        inside[y0, x0] = True
    return inside


def read_yolo(path: Path, height: int, width: int) -> list[tuple[int, Mask]]:
    """As Ultralytics does: shares times the size, cut to whole numbers, filled."""
    shapes = []
    for line in path.read_text().splitlines():
        kind, *numbers = line.split()
        assert len(numbers) >= 6 and all(0 <= float(number) <= 1 for number in numbers)
        polygon = np.array(numbers, np.float32).reshape(-1, 2) * np.float32([width, height])
        shapes.append((int(kind), filled(polygon.astype(np.int32), height, width)))
    return shapes


def test_yolo_polygons_fill_to_the_masks_and_bridges_are_counted(root: str, out: Path) -> None:
    label(root, {"v": scene()}, categories=CATEGORIES)
    summary, _ = export(root, out, YoloSeg())
    data = yaml.safe_load((out / "data.yaml").read_text())
    kinds = {name: number for number, name in data["names"].items()}
    assert kinds == {"ball": 0, "object": 1, "wheel": 2}
    assert (data["train"], data["val"]) == ("images/train", "images/train")
    added = lost = 0
    for frame in range(6):
        shapes = read_yolo(out / f"labels/train/v/{frame:05d}.txt", HEIGHT, WIDTH)
        visible = {i: f[frame] for i, f in scene().items() if frame in f and f[frame].any()}
        wanted = [(kinds[CATEGORIES[i] or "object"], mask) for i, mask in visible.items()]
        assert [kind for kind, _ in shapes] == [kind for kind, _ in wanted]
        for object_id, (_, mask), (_, true) in zip(visible, shapes, wanted, strict=True):
            assert object_id == 2 or (mask == true).all()
            added += (mask & ~true).sum()
            lost += (true & ~mask).sum()
    account = summary.account
    assert (account.added_px, account.lost_px) == (added, lost)
    assert added > 0 and lost == 0


def test_a_frame_without_objects_has_an_empty_file(root: str, out: Path) -> None:
    label(root, {"v": scene()}, num_frames=8)
    export(root, out, YoloSeg())
    assert (out / "labels/train/v/00007.txt").read_bytes() == b""


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (999, 1001), (36, 64)])
def test_no_pixel_of_a_polygon_slips_to_its_neighbour(
    root: str, out: Path, height: int, width: int
) -> None:
    """Every x and y survives the way through shares, single precision and cutting off."""
    staircase = np.zeros((height, width), bool)
    staircase[np.arange(width) * height // width, np.arange(width)] = True
    label(root, {"v": {1: {0: staircase}}})
    export(root, out, YoloSeg())
    ((_, mask),) = read_yolo(out / "labels/train/v/00000.txt", height, width)
    assert (mask == staircase).all()


def read_cvat(path: Path, height: int, width: int) -> dict[int, dict[int, Mask]]:
    """As CVAT imports: the first shape of each track, its points within its box, row by row."""
    seen: dict[int, dict[int, Mask]] = {}
    for track in ElementTree.parse(path).getroot().iter("track"):
        first, *rest = track.findall("mask")
        assert first.get("outside") == "0" and all(shape.get("outside") == "1" for shape in rest)
        values = {name: str(first.get(name)) for name in first.keys()}
        left, top, w, h = (int(values[key]) for key in ("left", "top", "width", "height"))
        flat: list[bool] = []
        for place, run in enumerate(map(int, values["rle"].split(","))):
            flat += [place % 2 == 1] * run
        assert len(flat) == w * h
        mask = np.zeros((height, width), bool)
        mask[top : top + h, left : left + w] = np.array(flat).reshape(h, w)
        frames = seen.setdefault(int(track.get("group_id", 0)) - 1, {})
        assert int(values["frame"]) not in frames
        frames[int(values["frame"])] = mask
    return seen


def test_cvat_shapes_are_the_masks(root: str, out: Path) -> None:
    label(root, {"v": scene()}, categories={1: 'a "<b>" & c', 2: "ball"}, num_frames=8)
    export(root, out, Cvat())
    wanted = {i: {t: m for t, m in f.items() if m.any()} for i, f in scene().items()}
    path = out / "annotations/v.xml"
    assert same_masks(read_cvat(path, HEIGHT, WIDTH), wanted)
    tree = ElementTree.parse(path).getroot()
    names = {element.text for element in tree.findall("meta/task/labels/label/name")}
    assert (
        names
        == {track.get("label") for track in tree.iter("track")}
        == {'a "<b>" & c', "ball", "object"}
    )
    assert tree.findtext("meta/task/size") == "8" and tree.findtext("version") == "1.1"


def test_a_cvat_shape_ends_on_the_next_frame_written(root: str, out: Path) -> None:
    label(root, {"v": scene()})
    export(root, out, Cvat(), every=2)
    tree = ElementTree.parse(out / "annotations/v.xml").getroot()
    frames = {tuple(m.get("frame") for m in track.iter("mask")) for track in tree.iter("track")}
    assert frames == {("0", "2"), ("2", "4"), ("4",)}


def test_text_that_xml_cannot_hold_does_not_break_the_file(root: str, out: Path) -> None:
    label(root, {"v": {1: {0: disk(9, 9, 3)}}}, categories={1: "a\x00b\x1f"})
    export(root, out, Cvat())
    (track,) = ElementTree.parse(out / "annotations/v.xml").getroot().iter("track")
    assert track.get("label") == "a\ufffdb\ufffd"


@pytest.mark.parametrize(
    ("rows", "runs"),
    [(["#"], [0, 1]), (["."], [1]), ([".#", "#."], [1, 2, 1]), (["##", ".#"], [0, 2, 1, 1])],
)
def test_runs_go_row_by_row_and_begin_with_background(rows: list[str], runs: list[int]) -> None:
    assert row_runs(np.array([[c == "#" for c in row] for row in rows])) == runs


def test_real_masks_stay_the_same_in_cvat_and_whole_in_yolo(
    root: str, out: Path, tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    objects = sav_objects(real_data("sav_000001_manual.json"))
    frame: dict[int, Any] = {i: {0: frames[0]} for i, frames in objects.items()}
    label(root, {"v": frame})
    export(root, out, Cvat())
    visible = {i: f for i, f in frame.items() if f[0].any()}
    assert same_masks(read_cvat(out / "annotations/v.xml", 848, 480), visible)
    summary, _ = export(root, tmp_path / "yolo", YoloSeg())
    shapes = read_yolo(tmp_path / "yolo/labels/train/v/00000.txt", 848, 480)
    added = 0
    for (_, mask), frames in zip(shapes, visible.values(), strict=True):
        assert mask[frames[0]].all()
        added += int((mask & ~frames[0]).sum())
    assert summary.account.added_px == added < 0.01 * summary.account.area_px
