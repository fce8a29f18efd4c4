"""COCO and YouTube-VIS files are read by pycocotools and hold exactly the masks of the dataset."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled import HEIGHT, WIDTH, label, same_masks, sav_objects, scene
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from test_export import CATEGORIES, export

from workflows.export_coco import Coco
from workflows.export_youtube_vis import YoutubeVis

# pycocotools 2.0.11 decodes through an array protocol that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def visible(objects: Any) -> dict[int, dict[int, Any]]:
    shown = {o: {t: m for t, m in frames.items() if m.any()} for o, frames in objects.items()}
    return {o: frames for o, frames in shown.items() if frames}


def test_pycocotools_reads_the_same_masks_from_coco(root: str, out: Path) -> None:
    label(root, {"a": scene(), "b": scene(5)}, categories=CATEGORIES)
    export(root, out, Coco())
    coco = COCO(str(out / "annotations/instances_train.json"))
    images = coco.imgs
    seen: dict[str, dict[int, dict[int, Any]]] = {}
    names = {video["id"]: video["name"] for video in coco.dataset["videos"]}
    for annotation in coco.loadAnns(coco.getAnnIds()):
        image = images[annotation["image_id"]]
        mask = coco.annToMask(annotation).astype(bool)
        tracks = seen.setdefault(names[image["video_id"]], {})
        tracks.setdefault(annotation["track_id"], {})[image["frame_id"]] = mask
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        category = coco.cats[annotation["category_id"]]["name"]
        assert category == (CATEGORIES[annotation["track_id"]] or "object")
    assert seen.keys() == {"a", "b"}
    assert same_masks(seen["a"], visible(scene()))
    assert same_masks(seen["b"], visible(scene(5)))


def test_every_frame_is_an_image_also_without_masks(root: str, out: Path) -> None:
    label(root, {"a": scene()}, num_frames=9)
    export(root, out, Coco())
    coco = COCO(str(out / "annotations/instances_train.json"))
    assert [image["file_name"] for image in coco.dataset["images"]][-1] == "a/00008.jpg"
    assert {(image["height"], image["width"]) for image in coco.imgs.values()} == {(HEIGHT, WIDTH)}
    assert len(coco.imgs) == 9


def youtube_vis(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[int, dict[int, Any]]:
    """A second reader, after YouTube-VIS' own: run lengths of either spelling, null is absent."""
    document = json.loads(path.read_text())
    (video,) = document["videos"]
    numbers = [int(Path(name).stem) for name in video["file_names"]]
    assert video["length"] == len(numbers)
    seen: dict[int, dict[int, Any]] = {}
    for track in document["annotations"]:
        assert track["video_id"] == video["id"]
        frames = seen.setdefault(track["object_id"], {})
        lists = (track["segmentations"], track["areas"], track["bboxes"])
        for number, segmentation, area, box in zip(numbers, *lists, strict=True):
            if segmentation is None:
                assert area is None and box is None
                continue
            if isinstance(segmentation["counts"], list):
                segmentation = coco_mask.frPyObjects(segmentation, *size)
            frames[number] = coco_mask.decode(segmentation).astype(bool)
            assert area == frames[number].sum()
            assert box == coco_mask.toBbox(segmentation).tolist()
    return seen


@pytest.mark.parametrize("counts", ["numbers", "string"])
def test_youtube_vis_truth_holds_the_same_masks(root: str, out: Path, counts: Any) -> None:
    label(root, {"a": scene()}, categories=CATEGORIES)
    export(root, out, YoutubeVis(counts=counts))
    assert same_masks(youtube_vis(out / "train/instances.json"), visible(scene()))
    document = json.loads((out / "train/instances.json").read_text())
    kinds = {type(s["counts"]) for t in document["annotations"] for s in t["segmentations"] if s}
    assert kinds == {list if counts == "numbers" else str}
    assert [track["id"] for track in document["annotations"]] == [1, 2, 3]


def test_youtube_vis_results_are_a_flat_list_with_scores(root: str, out: Path) -> None:
    label(root, {"a": scene(), "b": scene()}, categories=CATEGORIES)
    export(root, out, YoutubeVis(content="results"))
    results = json.loads((out / "train/results.json").read_text())
    assert {(r["video_id"], r["object_id"]) for r in results} == {
        (video, track) for video in (1, 2) for track in (1, 2, 7)
    }
    assert {r["score"] for r in results} == {0.75}
    mask = coco_mask.decode(results[0]["segmentations"][3]).astype(bool)
    assert (mask == scene()[1][3]).all()
    assert not (out / "train/instances.json").exists()


def test_masks_of_a_real_video_stay_the_same(
    root: str, out: Path, tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    objects = sav_objects(real_data("sav_000001_manual.json"))
    some = {o: {t: m for t, m in f.items() if t < 60} for o, f in objects.items()}
    label(root, {"sav_000001": some}, num_frames=60)
    export(root, out, YoutubeVis(), every=4)
    assert same_masks(
        youtube_vis(out / "train/instances.json", (848, 480)),
        {**visible(some), **{o: {} for o in some if not np.any(list(some[o].values()))}},
    )
