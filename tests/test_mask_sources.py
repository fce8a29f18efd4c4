"""Folders of PNGs, SA-V files and rows become the same mapping: video, object, frame, mask."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam2model import rle
from workflows.mask_sources import (
    MaskSourceError,
    PngFolder,
    Rle,
    SavJson,
    VideoMasks,
    masks_from_rows,
    read_sav_json,
)


def save_png(path: Path, labels: Any, mode: str = "P") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(labels, dtype=np.uint8), mode="L")
    if mode == "P":
        image.putpalette([value for label in range(256) for value in (label, 0, 255 - label)])
    else:
        image = image.convert(mode)
    image.save(path)


def areas(video: VideoMasks) -> dict[int, dict[int, int]]:
    return {
        object_id: {frame_index: rle.area(mask.counts) for frame_index, mask in frames.items()}
        for object_id, frames in video.items()
    }


def test_label_maps_give_every_object_a_mask_on_every_frame(tmp_path: Path) -> None:
    save_png(tmp_path / "bear/00000.png", [[1, 1, 0], [0, 0, 0]])
    save_png(tmp_path / "bear/00001.png", [[1, 0, 0], [7, 7, 7]])
    source = PngFolder(tmp_path)
    assert list(source) == ["bear"]
    assert areas(source["bear"]) == {1: {0: 2, 1: 1}, 7: {0: 0, 1: 3}}
    mask = source["bear"][7][1]
    assert rle.decode(mask.counts, mask.height, mask.width).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_frames_are_numbered_by_their_names(tmp_path: Path) -> None:
    for name in ("00008", "00000", "00004"):
        save_png(tmp_path / "v" / f"{name}.png", [[1, 0]])
    assert list(PngFolder(tmp_path)["v"][1]) == [0, 4, 8]


def test_void_pixels_are_background(tmp_path: Path) -> None:
    save_png(tmp_path / "v/00000.png", [[1, 255, 255]])
    assert areas(PngFolder(tmp_path)["v"]) == {1: {0: 1}}


def test_an_id_missing_on_the_first_frame_below_its_highest_is_an_object(tmp_path: Path) -> None:
    save_png(tmp_path / "v/00000.png", [[1, 3, 0]])
    assert areas(PngFolder(tmp_path)["v"]) == {1: {0: 1}, 2: {0: 0}, 3: {0: 1}}


def test_a_video_without_objects_has_none(tmp_path: Path) -> None:
    save_png(tmp_path / "v/00000.png", [[0, 0]])
    assert PngFolder(tmp_path)["v"] == {}


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_folders_of_one_object_are_read_as_in_sav(tmp_path: Path, mode: str) -> None:
    save_png(tmp_path / "sav_1/000/00000.png", [[255, 0, 0]], mode)
    save_png(tmp_path / "sav_1/000/00004.png", [[0, 0, 0]], mode)
    save_png(tmp_path / "sav_1/012/00004.png", [[255, 255, 0]], mode)
    assert areas(PngFolder(tmp_path)["sav_1"]) == {0: {0: 1, 4: 0}, 12: {4: 2}}


def test_hidden_folders_are_no_videos(tmp_path: Path) -> None:
    save_png(tmp_path / "v/00000.png", [[1]])
    (tmp_path / ".thumbnails").mkdir()
    assert list(PngFolder(tmp_path)) == ["v"]


def test_a_video_is_read_only_when_asked_for(tmp_path: Path) -> None:
    save_png(tmp_path / "good/00000.png", [[1]])
    (tmp_path / "broken").mkdir()
    source = PngFolder(tmp_path)
    assert len(source) == 2
    assert areas(source["good"]) == {1: {0: 1}}
    with pytest.raises(MaskSourceError, match="broken: no PNG files"):
        source["broken"]
    assert "absent" not in source


def test_a_picture_in_colours_is_refused(tmp_path: Path) -> None:
    save_png(tmp_path / "v/00000.png", [[1]], "RGB")
    with pytest.raises(MaskSourceError, match=r"00000.png: pixels are RGB; wanted palette"):
        PngFolder(tmp_path)["v"]


def test_a_damaged_png_is_named(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v/00000.png").write_bytes(b"not a picture")
    with pytest.raises(MaskSourceError, match="00000.png: cannot be read as an image"):
        PngFolder(tmp_path)["v"]


def test_a_name_without_a_frame_number_is_refused(tmp_path: Path) -> None:
    save_png(tmp_path / "v/first.png", [[1]])
    with pytest.raises(MaskSourceError, match="first.png: wanted a number"):
        PngFolder(tmp_path)["v"]


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskSourceError, match="wanted a folder with a folder of PNGs"):
        PngFolder(tmp_path)
    with pytest.raises(MaskSourceError, match="absent: wanted a folder"):
        PngFolder(tmp_path / "absent")


def sav_video(**changes: Any) -> dict[str, Any]:
    full, empty = {"size": [1, 2], "counts": "02"}, {"size": [1, 2], "counts": "2"}
    return {
        "video_id": "v",
        "masklet_id": [0, 5],
        "masklet": [[full, empty], [full, full]],
    } | changes


def test_sav_entries_describe_every_fourth_frame(tmp_path: Path) -> None:
    (tmp_path / "v_manual.json").write_text(json.dumps(sav_video()))
    (tmp_path / "v_auto.json").write_text(json.dumps(sav_video(masklet_id=[8, 9])))
    assert areas(SavJson(tmp_path)["v"]) == {0: {0: 2, 4: 2}, 5: {0: 0, 4: 2}}
    assert list(SavJson(tmp_path, kind="auto")["v"]) == [8, 9]
    assert list(SavJson(tmp_path, frames_per_annotation=1)["v"][0]) == [0, 1]
    assert list(SavJson(tmp_path)) == ["v"]


def test_sav_masks_of_a_real_video_are_read(real_data: Callable[[str], Path]) -> None:
    video = read_sav_json(real_data("sav_000001_manual.json"))
    frames = {tuple(masks) for masks in video.values()}
    assert frames == {tuple(range(0, 484, 4))}
    assert all(sum(areas({0: masks})[0].values()) > 0 for masks in video.values())
    assert {(m.height, m.width) for masks in video.values() for m in masks.values()} == {(848, 480)}


@pytest.mark.parametrize(
    "damage",
    [{"masklet_id": [0]}, {"masklet": [[None, None]]}, {"masklet": None}, {"masklet_id": ["x"]}],
)
def test_a_sav_file_of_another_form_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "v_manual.json"
    path.write_text(json.dumps(sav_video(**damage)))
    with pytest.raises(MaskSourceError, match="v_manual.json: .*wanted SA-V JSON"):
        read_sav_json(path)


def test_a_folder_without_sav_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskSourceError, match="wanted a folder with files named VIDEO_auto.json"):
        SavJson(tmp_path, kind="auto")


def row(object_id: int, frame_index: int, counts: str = "02") -> dict[str, Any]:
    return {
        "video_id": "v",
        "object_id": object_id,
        "frame_index": frame_index,
        "counts": counts,
        "height": 1,
        "width": 2,
        "revision": 3,
    }


def test_rows_are_gathered_by_video_object_and_frame() -> None:
    masks = masks_from_rows(
        iter([row(0, 0), row(0, 1, "2"), row(4, 1), row(1, 0) | {"video_id": "w"}])
    )
    assert masks == {
        "v": {0: {0: Rle("02", 1, 2), 1: Rle("2", 1, 2)}, 4: {1: Rle("02", 1, 2)}},
        "w": {1: {0: Rle("02", 1, 2)}},
    }


def test_rows_of_two_revisions_are_refused() -> None:
    with pytest.raises(MaskSourceError, match="v: object 0 has two masks on frame 7"):
        masks_from_rows([row(0, 7), row(0, 7, "2")])
