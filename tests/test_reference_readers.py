"""Exports opened by the tools they are made for, and scores beside DAVIS' own, where installed.

Runs what it finds and skips the rest by name:
    pip install --no-deps ultralytics torchvision opencv-python-headless cvat-sdk label-studio-sdk
    pip install --no-deps scipy scikit-image lazy-loader imageio tifffile  # of the checkouts
    MASKMILL_REFERENCE_READERS=DIR, a folder with checkouts of davis2017-evaluation, TrackEval, sam2
The same formats are read by second readers of our own in the other tests of exports, always.
"""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
from labelled import HEIGHT, WIDTH, label, same_masks, sav_objects, scene
from test_export import CATEGORIES, export, twice_as_large
from test_mask_metrics import random_pair
from videos import write_moving_square

from workflows.contours import corners, fill, single_path
from workflows.export_cvat import row_runs
from workflows.export_davis import Davis
from workflows.export_format import ExportFormat
from workflows.export_label_studio import LabelStudio
from workflows.export_mots import Mots
from workflows.export_sav import Sav
from workflows.export_yolo import YoloSeg
from workflows.export_youtube_vis import YoutubeVis
from workflows.mask_metrics import score_pair

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of other people's code
    pytest.mark.slow,
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def reader(monkeypatch: pytest.MonkeyPatch, checkout: str, module: str) -> Any:
    folder = os.environ.get("MASKMILL_REFERENCE_READERS")
    if not folder or not (Path(folder) / checkout).is_dir():
        pytest.skip(f"needs MASKMILL_REFERENCE_READERS with a checkout of {checkout}")
    monkeypatch.syspath_prepend(str(Path(folder) / checkout))
    return importlib.import_module(module)


def exported(
    tmp_path: Path,
    out: Path,
    export_format: ExportFormat,
    names: tuple[str, ...] = ("0002",),
    **options: Any,
) -> Any:
    """The scene, twice as large, of a real video file."""
    objects = twice_as_large(scene())
    path = write_moving_square(tmp_path / "v.mp4", 6, 2 * HEIGHT, 2 * WIDTH)
    videos = {name: objects for name in names}
    label(str(tmp_path / "data"), videos, categories=CATEGORIES, video_uri=str(path))
    summary, _ = export(str(tmp_path / "data"), out, export_format, **options)
    assert not summary.failures
    return objects


def visible(objects: Any) -> Any:
    return {i: {t: m for t, m in frames.items() if m.any()} for i, frames in objects.items()}


def uncovered(objects: Any) -> Any:
    """Each object without what lower ids cover."""
    return {
        i: {
            t: mask & ~np.any([objects[j][t] for j in objects if j < i and t in objects[j]], axis=0)
            for t, mask in frames.items()
        }
        for i, frames in objects.items()
    }


