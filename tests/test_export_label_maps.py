"""DAVIS, MOSE and MOTS: pixels say the object, overlaps follow one rule, losses are counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from labelled import HEIGHT, WIDTH, blank, disk, label, same_masks, sav_objects, scene
from PIL import Image
from pycocotools import mask as coco_mask
from test_export import export

from sam2model import rle
from workflows.export_davis import Davis, Mose
from workflows.export_mots import Mots, class_numbers
from workflows.mask_sources import PngFolder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Labels = npt.NDArray[np.int64]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def flattened(objects: Any, num_frames: int) -> dict[int, Labels]:
    """Every frame as a picture of object ids, the lowest id on top: written a second time."""
    pictures = {}
    for frame in range(num_frames):
        picture = np.zeros((HEIGHT, WIDTH), int)
        for object_id in sorted(objects, reverse=True):
            picture[objects[object_id].get(frame, blank())] = object_id
        pictures[frame] = picture
    return pictures


def read_pngs(folder: Path, mode: str) -> dict[int, Labels]:
    pictures = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            assert image.mode == mode
            pictures[int(path.stem)] = np.asarray(image).astype(int)
    return pictures


def equal(one: dict[int, Labels], other: dict[int, Labels]) -> bool:
    return one.keys() == other.keys() and all((one[t] == other[t]).all() for t in one)


def test_davis_pixels_are_object_ids_and_the_lowest_wins(root: str, out: Path) -> None:
    label(root, {"bear": scene()}, num_frames=8)
    export(root, out, Davis(), split="val")
    pngs = read_pngs(out / "Annotations/480p/bear", "P")
    assert equal(pngs, flattened(scene(), 8))
    assert {len(path.name) for path in (out / "Annotations/480p/bear").iterdir()} == {9}
    assert (out / "ImageSets/2017/val.txt").read_text() == "bear\n"


def test_the_palette_is_the_one_of_pascal_voc(root: str, out: Path) -> None:
    label(root, {"bear": scene()})
    export(root, out, Davis())
    with Image.open(out / "Annotations/480p/bear/00003.png") as image:
        palette = np.array(image.getpalette()).reshape(-1, 3)
    # as the VOC development kit's colour map begins, and its void
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[8].tolist() == [64, 0, 0] and palette[255].tolist() == [224, 224, 192]


def test_what_overlaps_cost_is_counted(root: str, out: Path) -> None:
    label(root, {"bear": scene()})
    summary, _ = export(root, out, Davis())
    written = sum(
        int((p > 0).sum()) for p in read_pngs(out / "Annotations/480p/bear", "P").values()
    )
    account = summary.account
    assert account.lost_px == account.area_px - written > 0
    assert account.masks_lost == 0
    assert account.notes["objects that DAVIS' evaluation leaves out"] == 1


def test_an_object_covered_whole_counts_as_lost(root: str, out: Path) -> None:
    objects = {1: {0: disk(20, 20, 9)}, 2: {0: disk(20, 20, 3)}}
    label(root, {"bear": objects})
    summary, _ = export(root, out, Davis())
    assert summary.account.masks_lost == 1
    assert summary.account.lost_px == disk(20, 20, 3).sum()


@pytest.mark.parametrize("ids", [(0, 5), (3, 255), (3, 1000)])
def test_ids_that_no_pixel_can_hold_are_numbered_and_the_numbers_kept(
    root: str, out: Path, ids: tuple[int, int]
) -> None:
    low, high = ids
    label(root, {"v": {low: {0: disk(9, 9, 5)}, high: {0: disk(40, 9, 5)}}})
    export(root, out, Mose())
    (picture,) = read_pngs(out / "train/Annotations/v", "P").values()
    assert picture[9, 9] == 1 and picture[9, 40] == 2
    about = json.loads((out / "videos.jsonl").read_text())
    assert about["labels"] == [[1, low], [2, high]]


def test_more_objects_than_labels_fail_by_name(root: str, out: Path) -> None:
    label(root, {"v": {i: {0: disk(9, 9, 1)} for i in range(1, 257)}})
    summary, _ = export(root, out, Davis())
    assert "256 objects; a palette PNG holds 254" in summary.failures["v"]
    assert (out / "ImageSets/2017/train.txt").read_text() == ""


def test_our_own_reader_of_folders_gets_the_visible_masks_back(root: str, out: Path) -> None:
    label(root, {"v": scene()})
    export(root, out, Mose())
    pictures = flattened(scene(), 6)
    wanted = {i: {t: pictures[t] == i for t in range(6)} for i in (1, 2, 7)}
    read = {
        i: {t: rle.decode(m.counts, m.height, m.width) for t, m in frames.items()}
        for i, frames in PngFolder(out / "train/Annotations")["v"].items()
    }
    assert same_masks(read, wanted)


def load_mots_txt(path: Path) -> dict[int, dict[int, tuple[int, npt.NDArray[np.bool_]]]]:
    """frame → id → class and mask; a second reader, after the description of the format."""
    frames: dict[int, dict[int, tuple[int, npt.NDArray[np.bool_]]]] = {}
    for line in path.read_text().splitlines():
        frame, track, kind, height, width, counts = line.split(" ")
        mask = coco_mask.decode({"size": [int(height), int(width)], "counts": counts.encode()})
        assert int(track) // 1000 == int(kind)
        assert int(track) not in frames.setdefault(int(frame), {})
        frames[int(frame)][int(track)] = (int(kind), mask.astype(bool))
    return frames


@pytest.mark.parametrize("first", [0, 1])
def test_mots_text_and_pictures_agree_and_hold_the_visible_masks(
    root: str, out: Path, first: int
) -> None:
    label(root, {"0002": scene()}, categories={1: "pedestrian", 2: "dog", 7: "pedestrian"})
    export(root, out, Mots(first_frame=first))
    codes = {1: 2000, 2: 3000, 7: 2001}
    pictures = read_pngs(out / "train/instances/0002", "I;16")
    wanted = flattened(scene(), 6)
    assert list(pictures) == [t + first for t in range(6)]
    for frame, picture in pictures.items():
        coded = sum(np.where(wanted[frame - first] == i, code, 0) for i, code in codes.items())
        assert (picture == coded).all()
    text = load_mots_txt(out / "train/instances_txt/0002.txt")
    for frame, picture in pictures.items():
        seen = {code: mask for code, (_, mask) in text.get(frame, {}).items()}
        assert seen.keys() == set(np.unique(picture).tolist()) - {0}
        assert all((picture == code).astype(bool)[mask].all() for code, mask in seen.items())
        assert sum(mask.sum() for mask in seen.values()) == (picture > 0).sum()
    assert (out / "train.seqmap").read_text() == f"0002 empty {first:06d} {first + 5:06d}\n"
    assert (out / "classes.txt").read_text() == "2 pedestrian\n3 dog\n"


def test_mots_classes_keep_clear_of_those_that_are_taken() -> None:
    names = ["car", *[f"c{i}" for i in range(10)], "pedestrian"]
    numbers = class_numbers({name: number for number, name in enumerate(names, 1)})
    assert numbers["car"] == 1 and numbers["pedestrian"] == 2
    assert [numbers[f"c{i}"] for i in range(10)] == [3, 4, 5, 6, 7, 8, 9, 11, 12, 13]


def test_more_classes_than_sixteen_bits_hold_fail_by_name(root: str, out: Path) -> None:
    objects = {i: {0: disk(9, 9, 1)} for i in range(70)}
    label(root, {"v": objects}, categories={i: f"c{i:02}" for i in objects})
    summary, _ = export(root, out, Mots())
    assert "object 61 would be instance 0 of class 65" in summary.failures["v"]


def test_real_masks_come_back_from_davis(
    root: str, out: Path, real_data: Callable[[str], Path]
) -> None:
    objects = sav_objects(real_data("sav_000001_manual.json"))
    frame = {o: {0: frames[0]} for o, frames in objects.items()}
    label(root, {"v": frame})
    export(root, out, Davis(resolution="Full-Resolution"))
    (picture,) = read_pngs(out / "Annotations/Full-Resolution/v", "P").values()
    covered = np.zeros_like(picture, bool)
    for number, object_id in enumerate(sorted(frame), 1):
        wanted = frame[object_id][0] & ~covered
        assert ((picture == number) == wanted).all()
        covered |= frame[object_id][0]
