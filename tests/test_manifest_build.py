"""Manifests built from flat tables, COCO and SA-V JSON, and folders of masks and frames."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.manifest import main
from sam2model import rle
from sam2model.video import Video
from workflows.manifest import ManifestError, read_manifest
from workflows.manifest_build import BuildOptions, build_manifest, source_kind
from workflows.manifest_check import ManifestCheck, probe_with
from workflows.manifest_sources import TABLE_COLUMNS, TAG
from workflows.storage import Storage
from workflows.video_files import EncodeFrames

Row = dict[str, Any]
Mask = npt.NDArray[np.bool_]
HEIGHT, WIDTH = 48, 64


def square(top: int, left: int, side: int = 8) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def mask_row(mask: Mask) -> Row:
    return {"size": [*mask.shape], "counts": rle.encode_mask(mask)}


def build(source: Path | str, output: Path, **options: Any) -> list[Row]:
    build_manifest(str(source), str(output), Storage(), BuildOptions(**options))
    assert [str(f) for f in ManifestCheck(str(output), Storage()).faults()] == []
    rows: list[Row] = pa.Table.from_batches(read_manifest(str(output), Storage())).to_pylist()
    return rows


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "built/m.parquet"


# Flat tables

TABLE = """\
video_id,video_uri,object_id,frame_index,x,y,positive,x0,y0,x1,y1,category,priority,tags.site
007,b/007.mp4,1,0,10,20,1,,,,,cup,5,01
007,b/007.mp4,1,0,12.5,21,0,1,2,30,40,cup,,01
a,s3://bucket/a.mp4,3,7,,,,1,2,30,40,,,
007,b/007.mp4,2,4,5,6,,,,,,,,
"""


def as_csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def as_jsonl(path: Path, text: str) -> Path:
    header, *lines = text.splitlines()
    texts = {"video_id", "video_uri", "category", "tags.site"}
    with path.open("w") as file:
        for line in lines:
            cells = zip(header.split(","), line.split(","), strict=True)
            row: Row = {name: cell for name, cell in cells if cell}
            row |= {name: float(cell) for name, cell in row.items() if name not in texts}
            row |= {n: int(row[n]) for n in ("object_id", "frame_index", "priority") if n in row}
            row |= {"positive": bool(row["positive"])} if "positive" in row else {}
            file.write(json.dumps(row) + "\n")
    return path


def as_parquet(path: Path, text: str) -> Path:
    """As pandas writes a CSV: 64-bit numbers, ids kept as text."""
    kinds = pa.csv.ConvertOptions(
        column_types={"video_id": pa.string(), "tags.site": pa.string()},
        strings_can_be_null=True,
        null_values=[""],
    )
    pq.write_table(pa.csv.read_csv(pa.BufferReader(text.encode()), convert_options=kinds), path)
    return path


WRITERS: dict[str, Callable[[Path, str], Path]] = {
    "csv": as_csv,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_becomes_a_row_a_video(kind: str, tmp_path: Path, output: Path) -> None:
    table = WRITERS[kind](tmp_path / f"prompts.{kind}", TABLE)
    first, second = build(table, output)
    assert (first["video_id"], second["video_id"]) == ("007", "a")
    assert first["video_uri"] == str(tmp_path / "b/007.mp4")
    assert second["video_uri"] == "s3://bucket/a.mp4"
    assert (first["priority"], first["tags"]) == (5, [("site", "01")])
    assert first["prompts"] == [
        {
            "object_id": 1,
            "frame_index": 0,
            "points": [
                {"x": 10.0, "y": 20.0, "positive": True},
                {"x": 12.5, "y": 21.0, "positive": False},
            ],
            "box": {"x0": 1.0, "y0": 2.0, "x1": 30.0, "y1": 40.0},
            "mask": None,
            "category": "cup",
        },
        {
            "object_id": 2,
            "frame_index": 4,
            "points": [{"x": 5.0, "y": 6.0, "positive": True}],
            "box": None,
            "mask": None,
            "category": None,
        },
    ]
    assert second["prompts"][0]["box"] == {"x0": 1.0, "y0": 2.0, "x1": 30.0, "y1": 40.0}


def test_a_table_of_masks_keeps_their_run_lengths(tmp_path: Path, output: Path) -> None:
    mask = mask_row(square(3, 5))
    row = {"video_id": "v", "video_uri": "v.mp4", "object_id": 1, "frame_index": 2}
    row |= {"mask_height": HEIGHT, "mask_width": WIDTH, "mask_counts": mask["counts"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    (built,) = build(tmp_path / "t.parquet", output)
    assert built["prompts"][0]["mask"] == mask


def test_videos_are_found_by_their_ids_where_a_table_names_no_files(
    tmp_path: Path, output: Path
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/v.mov").touch()
    table = as_csv(tmp_path / "t.csv", "video_id,object_id,frame_index,x,y\nv,1,0,1,1\n")
    (row,) = build(table, output, videos_root=str(tmp_path / "videos"))
    assert row["video_uri"] == str(tmp_path / "videos/v.mov")
    with pytest.raises(ManifestError, match=r"v: no video in .*; wanted one of v\.mp4, v\.mov"):
        build(table, output, videos_root=str(tmp_path))


def test_a_table_and_its_videos_may_lie_in_an_object_store() -> None:
    storage = Storage()
    table = b"video_id,object_id,frame_index,x,y\nv,1,0,1,1\n"
    storage.put("memory://set/prompts.csv", table)
    storage.put("memory://set/videos/v.mp4", b"")
    options = BuildOptions(videos_root="memory://set/videos")
    build_manifest("memory://set/prompts.csv", "memory://set/m.parquet", storage, options)
    (batch,) = read_manifest("memory://set/m.parquet", storage)
    assert batch["video_uri"].to_pylist() == ["memory://set/videos/v.mp4"]


HEAD = "video_id,video_uri,object_id,frame_index"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (f"{HEAD},px\nv,v.mp4,1,0,1", "unknown column px; choices are video_id, video_uri, obj"),
        ("video_id,video_uri,frame_index\nv,v.mp4,0", "no column object_id; wanted video_id, o"),
        (f"{HEAD},x,y\nv,v.mp4,1,0,1,1\n,v.mp4,1,0,1,1", "row 1: video_id is not given"),
        (
            f"{HEAD},x,y\nv,v.mp4,1,0,1,1\nv,v.mp4,1,zero,1,1",
            "row 1: frame_index: got 'zero'; wanted int32",
        ),
        (f"{HEAD},x,y\nv,v.mp4,1.5,0,1,1", "row 0: object_id: got '1.5'; wanted int32"),
        (f"{HEAD},x,y\nv,v.mp4,1,0,1,", r"row 0 \('v'\): y not given; wanted all of"),
        (f"{HEAD},x0,y0,x1\nv,v.mp4,1,0,1,1,2", r"row 0 \('v'\): y1 not given; wanted all of"),
        (
            f"{HEAD},x0,y0,x1,y1\nv,v.mp4,1,0,1,1,2,2\nv,v.mp4,1,0,1,1,2,3",
            r"row 0 \('v'\): 2 boxes; wanted one a prompt",
        ),
        (
            f"{HEAD},x,y\nv,v.mp4,1,0,1,1\nv,w.mp4,1,0,1,2",
            r"row 1 \('v'\): video_uri is 'w.mp4', but 'v.mp4' in row 0",
        ),
        (
            f"{HEAD},x,y,category\nv,v.mp4,1,0,1,1,cat\nv,v.mp4,1,0,1,2,dog",
            r"row 1 \('v'\): category is 'dog', but 'cat' in row 0",
        ),
        (f"{HEAD},x,y\nv,v.mp4,1,0,,", r"row 0 \('v'\): prompts\[0\]: empty; wanted points, a"),
        (f"{HEAD},x,y\nv,v.mp4,1,0,nan,1", r"row 0 \('v'\): prompts\[0\]\.points\[0\]\.x: got nan"),
        (f"{HEAD}\nv,v.mp4", "cannot be read as a table: .*Expected 4 columns, got 2"),
    ],
)
def test_a_table_with_a_fault_is_refused_by_row_and_nothing_is_written(
    table: str, message: str, tmp_path: Path, output: Path
) -> None:
    with pytest.raises(ManifestError, match=message):
        build(as_csv(tmp_path / "t.csv", table), output)
    assert not output.exists()


# Folders of masks


def frames_of(count: int) -> list[npt.NDArray[np.uint8]]:
    """A smooth picture that moves: what JPEG and H.264 keep well."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return [
        np.stack([x * 3 + i * 9, y * 4, (x + y) * 2 + i * 9], axis=-1).clip(0, 255).astype(np.uint8)
        for i in range(count)
    ]