def test_davis_2017_evaluation_opens_davis(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    davis = reader(monkeypatch, "davis2017-evaluation", "davis2017.davis")
    objects = uncovered(exported(tmp_path, out, Davis(), split="val", frames="jpeg"))
    opened = davis.DAVIS(str(out), task="semi-supervised", subset="val")
    assert list(opened.get_sequences()) == ["0002"]
    masks, void, names = opened.get_all_masks("0002", separate_objects_masks=True)
    assert names == [f"{t:05d}" for t in range(6)] and not void.any()
    for place, stack in enumerate(masks, 1):
        for t in range(6):
            assert (stack[t] > 0).sum() == objects.get(place, {}).get(t, np.zeros(1)).sum()
    assert (masks[0][3] > 0).tolist() == objects[1][3].tolist()


def test_scores_are_those_of_davis_2017_evaluation_for_a_tenth_of_the_cost(
    monkeypatch: pytest.MonkeyPatch, real_data: Callable[[str], Path]
) -> None:
    """Random pairs, and real masks against those two annotations later at 1920×1080."""
    davis = reader(monkeypatch, "davis2017-evaluation", "davis2017.metrics")
    cv2 = pytest.importorskip("cv2")
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng, rng.integers(8, 120), rng.integers(8, 400)) for _ in range(1000)]
    large = []
    for masks in sav_objects(real_data("sav_000001_manual.json")).values():
        frames = [
            cv2.resize(mask.T.astype(np.uint8), (1920, 1080), interpolation=0) > 0
            for mask in list(masks.values())[::12]
        ]
        large += [pair for pair in pairwise(frames) if pair[0].any() and pair[1].any()]
    assert len(large) > 20
    ours_s = theirs_s = 0.0
    for number, (predicted, truth) in enumerate([*pairs, *large]):
        began = process_time()
        score = score_pair(predicted, truth)
        middle = process_time()
        j, f = davis.db_eval_iou(truth, predicted), davis.db_eval_boundary(truth, predicted)
        if number >= len(pairs):
            ours_s, theirs_s = ours_s + middle - began, theirs_s + process_time() - middle
        assert score.j == pytest.approx(float(j), abs=1e-9)
        assert score.f == pytest.approx(float(f), abs=1e-9)
    print(f"{theirs_s / ours_s:.1f} times the processor time at 1920×1080")
    assert theirs_s > 10 * ours_s


