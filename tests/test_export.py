"""An export is whole, says what it lost, goes on where it stopped and follows the labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled import HEIGHT, WIDTH, blank, label, relabel, scene
from PIL import Image
from pycocotools.coco import COCO
from videos import frame_index_from_pixels, write_moving_square

from workflows.export import (
    ExportPlan,
    ExportSummary,
    Outcome,
    VideoResult,
    export_videos,
    finish_export,
    plan_export,
)
from workflows.export_coco import Coco
from workflows.export_format import ExportError, ExportFormat, Output, folder_name
from workflows.export_youtube_vis import YoutubeVis
from workflows.labelled_videos import Selection, VideoObjects
from workflows.query import Dataset, QueryError
from workflows.results import DatasetWriter
from workflows.rows import Review
from workflows.storage import Storage

CATEGORIES = {1: "wheel", 2: "ball", 7: None}


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "dataset")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def export(
    root: str,
    out: Path,
    export_format: ExportFormat,
    selection: Selection | None = None,
    **options: Any,
) -> tuple[ExportSummary, list[VideoResult]]:
    dataset = Dataset(root, Storage())
    plan, videos = plan_export(
        dataset, str(out), export_format, selection or Selection(), **options
    )
    results = list(export_videos(plan, videos))
    return finish_export(plan, videos, results), results


def twice_as_large(objects: Any) -> Any:
    doubled = np.ones((2, 2), bool)
    return {o: {t: np.kron(m, doubled) for t, m in f.items()} for o, f in objects.items()}


def outcomes(results: list[VideoResult]) -> dict[str, Outcome]:
    return {result.video_id: result.outcome for result in results}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of an export but its summary, which counts what was skipped."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "export.json"
    }


def test_a_second_run_skips_what_did_not_change(root: str, out: Path) -> None:
    label(root, {"a": scene(), "b": scene(4)})
    first, results = export(root, out, Coco())
    assert outcomes(results) == {"a": Outcome.EXPORTED, "b": Outcome.EXPORTED}
    before = content(out)
    second, results = export(root, out, Coco())
    assert outcomes(results) == {"a": Outcome.SKIPPED, "b": Outcome.SKIPPED}
    assert content(out) == before
    assert second.account == first.account and second.skipped == 2


def test_a_changed_video_is_exported_again_and_the_others_are_not(root: str, out: Path) -> None:
    label(root, {"a": scene(), "b": scene()})
    export(root, out, Coco())
    relabel(root, "b", {7: {0: blank(), 3: blank()}})
    _, results = export(root, out, Coco())
    assert outcomes(results) == {"a": Outcome.SKIPPED, "b": Outcome.EXPORTED}
    coco = COCO(str(out / "annotations/instances_train.json"))
    tracks = {(a["image_id"] > 6, a["track_id"]) for a in coco.dataset["annotations"]}
    assert tracks == {(False, 1), (False, 2), (False, 7), (True, 1), (True, 2)}


def test_an_export_cut_short_goes_on_and_ends_the_same(
    root: str, out: Path, tmp_path: Path
) -> None:
    label(root, {"a": scene(), "b": scene(), "c": scene()})
    plan, videos = plan_export(Dataset(root), str(out), YoutubeVis(), Selection())
    for _ in zip(range(2), export_videos(plan, videos), strict=False):
        pass
    assert not (out / "export.json").exists()
    assert not (out / "train/instances.json").exists()
    _, results = export(root, out, YoutubeVis())
    assert outcomes(results)["c"] == Outcome.EXPORTED
    assert Outcome.SKIPPED in outcomes(results).values()
    export(root, tmp_path / "whole", YoutubeVis())
    assert content(out) == content(tmp_path / "whole")


def test_a_marker_is_written_after_everything_else_of_its_video(
    root: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(root, {"a": scene()})
    plan, videos = plan_export(Dataset(root), str(out), Coco(), Selection())
    order: list[str] = []
    put = Output.put
    monkeypatch.setattr(Output, "put", lambda s, p, d: (order.append(p), put(s, p, d))[1])
    list(export_videos(plan, videos))
    assert order[-1] == ".maskmill/videos/a.json" and len(order) > 1


def test_videos_no_longer_selected_leave_the_export(root: str, out: Path) -> None:
    label(root, {"a": scene(), "b": scene()})
    export(root, out, Coco())
    summary, _ = export(root, out, Coco(), Selection(video_ids=("b",)))
    assert summary.removed == 1
    coco = COCO(str(out / "annotations/instances_train.json"))
    assert [video["name"] for video in coco.dataset["videos"]] == ["b"]
    assert not [name for name in content(out) if "/a.json" in name]


def test_one_folder_holds_one_kind_of_export(root: str, out: Path) -> None:
    label(root, {"a": scene()})
    export(root, out, Coco())
    before = content(out)
    with pytest.raises(ExportError, match="format was coco, now ytvis"):
        export(root, out, YoutubeVis())
    with pytest.raises(ExportError, match="every was 1, now 2"):
        export(root, out, Coco(), every=2)
    assert content(out) == before


def test_a_bad_video_is_reported_and_the_others_are_exported(root: str, out: Path) -> None:
    label(root, {"a": scene()}, video_uri=str(out / "absent.mp4"))
    summary, results = export(root, out, Coco(), frames="jpeg")
    assert outcomes(results) == {"a": Outcome.FAILED}
    assert "NotFound" in summary.failures["a"]
    assert json.loads((out / "export.json").read_text())["videos_failed"] == 1
    assert not (out / ".maskmill/videos/a.json").exists()


def test_frames_are_written_where_the_labels_name_them(
    root: str, out: Path, tmp_path: Path
) -> None:
    path = write_moving_square(tmp_path / "v.mp4", 6, HEIGHT * 2, WIDTH * 2)
    label(root, {"v": twice_as_large(scene())}, video_uri=str(path))
    summary, _ = export(root, out, Coco(), frames="jpeg", every=2)
    assert not summary.failures
    coco = COCO(str(out / "annotations/instances_train.json"))
    names = [image["file_name"] for image in coco.dataset["images"]]
    assert names == ["v/00000.jpg", "v/00002.jpg", "v/00004.jpg"]
    written = sorted(str(path.relative_to(out / "train")) for path in out.rglob("*.jpg"))
    assert written == names
    with Image.open(out / "train" / names[2]) as picture:
        assert frame_index_from_pixels(np.asarray(picture)) == 4


@pytest.mark.parametrize(
    ("size", "frames", "message"),
    [((HEIGHT, WIDTH), 6, "wanted the masks'"), ((HEIGHT * 2, WIDTH * 2), 4, "4 frames; wanted")],
)
def test_frames_of_another_video_are_refused(
    root: str, out: Path, tmp_path: Path, size: tuple[int, int], frames: int, message: str
) -> None:
    path = write_moving_square(tmp_path / "v.mp4", frames, *size)
    label(root, {"v": twice_as_large(scene())}, video_uri=str(path))
    summary, _ = export(root, out, Coco(), frames="jpeg")
    assert message in summary.failures["v"]


def test_a_condition_in_sql_selects_objects(root: str, out: Path) -> None:
    label(root, {"a": scene(), "b": scene()}, categories=CATEGORIES)
    export(root, out, Coco(), Selection(where="category = 'ball' OR video_id = 'b'"))
    coco = COCO(str(out / "annotations/instances_train.json"))
    seen = {(a["image_id"] > 6, a["track_id"]) for a in coco.dataset["annotations"]}
    assert seen == {(False, 2), (True, 1), (True, 2), (True, 7)}


def test_a_condition_cannot_write(root: str, out: Path) -> None:
    label(root, {"a": scene()})
    with pytest.raises(QueryError):
        export(root, out, Coco(), Selection(where="true); COPY videos TO 'x.csv'; SELECT (1"))
    assert not out.exists()


def test_rejected_objects_stay_out_unless_wanted(root: str, out: Path, tmp_path: Path) -> None:
    label(root, {"a": scene()})
    DatasetWriter(Storage(), root).review("a", 1, Review.REJECTED, "me", [2])
    summary, _ = export(root, out, Coco())
    assert summary.account.objects == 2
    summary, _ = export(root, tmp_path / "all", Coco(), Selection(reviews=tuple(Review)))
    assert summary.account.objects == 3


def test_an_earlier_state_can_be_exported(root: str, out: Path, tmp_path: Path) -> None:
    label(root, {"a": scene()})
    export(root, tmp_path / "before", Coco())
    relabel(root, "a", {1: {0: blank()}})
    export(root, out, Coco(), Selection(at=1))
    assert content(out) == content(tmp_path / "before")


def test_labels_committed_while_an_export_runs_wait_for_the_next(root: str, out: Path) -> None:
    label(root, {"a": scene()})
    plan, videos = plan_export(Dataset(root), str(out), Coco(), Selection())
    relabel(root, "a", {1: {0: blank()}})
    (result,) = export_videos(plan, videos)
    assert result.account is not None and result.account.masks == 6 + 5 + 3


def test_categories_keep_their_numbers_in_a_growing_export(root: str, out: Path) -> None:
    label(root, {"b": scene()}, categories={1: "wheel", 2: "ball", 7: "dot"})
    export(root, out, Coco())
    relabel(root, "b", {1: {0: blank()}}, categories={1: "apple"})
    export(root, out, Coco())
    coco = COCO(str(out / "annotations/instances_train.json"))
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert names == {1: "ball", 2: "dot", 3: "wheel", 4: "apple"}


def test_the_account_counts_the_frames_written_and_what_nobody_labelled(
    root: str, out: Path
) -> None:
    label(root, {"a": scene()}, num_frames=8)
    summary, _ = export(root, out, Coco(), every=2)
    areas = [mask.sum() for o in scene().values() for t, mask in o.items() if t % 2 == 0]
    account = summary.account
    assert (account.objects, account.frames) == (3, 4)
    assert (account.masks, account.area_px) == (sum(a > 0 for a in areas), sum(areas))
    # frame 6 of all three, frames 0 and 2 of the third
    assert account.notes["object frames not labelled, written as absent"] == 5


def test_videos_jsonl_ties_names_to_ids(root: str, out: Path) -> None:
    label(root, {"cam 1/käse": scene()}, video_uri="s3://b/v.mp4")
    export(root, out, Coco())
    (line,) = (out / "videos.jsonl").read_text().splitlines()
    about = json.loads(line)
    assert (about["video_id"], about["folder"]) == ("cam 1/käse", folder_name("cam 1/käse"))
    assert (about["video_uri"], about["object_ids"]) == ("s3://b/v.mp4", [1, 2, 7])


@pytest.mark.parametrize("video_id", ["../x", ".", "..", "a/b", "a\\b", "ü" * 300, ".hidden", "%"])
def test_a_name_from_a_stranger_stays_a_single_visible_folder(video_id: str) -> None:
    name = folder_name(video_id)
    assert not set(name) & set("/\\") and name[0] != "." and len(name) <= 200


def test_different_videos_have_different_folders() -> None:
    ids = ["a", "a/b", "a%2Fb", "a b", "ü" * 300, "ü" * 301, "ü" * 300 + "a", ".a", "%2Ea"]
    assert len({folder_name(video_id) for video_id in ids}) == len(ids)
    assert folder_name("DAVIS_bear-2.0") == "DAVIS_bear-2.0"


def test_a_plan_travels_to_another_process(root: str, out: Path) -> None:
    import pickle

    label(root, {"a": scene()})
    plan, videos = plan_export(Dataset(root), str(out), Coco(), Selection())
    again: tuple[ExportPlan, list[VideoObjects]] = pickle.loads(pickle.dumps((plan, videos)))
    assert again == (plan, videos)