def write_frames(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name, frame in zip(names, frames_of(len(names)), strict=True):
        Image.fromarray(frame).save(folder / name, quality=95)


def write_labels(path: Path, labels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels, mode="P")
    image.putpalette([value for i in range(256) for value in (i, 255 - i, i)])
    image.save(path)


def labels_of(*masks: Mask, void: Mask | None = None) -> npt.NDArray[np.uint8]:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for object_id, mask in enumerate(masks, start=1):
        labels[mask] = object_id
    if void is not None:
        labels[void] = 255
    return labels


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    root = tmp_path / "DAVIS"
    names = [f"{i:05d}.jpg" for i in range(5)]
    for video_id, first in (("bear", square(0, 0)), ("camel", square(9, 9))):
        write_frames(root / "JPEGImages/480p" / video_id, names)
        labels = labels_of(first, square(30, 40), void=square(20, 20))
        write_labels(root / "Annotations/480p" / video_id / "00000.png", labels)
    return root


def test_davis_becomes_first_frame_masks_over_encoded_videos(
    davis: Path, tmp_path: Path, output: Path
) -> None:
    rows = build(davis, output, encode=EncodeFrames(tmp_path / "encoded"))
    assert [row["video_id"] for row in rows] == ["bear", "camel"]
    assert rows[1]["video_uri"] == str(tmp_path / "encoded/camel.mp4")
    assert [(p["object_id"], p["frame_index"]) for p in rows[1]["prompts"]] == [(1, 0), (2, 0)]
    assert rows[1]["prompts"][0]["mask"] == mask_row(square(9, 9))
    faults = ManifestCheck(str(output), Storage(), probe_with(Storage())).faults()
    assert [str(fault) for fault in faults] == []


def test_encoded_frames_are_near_lossless_in_number_order_and_colour(
    davis: Path, tmp_path: Path, output: Path
) -> None:
    rows = build(davis, output, encode=EncodeFrames(tmp_path / "encoded"))
    with Video(Path(rows[0]["video_uri"]), name="bear") as video:
        decoded = [frame.rgb.astype(np.int16) for frame in video.frames()]
    frames = sorted((davis / "JPEGImages/480p/bear").iterdir())
    assert len(decoded) == len(frames) == 5
    for got, path in zip(decoded, frames, strict=True):
        difference = np.abs(got - np.asarray(Image.open(path), dtype=np.int16))
        assert difference.mean() < 2, path.name  # levels of 255
    next_frame = np.asarray(Image.open(frames[1]), dtype=np.int16)
    assert np.abs(decoded[0] - next_frame).mean() > 4


def test_frames_are_encoded_once(davis: Path, tmp_path: Path, output: Path) -> None:
    encode = EncodeFrames(tmp_path / "encoded")
    build(davis, output, encode=encode)
    before = {path: path.stat().st_mtime_ns for path in encode.folder.iterdir()}
    assert len(before) == 2
    build(davis, output, encode=encode)
    assert {path: path.stat().st_mtime_ns for path in encode.folder.iterdir()} == before


def test_folders_of_frames_need_the_option_that_encodes_them(davis: Path, output: Path) -> None:
    with pytest.raises(ManifestError, match=r"bear: .* holds 5 frames.*wanted --encode-frames DIR"):
        build(davis, output)
    assert not output.exists()


def test_video_files_are_preferred_to_frames(davis: Path, tmp_path: Path, output: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("bear.mp4", "camel.webm"):
        (tmp_path / "videos" / name).touch()
    rows = build(davis, output, videos_root=str(tmp_path / "videos"))
    assert [Path(row["video_uri"]).name for row in rows] == ["bear.mp4", "camel.webm"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "00003.jpg").write_bytes(b"no image"), "cannot be read as an im"),
        (lambda folder: (folder / "last.jpg").touch(), "last.jpg: wanted a number as name"),
        (lambda folder: (folder / "3.jpg").touch(), "a second frame 3 in"),
        (
            lambda folder: Image.new("RGB", (WIDTH, 50)).save(folder / "00004.jpg"),
            "50×64 px .*; wanted 48×64, the size of the first frame",
        ),
        (
            lambda folder: Image.new("RGB", (63, 48)).save(folder / "00000.jpg"),
            "48×63 px .*; wanted even numbers",
        ),
    ],
)
def test_frames_that_make_no_video_are_refused(
    spoil: Callable[[Path], object], message: str, davis: Path, tmp_path: Path, output: Path
) -> None:
    spoil(davis / "JPEGImages/480p/bear")
    with pytest.raises(ManifestError, match=message):
        build(davis, output, encode=EncodeFrames(tmp_path / "encoded"))
    assert not output.exists()
    assert not list((tmp_path / "encoded").glob("*"))


