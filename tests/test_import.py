"""Masks made elsewhere become revisions, exactly those that differ, and nothing else changes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled import (
    FPS,
    HEIGHT,
    WIDTH,
    Mask,
    blank,
    disk,
    label,
    relabel,
    same_masks,
    sav_objects,
)
from PIL import Image
from test_export import CATEGORIES, export
from videos import write_moving_square

from sam2model import rle
from workflows.export_coco import Coco
from workflows.export_davis import Davis, Mose
from workflows.export_format import ExportFormat
from workflows.export_sav import Sav
from workflows.export_youtube_vis import YoutubeVis
from workflows.import_masks import ImportOptions, ImportOutcome, ImportResult, import_video
from workflows.import_sources import import_all, open_source
from workflows.mask_sources import MaskSourceError, Rle
from workflows.query import Dataset
from workflows.results import DatasetWriter
from workflows.revisions import StaleRevision
from workflows.rows import Review, Source, tracks_from_table
from workflows.storage import Storage

OPTIONS = ImportOptions(run_id="i1", author="ann")
ROUND_TRIPS: list[tuple[ExportFormat, str]] = [
    (Coco(), "annotations/instances_train.json"),
    (YoutubeVis(), "train/instances.json"),
    (YoutubeVis(counts="string"), "train/instances.json"),
    (Sav(), "train"),
    (Davis(), ""),
    (Mose(), "train"),
]


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(root: str, source: Path | str, options: ImportOptions = OPTIONS, **more: Any) -> Any:
    storage = Storage()
    videos_root = more.pop("videos_root", None)
    opened = open_source(str(source), storage, **more)
    results = list(import_all(opened, root, storage, options, videos_root))
    return results[0] if len(results) == 1 else results


def masks_of(root: str, video_id: str = "v", at: int | None = None) -> dict[int, dict[int, Mask]]:
    objects: dict[int, dict[int, Mask]] = {}
    for row in Dataset(root).masks(video_id, at=at).to_pylist():
        mask = rle.decode(row["counts"], row["height"], row["width"])
        objects.setdefault(row["object_id"], {})[row["frame_index"]] = mask
    return objects


def separate() -> dict[int, dict[int, Mask]]:
    """Objects that do not overlap, so that every format holds them whole."""
    return {
        1: {t: disk(10 + 2 * t, 10, 6) & ~disk(10 + 2 * t, 10, 2) for t in range(6)},
        2: {t: disk(20, 28, 5) if t != 2 else blank() for t in range(6)},
        7: {t: disk(52, 28, 5) for t in range(6)},
    }


def as_source(objects: Mapping[int, Mapping[int, Mask]]) -> dict[int, dict[int, Rle]]:
    return {
        i: {t: Rle(rle.encode_mask(m), *m.shape) for t, m in frames.items()}
        for i, frames in objects.items()
    }


def take(
    root: str,
    objects: Mapping[int, Mapping[int, Mask]],
    options: ImportOptions = OPTIONS,
    categories: Mapping[int, str] | None = None,
) -> ImportResult:
    writer = DatasetWriter(Storage(), root)
    return import_video(writer, Dataset(root), "v", as_source(objects), categories or {}, options)


@pytest.mark.parametrize(("export_format", "path"), ROUND_TRIPS)
def test_importing_an_export_changes_nothing(
    root: str, out: Path, export_format: ExportFormat, path: str
) -> None:
    label(root, {"v": separate()}, categories=CATEGORIES)
    export(root, out, export_format)
    result = run(root, out / path)
    assert (result.outcome, result.objects_unchanged) == (ImportOutcome.UNCHANGED, 3)
    assert Dataset(root).tracks()["revision"].to_pylist() == [1, 1, 1]


@pytest.mark.parametrize(("export_format", "path"), ROUND_TRIPS)
def test_an_export_imported_over_other_labels_brings_back_its_own(
    root: str, out: Path, export_format: ExportFormat, path: str
) -> None:
    label(root, {"v": separate()}, categories=CATEGORIES)
    export(root, out, export_format)
    relabel(root, "v", {2: {t: disk(40, 10, 3) for t in range(6)}}, categories=CATEGORIES)
    result = run(root, out / path)
    assert (result.outcome, result.revision) == (ImportOutcome.IMPORTED, 3)
    assert (result.objects, result.objects_unchanged, result.masks) == (1, 2, 5)
    assert same_masks(masks_of(root), separate())


def test_a_revision_says_that_it_was_imported_by_whom_and_from_what(root: str) -> None:
    label(root, {"v": separate()}, categories=CATEGORIES)
    take(root, {2: {0: disk(5, 5, 3)}})
    track = next(t for t in tracks_from_table(Dataset(root).tracks()) if t.object_id == 2)
    assert (track.revision, track.parent_revision, track.source) == (2, 1, Source.IMPORT)
    assert (track.author, track.category, track.run_id) == ("ann", "ball", "i1")
    assert (track.first_frame, track.last_frame, track.frames_present) == (0, 5, 5)
    assert track.doubt is None and track.flags == ()


def test_frames_of_which_the_source_says_nothing_stay_as_they_were(root: str) -> None:
    label(root, {"v": separate()})
    before = Dataset(root).masks("v", [2]).drop_columns(["revision"]).to_pylist()
    take(root, {2: {3: disk(5, 5, 3)}})
    after = Dataset(root).masks("v", [2]).drop_columns(["revision"]).to_pylist()
    assert [row for row in after if row["frame_index"] != 3] == [
        row for row in before if row["frame_index"] != 3
    ]
    (new,) = (row for row in after if row["frame_index"] == 3)
    assert (new["area_px"], new["pts_s"]) == (disk(5, 5, 3).sum(), 3 / FPS)
    assert new["box"] == {"x0": 2.0, "y0": 2.0, "x1": 9.0, "y1": 9.0}
    assert new["object_score"] is new["iou_pred"] is new["stability"] is None


def test_replacing_drops_the_frames_of_which_the_source_says_nothing(root: str) -> None:
    label(root, {"v": separate()})
    take(root, {2: {3: disk(5, 5, 3)}}, ImportOptions(run_id="i", replace=True))
    assert list(masks_of(root)[2]) == [3]
    assert list(masks_of(root)[1]) == list(range(6))


def test_an_empty_mask_takes_the_object_away(root: str) -> None:
    label(root, {"v": separate()})
    take(root, {2: {3: blank()}})
    (row,) = Dataset(root).masks("v", [2], (3, 3)).to_pylist()
    assert row["area_px"] == 0 and row["box"] is None


def test_nothing_seen_where_nothing_was_labelled_is_no_news(root: str) -> None:
    label(root, {"v": {1: {0: disk(9, 9, 3)}}}, num_frames=4)
    source = {1: {0: disk(9, 9, 3), **{t: blank() for t in (1, 2, 3)}}}
    assert take(root, source).outcome == ImportOutcome.UNCHANGED
    assert take(root, {1: {**source[1], 2: disk(9, 9, 2)}}).masks == 2
    assert list(masks_of(root)[1]) == [0, 2]


def test_a_new_object_gets_all_its_frames(root: str) -> None:
    label(root, {"v": separate()})
    take(root, {9: {0: blank(), 1: disk(9, 9, 3), 2: blank()}}, categories={9: "bee"})
    track = next(t for t in tracks_from_table(Dataset(root).tracks()) if t.object_id == 9)
    assert (track.parent_revision, track.category, track.frames_present) == (None, "bee", 1)
    assert list(masks_of(root)[9]) == [0, 1, 2]


def test_a_changed_category_is_a_revision_with_the_same_masks(root: str) -> None:
    label(root, {"v": separate()}, categories=CATEGORIES)
    result = take(root, {2: {0: separate()[2][0]}}, categories={2: "melon"})
    assert (result.outcome, result.revision) == (ImportOutcome.IMPORTED, 2)
    assert same_masks(masks_of(root), separate())
    assert Dataset(root).tracks()["category"].to_pylist() == ["wheel", "melon", None]


def test_what_a_refinement_starts_from_is_the_first_new_mask_and_clicks_elsewhere(
    root: str,
) -> None:
    label(root, {"v": separate()})
    clicks = tuple(
        {
            "object_id": 2,
            "frame_index": t,
            "points": [{"x": 1.0, "y": 2.0, "positive": True}],
            "box": None,
            "mask": None,
            "category": None,
        }
        for t in (0, 4)
    )
    relabel(root, "v", {2: separate()[2]}, prompts=clicks)
    take(root, {2: {2: blank(), 3: disk(5, 5, 3), 4: disk(5, 6, 3)}})
    track = next(t for t in tracks_from_table(Dataset(root).tracks()) if t.object_id == 2)
    first, second = track.prompts
    assert first == clicks[0]
    assert second["frame_index"] == 3
    assert second["mask"] == {"size": [HEIGHT, WIDTH], "counts": rle.encode_mask(disk(5, 5, 3))}
    rows = Dataset(root).masks("v", [2]).to_pylist()
    assert [row["frame_index"] for row in rows if row["is_prompt"]] == [0, 3]


def test_accepted_imports_are_marked_so(root: str) -> None:
    label(root, {"v": separate()})
    take(root, {2: {0: blank()}}, ImportOptions(run_id="i", review=Review.ACCEPTED))
    assert Dataset(root).tracks()["review"].to_pylist() == ["open", "accepted", "open"]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({2: {0: Rle.empty(HEIGHT, WIDTH + 1)}}, "object 2, frame 0: mask of 36×65"),
        ({2: {6: Rle.empty(HEIGHT, WIDTH)}}, "object 2, frame 6: the video has 6 frames"),
        ({2: {1: Rle("06", HEIGHT, WIDTH)}}, "object 2, frame 1: rle '06'"),
    ],
)
def test_masks_that_do_not_fit_are_refused_and_nothing_is_written(
    root: str, masks: Any, message: str
) -> None:
    label(root, {"v": separate()})
    writer = DatasetWriter(Storage(), root)
    with pytest.raises(ValueError, match=message):
        import_video(writer, Dataset(root), "v", masks, {}, OPTIONS)
    assert Dataset(root).tracks()["revision"].to_pylist() == [1, 1, 1]


def test_somebody_elses_newer_labels_are_not_overwritten(root: str) -> None:
    label(root, {"v": separate()})
    seen, writer = Dataset(root), DatasetWriter(Storage(), root)
    relabel(root, "v", {2: {0: blank()}})
    with pytest.raises(StaleRevision):
        import_video(writer, seen, "v", as_source({2: {0: disk(9, 9, 3)}}), {}, OPTIONS)


def test_a_bad_video_is_reported_and_the_others_are_imported(root: str, out: Path) -> None:
    label(root, {"a": separate(), "b": separate()})
    export(root, out, Coco())
    path = out / "annotations/instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"]["counts"] = "06"
    last = document["annotations"][-1]
    last["segmentation"]["counts"] = rle.encode_mask(blank() | disk(3, 3, 2))
    path.write_text(json.dumps(document))
    bad, good = run(root, path)
    assert (bad.outcome, good.outcome) == (ImportOutcome.FAILED, ImportOutcome.IMPORTED)
    assert "object 1, frame 0" in bad.reason
    (row,) = Dataset(root).sql("SELECT * FROM runs").to_pylist()
    assert (row["job"], row["videos_ok"], row["videos_failed"]) == ("import", 1, 1)


def test_a_video_that_the_dataset_lacks_needs_its_file(
    root: str, out: Path, tmp_path: Path
) -> None:
    other = str(tmp_path / "other")
    label(other, {"v": separate()}, categories=CATEGORIES)
    export(other, out, YoutubeVis())
    source = out / "train/instances.json"
    assert "wanted --videos-root" in run(root, source).reason
    assert Dataset(root).tracks().num_rows == 0
    write_moving_square(tmp_path / "v.mp4", 6, HEIGHT, WIDTH)
    result = run(root, source, videos_root=str(tmp_path))
    assert (result.outcome, result.revision, result.objects) == (ImportOutcome.IMPORTED, 1, 3)
    assert same_masks(masks_of(root), separate())
    video = Dataset(root).video("v")
    assert (video["num_frames_decoded"], video["width"], video["status"]) == (6, WIDTH, "ok")


def test_labels_and_folders_of_our_exports_find_their_ids(root: str, out: Path) -> None:
    name = "cam 1/käse"
    label(root, {name: {i + 300: frames for i, frames in separate().items()}})
    export(root, out, Davis())
    relabel(root, name, {307: {0: blank()}})
    result = run(root, out)
    assert (result.video_id, result.objects) == (name, 1)
    assert same_masks({307: masks_of(root, name)[307]}, {307: separate()[7]})


def test_pictures_with_gaps_in_their_numbers_count_the_frames(root: str, tmp_path: Path) -> None:
    label(root, {"v": {1: {t: disk(9, 9, 3) for t in range(3)}}})
    for number in (10, 15, 20):
        for kind, suffix in (("Annotations", "png"), ("JPEGImages", "jpg")):
            path = tmp_path / f"davis/{kind}/480p/v/{number:05d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((disk(20, 20, number // 5) * 1).astype(np.uint8)).save(path)
    assert run(root, tmp_path / "davis").masks == 3
    wanted = {t: disk(20, 20, radius) for t, radius in enumerate((2, 3, 4))}
    assert same_masks(masks_of(root), {1: wanted})


def test_real_masklets_are_imported_on_every_fourth_frame(
    root: str, real_data: Callable[[str], Path]
) -> None:
    path = real_data("sav_000001_manual.json")
    whole = {i: {0: f[0]} for i, f in sav_objects(path).items()}
    label(root, {"sav_000001": {i: f for i, f in whole.items() if i in (0, 1)}}, num_frames=483)
    result = run(root, path)
    assert (result.objects, result.objects_unchanged) == (5, 0)
    assert result.masks == 120 + 121 + 110 + 8 + 121
    frames = Dataset(root).masks("sav_000001", [4])["frame_index"].to_pylist()
    assert frames == list(range(0, 484, 4))


def coco(**changes: Any) -> bytes:
    full = {"size": [1, 2], "counts": "02"}
    document = {
        "videos": [{"id": 5, "file_names": ["clip/00004.jpg", "clip/00006.jpg"]}],
        "annotations": [{"id": 3, "video_id": 5, "segmentations": [full, None]}],
    }
    return json.dumps(document | changes).encode()


def test_foreign_youtube_vis_takes_names_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(coco())
    source = open_source(str(tmp_path / "x.json"), Storage())
    assert list(source.masks) == ["clip"]
    assert source.read("clip", None) == {3: {4: Rle("02", 1, 2), 6: Rle("2", 1, 2)}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"no json", "wanted YouTube-VIS, or COCO with videos"),
        (b"[]", "wanted YouTube-VIS, or COCO with videos"),
        (coco(videos=[]), "KeyError: 5"),
        (coco(annotations=[{"id": 1, "video_id": 5, "segmentations": [None]}]), "ValueError"),
        (
            coco(annotations=[{"id": 1, "video_id": 5, "segmentations": [[[1, 2]], None]}]),
            "polygons",
        ),
    ],
)
def test_json_of_another_form_is_refused(tmp_path: Path, document: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(document)
    with pytest.raises(MaskSourceError, match=message):
        source = open_source(str(tmp_path / "x.json"), Storage())
        source.read("clip", None)


def test_what_is_no_dataset_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(MaskSourceError, match="coco, ytvis, davis, mose, sav"):
        open_source(str(tmp_path), Storage())
    with pytest.raises(MaskSourceError, match="wanted a local folder"):
        open_source(str(tmp_path / "absent"), Storage(), kind="davis")