def test_trackeval_opens_mots(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackeval = reader(monkeypatch, "TrackEval", "trackeval")
    names = ("0002", "0003")  # of a list with one line TrackEval cannot guess the delimiter
    objects = visible(uncovered(exported(tmp_path, out, Mots(), names, split="val")))
    tracker = out / "trackers/ours/data"
    tracker.mkdir(parents=True)
    for name in names:
        shutil.copy(out / f"val/instances_txt/{name}.txt", tracker)
    dataset = trackeval.datasets.KittiMOTS(
        {
            "GT_FOLDER": str(out),
            "TRACKERS_FOLDER": str(out / "trackers"),
            "SEQMAP_FILE": str(out / "val.seqmap"),
            "GT_LOC_FORMAT": "{gt_folder}/val/instances_txt/{seq}.txt",
            "PRINT_CONFIG": False,
        }
    )
    raw = dataset._load_raw_file("ours", "0002", True)
    assert [len(ids) for ids in raw["gt_ids"]] == [
        sum(t in frames for frames in objects.values()) for t in range(6)
    ]


def test_trackeval_scores_youtube_vis_against_itself_as_perfect(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackeval = reader(monkeypatch, "TrackEval", "trackeval")
    monkeypatch.setattr(np, "int", int, raising=False)  # gone since NumPy 1.24
    monkeypatch.setattr(np, "float", float, raising=False)
    exported(tmp_path, out, YoutubeVis())
    data = tmp_path / "data"
    export(str(data), tmp_path / "results", YoutubeVis(content="results"))
    truth, tracker = tmp_path / "gt/youtube_vis_val", tmp_path / "tr/youtube_vis_val/ours/data"
    truth.mkdir(parents=True)
    tracker.mkdir(parents=True)
    (out / "train/instances.json").rename(truth / "instances.json")
    (tmp_path / "results/train/results.json").rename(tracker / "results.json")
    dataset = trackeval.datasets.YouTubeVIS(
        {
            "GT_FOLDER": str(tmp_path / "gt") + "/",
            "TRACKERS_FOLDER": str(tmp_path / "tr") + "/",
            "SPLIT_TO_EVAL": "val",
            "PRINT_CONFIG": False,
        }
    )
    raw = dataset.get_raw_seq_data("ours", "0002")
    for name in ("ball", "wheel", "object"):
        sequence = dataset.get_preprocessed_seq_data(raw, name)
        assert sequence["num_gt_ids"] == sequence["num_tracker_ids"] == 1
        scores = trackeval.metrics.HOTA().eval_sequence(sequence)
        assert np.mean(scores["HOTA"]) == pytest.approx(1)


def test_the_training_loader_of_sam_2_opens_sav(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = reader(monkeypatch, "sam2", "training.dataset.vos_segment_loader")
    objects = exported(tmp_path, out, Sav(), every=2)
    opened = loader.JSONSegmentLoader(str(out / "train/0002_manual.json"), ann_every=2)
    for frame in (0, 2, 4):
        segments = opened.load(frame)
        assert list(segments) == [0, 1, 2]
        for place, object_id in enumerate((1, 2, 7)):
            wanted = objects[object_id].get(frame)
            assert (segments[place].numpy() > 0).sum() == (0 if wanted is None else wanted.sum())


def test_ultralytics_opens_yolo_and_fills_the_same_masks(tmp_path: Path, out: Path) -> None:
    pytest.importorskip("cv2")
    data = pytest.importorskip("ultralytics.data.utils")
    objects = exported(tmp_path, out, YoloSeg(), frames="jpeg")
    names = {1: 2, 2: 0, 7: 1}
    for frame in range(6):
        image = out / f"images/train/0002/{frame:05d}.jpg"
        (label_file,) = data.img2label_paths([str(image)])
        arguments = (str(image), label_file, "", False, 3, 0, 0, False)
        _, boxes, shape, segments, _, _, found, _, corrupt, message = data.verify_image_label(
            arguments
        )
        assert (found, corrupt, message) == (1, 0, "") and shape == (2 * HEIGHT, 2 * WIDTH)
        shown = [i for i in objects if frame in objects[i] and objects[i][frame].any()]
        assert boxes[:, 0].tolist() == [names[i] for i in shown]
        for object_id, segment in zip(shown, segments, strict=True):
            polygon = (segment * (2 * WIDTH, 2 * HEIGHT)).reshape(1, -1)
            mask = data.polygon2mask(shape, polygon) > 0
            wanted = objects[object_id][frame]
            assert mask[wanted].all()
            assert (mask == wanted).all() or object_id == 2


def test_opencv_fills_random_polygons_as_ours_do() -> None:
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    for _ in range(500):
        mask = random.random((random.integers(1, 24), random.integers(1, 24))) < random.random()
        if mask.any():
            path = corners(single_path(mask))
            filled = np.zeros(mask.shape, np.uint8)
            cv2.fillPoly(filled, [path.astype(np.int32).reshape(-1, 1, 2)], 1)
            assert (filled[mask] == 1).all()
            assert (fill(path, *mask.shape) == (filled > 0)).all()


def test_the_sdk_of_cvat_decodes_and_encodes_the_same_runs() -> None:
    masks = pytest.importorskip("cvat_sdk.masks")
    objects = scene()
    for mask in (objects[1][0], objects[2][0], objects[7][3], np.ones((3, 4), bool)):
        rows, columns = np.nonzero(mask)
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        window = mask[top : bottom + 1, left : right + 1]
        ours = [*row_runs(window), left, top, right, bottom]
        assert list(map(int, masks.encode_mask(mask))) == ours
        decoded = masks.decode_mask(
            list(map(float, ours)), image_width=mask.shape[1], image_height=mask.shape[0]
        )
        assert (np.asarray(decoded) == mask).all()


def test_the_sdk_of_label_studio_unpacks_brush_regions(tmp_path: Path, out: Path) -> None:
    sys.modules.setdefault("cv2", pytest.importorskip("cv2"))
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    objects = exported(tmp_path, out, LabelStudio(content="image"))
    seen: Any = {}
    for task in json.loads((out / "tasks_image.json").read_text()):
        for region in task["annotations"][0]["result"]:
            flat = brush.decode_rle(region["value"]["rle"])
            picture = np.reshape(flat, (region["original_height"], region["original_width"], 4))
            frames = seen.setdefault(int(region["id"]), {})
            frames[task["data"]["frame_index"]] = picture[..., 3] > 0
    assert same_masks(seen, visible(objects))