def test_mose_prompts_an_object_where_it_first_appears_and_counts_frames_not_names(
    tmp_path: Path, output: Path
) -> None:
    root = tmp_path / "MOSE"
    write_frames(root / "JPEGImages/v", [f"{i:05d}.jpg" for i in (0, 5, 10, 15)])
    write_labels(root / "Annotations/v/00000.png", labels_of(square(0, 0)))
    write_labels(root / "Annotations/v/00010.png", labels_of(square(1, 1), square(20, 20)))
    (row,) = build(root, output, encode=EncodeFrames(tmp_path / "encoded"))
    assert [(p["object_id"], p["frame_index"]) for p in row["prompts"]] == [(1, 0), (2, 2)]
    assert row["prompts"][1]["mask"] == mask_row(square(20, 20))


def test_a_mask_of_a_frame_that_is_missing_is_refused(tmp_path: Path, output: Path) -> None:
    root = tmp_path / "MOSE"
    write_frames(root / "JPEGImages/v", ["00000.jpg", "00005.jpg"])
    write_labels(root / "Annotations/v/00001.png", labels_of(square(0, 0)))
    with pytest.raises(ManifestError, match="no frame is named 1"):
        build(root, output, encode=EncodeFrames(tmp_path / "encoded"))


def test_videos_without_any_object_are_left_out_by_name(
    davis: Path, tmp_path: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_labels(davis / "Annotations/480p/bear/00000.png", labels_of())
    options = BuildOptions(encode=EncodeFrames(tmp_path / "encoded"))
    summary = build_manifest(str(davis), str(output), Storage(), options)
    assert (summary.videos, summary.videos_without_prompts) == (1, ["bear"])
    assert "bear: nothing is annotated: left out" in caplog.text


def test_sav_val_reads_a_folder_of_binary_masks_an_object(tmp_path: Path, output: Path) -> None:
    root = tmp_path / "sav_val"
    write_frames(root / "JPEGImages_24fps/sav_1", [f"{i:05d}.jpg" for i in range(9)])
    for object_id, frame, mask in (
        (0, 0, square(0, 0)),
        (3, 0, square(0, 0, 0)),
        (3, 8, square(9, 9)),
    ):
        path = root / f"Annotations_6fps/sav_1/{object_id:03d}/{frame:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    (row,) = build(root, output, encode=EncodeFrames(tmp_path / "encoded"))
    assert [(p["object_id"], p["frame_index"]) for p in row["prompts"]] == [(0, 0), (3, 8)]


# SA-V JSON


def write_sav(folder: Path, masklets: list[list[Mask]], ids: list[int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [[mask_row(mask) for mask in entry] for entry in masklets]
    path = folder / "sav_1_manual.json"
    path.write_text(json.dumps({"video_id": "sav_1", "masklet": entries, "masklet_id": ids}))
    return path


@pytest.mark.parametrize("what", ["file", "folder"])
def test_sav_json_prompts_at_the_frame_of_the_first_mask_that_is_not_empty(
    what: str, tmp_path: Path, output: Path
) -> None:
    empty = square(0, 0, 0)
    masklets = [[square(1, 1), empty, empty], [square(2, 2), empty, square(5, 5)]]
    path = write_sav(tmp_path / "set", masklets, [0, 1, 7])
    (tmp_path / "set/sav_1.mp4").touch()
    (row,) = build(path if what == "file" else path.parent, output)
    assert (row["video_id"], row["video_uri"]) == ("sav_1", str(tmp_path / "set/sav_1.mp4"))
    assert [(p["object_id"], p["frame_index"]) for p in row["prompts"]] == [(0, 0), (7, 4)]
    (row,) = build(path, output, frames_per_annotation=1)
    assert [p["frame_index"] for p in row["prompts"]] == [0, 1]


def test_real_sav_masklets_become_prompts(
    real_data: Callable[[str], Path], tmp_path: Path, output: Path
) -> None:
    path = real_data("sav_000001_manual.json")
    (tmp_path / "sav_000001.mp4").touch()
    (row,) = build(path, output, videos_root=str(tmp_path))
    document = json.loads(path.read_text())
    assert [prompt["object_id"] for prompt in row["prompts"]] == document["masklet_id"]
    for place, prompt in enumerate(row["prompts"]):
        entry = document["masklet"][prompt["frame_index"] // 4][place]
        assert prompt["mask"] == entry
        # The data set's own statement of when the object appears, in frames of annotation.
        assert prompt["frame_index"] // 4 == document["masklet_first_appeared_frame"][place]


# COCO


def uncompressed(mask: Mask) -> Row:
    counts = rle.string_to_counts(rle.encode_mask(mask)).tolist()
    return {"size": [*mask.shape], "counts": counts}


@pytest.fixture
def ytvis(tmp_path: Path) -> Path:
    document = {
        "videos": [
            {"id": 11, "file_names": ["vid/00000.jpg", "vid/00005.jpg", "vid/00010.jpg"]},
            {"id": 12, "file_names": ["other/00000.jpg"]},
        ],
        "categories": [{"id": 3, "name": "fox"}],
        "annotations": [
            {
                "id": 501,
                "video_id": 11,
                "category_id": 3,
                "segmentations": [
                    mask_row(square(0, 0, 0)),  # nothing, said with a mask
                    uncompressed(square(1, 1)),
                    mask_row(square(2, 2)),
                ],
                "bboxes": [[0, 0, 0, 0], [1, 1, 8, 8], [2, 2, 8, 8]],
            },
            {
                "id": 502,
                "video_id": 11,
                "category_id": 3,
                "segmentations": [None, None, mask_row(square(3, 3))],
                "bboxes": [None, None, [3, 3, 8, 8]],
            },
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    for name in ("vid.mp4", "other.mp4"):
        (tmp_path / name).touch()
    return path


def test_youtube_vis_prompts_at_the_number_in_the_frame_name(ytvis: Path, output: Path) -> None:
    (row,) = build(ytvis, output)
    assert (row["video_id"], row["tags"]) == ("vid", [("source_id", "11")])
    assert row["video_uri"] == str(ytvis.parent / "vid.mp4")
    first, second = row["prompts"]
    assert (first["object_id"], first["frame_index"], first["category"]) == (501, 5, "fox")
    assert (second["object_id"], second["frame_index"]) == (502, 10)
    assert first["mask"] == mask_row(square(1, 1))


def test_youtube_vis_counts_frames_where_it_encodes_them(
    ytvis: Path, tmp_path: Path, output: Path
) -> None:
    for name in ("vid.mp4", "other.mp4"):
        (tmp_path / name).unlink()
    write_frames(tmp_path / "JPEGImages/vid", [f"{i:05d}.jpg" for i in (0, 5, 10)])
    write_frames(tmp_path / "JPEGImages/other", ["00000.jpg"])
    (row,) = build(ytvis, output, encode=EncodeFrames(tmp_path / "encoded"))
    assert [prompt["frame_index"] for prompt in row["prompts"]] == [1, 2]


def test_boxes_may_be_the_prompts(ytvis: Path, output: Path) -> None:
    (row,) = build(ytvis, output, prompt="box")
    assert row["prompts"][0]["box"] == {"x0": 1.0, "y0": 1.0, "x1": 9.0, "y1": 9.0}
    assert row["prompts"][0]["mask"] is None


def test_coco_images_of_videos_are_read_by_track(tmp_path: Path, output: Path) -> None:
    document = {
        "videos": [{"id": 1, "name": "v"}],
        "images": [
            {"id": 90, "video_id": 1, "frame_id": 4},
            {"id": 91, "video_id": 1, "frame_id": 2},
        ],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": image, "track_id": 8, "category_id": 1, "bbox": box}
            | {"segmentation": [[1, 1, 5, 1, 5, 5]]}
            for image, box in ((90, [4, 4, 8, 8]), (91, [2, 2, 8, 8]))
        ],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    (tmp_path / "v.mp4").touch()
    (row,) = build(path, output, prompt="box")
    (prompt,) = row["prompts"]
    assert (prompt["object_id"], prompt["frame_index"], prompt["category"]) == (8, 2, "person")
    assert prompt["box"] == {"x0": 2.0, "y0": 2.0, "x1": 10.0, "y1": 10.0}
    with pytest.raises(ManifestError, match="object 8: polygons; .* with --prompt box"):
        build(path, output)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[", "not JSON"),
        ("[]", "no list `videos`"),
        ('{"videos": []}', "no list `annotations`"),
        ('{"videos": [{"id": 1}], "annotations": [{"video_id": 1}]}', "KeyError: 'file_names'"),
        (
            '{"videos": [{"id": 1}], "images": [{"id": 2, "video_id": 1, "frame_id": 0}], '
            '"annotations": [{"id": 5, "image_id": 2}]}',
            "annotation 5: wanted a track_id",
        ),
        (
            '{"videos": [{"id": 1, "file_names": ["v/0.jpg"]}], "annotations": [{"id": 1, '
            '"video_id": 1, "segmentations": [null, null]}]}',
            "zip",
        ),
    ],
)
def test_json_that_is_no_coco_is_refused(
    document: str, message: str, tmp_path: Path, output: Path
) -> None:
    (tmp_path / "x.json").write_text(document)
    with pytest.raises(ManifestError, match=message):
        build(tmp_path / "x.json", output)
    assert not output.exists()


def test_two_videos_of_one_id_are_refused(ytvis: Path, output: Path) -> None:
    document = json.loads(ytvis.read_text())
    document["videos"][1]["file_names"] = ["vid/00000.jpg"]
    document["annotations"][1] |= {"video_id": 12, "segmentations": [mask_row(square(1, 1))]}
    document["annotations"][1] |= {"bboxes": [None]}
    ytvis.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="vid: two videos have that id"):
        build(ytvis, output)


# What a source is


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("s3://b/prompts.csv", "table"),
        ("prompts.jsonl", "table"),
        ("s3://b/instances.json", "coco"),
        ("x/sav_1_manual.json", "sav"),
    ],
)
def test_a_source_is_told_by_its_name(source: str, kind: str) -> None:
    assert source_kind(source) == kind


def test_a_source_that_is_nothing_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot tell what it is; wanted .* with --from"):
        source_kind(str(tmp_path))


# The job


def test_the_job_builds_and_says_what_it_built(
    davis: Path, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["build", str(davis), "--output", str(output), "--from", "davis", "--log-level", "error"]
    assert main([*argv, "--encode-frames", str(tmp_path / "encoded"), "--crf", "0"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "manifest": str(output),
        "from": "davis",
        "videos": 2,
        "prompts": 4,
        "videos_without_prompts": 0,
    }
    assert main(["check", str(output), "--probe"]) == 0


def test_the_help_names_every_column_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    words = set(re.findall(r"\w+(?:\.\w+)?", capsys.readouterr().out))
    assert {*TABLE_COLUMNS, TAG + "NAME"} <= words


def test_the_job_refuses_a_source_in_one_line(
    davis: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(davis), "--output", str(output)]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "ManifestError"
    assert "Traceback" not in err
    assert not output.exists()
