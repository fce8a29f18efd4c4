"""Manifests: read in pieces, checked row by row, written whole or not at all."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.manifest import main
from sam2model.prompts import PromptError
from sam2model.rle import encode_mask
from sam2model.video_writer import write_video
from workflows import manifest_check
from workflows.manifest import (
    READ_AHEAD_BYTES,
    ManifestError,
    RangeReader,
    read_manifest,
    write_manifest,
)
from workflows.manifest_check import ManifestCheck, probe_with
from workflows.manifest_faults import validate_batch
from workflows.rows import MANIFEST_SCHEMA, decode_prompts
from workflows.storage import NotFound, Storage, StoredObject, Unreadable

Row = dict[str, Any]
HEIGHT, WIDTH = 4, 6


def a_mask(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[1, 2:5] = True
    return {"size": [height, width], "counts": encode_mask(mask)}


def a_row(video_id: str = "v1", **changes: Any) -> Row:
    prompts = [
        {
            "object_id": 1,
            "frame_index": 0,
            "points": [
                {"x": 1.5, "y": 2.5, "positive": True},
                {"x": 0.0, "y": 0.0, "positive": False},
            ],
            "box": {"x0": 0.0, "y0": 0.0, "x1": 6.0, "y1": 4.0},
            "category": "cup",
        },
        {"object_id": 2, "frame_index": 3, "mask": a_mask()},
    ]
    return {"video_id": video_id, "video_uri": f"{video_id}.mp4", "prompts": prompts} | changes


def batch_of(*rows: Row) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=MANIFEST_SCHEMA)


def write_raw(path: Path, table: pa.Table | list[Row], schema: pa.Schema = MANIFEST_SCHEMA) -> str:
    """A file as strangers write it: nothing is checked."""
    if isinstance(table, list):
        table = pa.Table.from_pylist(table, schema=schema)
    pq.write_table(table, path)
    return str(path)


def check_of(uri: str, **options: Any) -> list[str]:
    return [str(fault) for fault in ManifestCheck(uri, Storage(), **options).faults()]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "m.parquet")


# Reading and writing


def test_what_was_written_is_read_back(uri: str) -> None:
    rows = [
        a_row("a", first_frame=0, last_frame=9, priority=5, tags=[("site", "lab")]),
        a_row("b"),
    ]
    assert write_manifest(rows, uri, Storage()) == 2
    read = pa.Table.from_batches(read_manifest(uri, Storage()))
    assert read.schema == MANIFEST_SCHEMA
    assert read.equals(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))


@pytest.mark.parametrize("place", ["file", "memory://bucket/deep"])
def test_disk_and_object_store_hold_the_same_manifest(place: str, tmp_path: Path) -> None:
    uri = f"{tmp_path if place == 'file' else place}/m.parquet"
    write_manifest([a_row(f"v{i}") for i in range(10)], uri, Storage())
    batches = list(read_manifest(uri, Storage(), batch_rows=4))
    assert [batch.num_rows for batch in batches] == [4, 4, 2]
    assert check_of(uri) == []


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    class Unordered(Storage):
        def list(self, folder: str) -> Iterator[StoredObject]:
            return reversed([*super().list(folder)])

    for name, ids in (("part-1", ["c", "a"]), ("part-0", ["b"]), ("part-2", ["a"])):
        write_raw(tmp_path / f"{name}.parquet", [a_row(video_id) for video_id in ids])
    (tmp_path / "_SUCCESS").touch()
    read = pa.Table.from_batches(read_manifest(str(tmp_path), Unordered()))
    assert read["video_id"].to_pylist() == ["b", "c", "a", "a"]
    assert check_of(str(tmp_path)) == ["row 3 ('a'): video_id: repeats row 2; ids are unique"]


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"a folder without \.parquet files"):
        list(read_manifest(str(tmp_path), Storage()))


def test_a_missing_manifest_is_not_found(uri: str) -> None:
    with pytest.raises(NotFound, match="m.parquet"):
        list(read_manifest(uri, Storage()))


def test_columns_that_may_be_missing_are_read_as_null(uri: str) -> None:
    write_raw(Path(uri), pa.Table.from_pylist([a_row()], MANIFEST_SCHEMA).select([0, 1, 2]))
    (batch,) = read_manifest(uri, Storage())
    assert batch.schema == MANIFEST_SCHEMA
    assert batch["tags"].null_count == 1


def test_only_the_columns_asked_for_are_read(uri: str) -> None:
    write_raw(Path(uri), [a_row()])
    (batch,) = read_manifest(uri, Storage(), ["priority", "video_id"])
    assert batch.schema.names == ["priority", "video_id"]


def test_other_widths_of_the_same_kinds_are_read(uri: str) -> None:
    """As pandas, Polars and DuckDB write them: 64 bits, no field that is null throughout."""
    prompts = [
        [{"object_id": 1, "frame_index": 0, "points": [{"x": 1, "y": 2.0, "positive": True}]}]
    ]
    table = pa.table(
        {
            "video_id": pa.array(["v"]).dictionary_encode(),
            "video_uri": pa.array(["v.mp4"], pa.large_string()),
            "prompts": pa.array(prompts),
            "priority": pa.array([3], pa.int64()),
        }
    )
    write_raw(Path(uri), table)
    (batch,) = read_manifest(uri, Storage())
    assert batch.schema == MANIFEST_SCHEMA
    assert batch["prompts"][0].as_py()[0]["points"] == [{"x": 1.0, "y": 2.0, "positive": True}]
    assert check_of(uri) == []


PROMPTS = MANIFEST_SCHEMA.field("prompts").type


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("video_id", pa.array([7]), "video_id: type int64; wanted string"),
        ("priority", pa.array(["7"]), "priority: type string; wanted int32"),
        ("priority", pa.array([7.0]), "priority: type double; wanted int32"),
        ("prompts", pa.array(["x"]), "prompts: type string; wanted list"),
        ("prompts", pa.array([[{"objectid": 1}]]), r"prompts\[\]: unknown field objectid; choices"),
        (
            "prompts",
            pa.array([[{"points": [{"x": "1"}]}]]),
            r"prompts\[\]\.points\[\]\.x: type string; wanted float",
        ),
        ("tags", pa.array(["a"]), "tags: type string; wanted map"),
        ("split", pa.array(["val"]), "split: unknown column; choices are video_id, video_uri, "),
        ("video_uri", None, "video_uri: missing; wanted string"),
    ],
)
def test_a_column_of_another_kind_is_refused_by_name(
    column: str, values: pa.Array | None, message: str, uri: str
) -> None:
    table = pa.Table.from_pylist([a_row()], MANIFEST_SCHEMA)
    if column in table.column_names:
        table = table.drop_columns([column])
    if values is not None:
        table = table.append_column(column, values)
    write_raw(Path(uri), table)
    with pytest.raises(ManifestError, match=message):
        list(read_manifest(uri, Storage()))
    (fault,) = check_of(uri)
    assert uri in fault


def test_a_value_that_does_not_fit_its_type_is_named_by_row(uri: str) -> None:
    ids = [[{"object_id": i, "frame_index": 0, "box": None}] for i in (1, 2**40, 3)]
    table = pa.table({"video_id": list("abc"), "video_uri": list("abc"), "prompts": pa.array(ids)})
    write_raw(Path(uri), table)
    message = r"row 1 \('b'\): prompts: Integer value 1099511627776 not in range"
    with pytest.raises(ManifestError, match=message):
        list(read_manifest(uri, Storage()))
    empty = "prompts[0]: empty; wanted points, a box or a mask"
    assert [fault.split(" not in range")[0] for fault in check_of(uri)] == [
        f"row 0 ('a'): {empty}",
        "row 1 ('b'): prompts: Integer value 1099511627776",
        f"row 2 ('c'): {empty}",
    ]


def test_text_that_is_not_utf8_is_named_by_row(uri: str) -> None:
    offsets, letters = np.array([0, 1, 2], dtype=np.int32), b"a\xff"
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(letters))
    table = pa.Table.from_pylist([a_row("a"), a_row("b")], MANIFEST_SCHEMA)
    table = table.drop_columns(["video_uri"])
    write_raw(Path(uri), table.append_column("video_uri", bad))
    assert check_of(uri) == [
        "row 1 ('b'): video_uri: Invalid UTF8 sequence at string index 0",
    ]


@pytest.mark.parametrize("damage", [b"", b"not parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_is_refused_and_reported(damage: bytes, uri: str) -> None:
    Path(uri).write_bytes(damage)
    with pytest.raises(ManifestError, match=r"m\.parquet: "):
        list(read_manifest(uri, Storage()))
    assert len(check_of(uri)) == 1


def test_a_damaged_page_is_refused_and_reported(uri: str) -> None:
    write_manifest([a_row(f"v{i}") for i in range(1000)], uri, Storage())
    content = bytearray(Path(uri).read_bytes())
    content[4:400] = bytes(396)
    Path(uri).write_bytes(content)
    with pytest.raises(ManifestError, match=r"m\.parquet: "):
        list(read_manifest(uri, Storage()))
    assert uri in check_of(uri)[-1]


def test_whatever_bytes_are_damaged_no_other_rows_are_read_in_silence(uri: str) -> None:
    write_manifest([a_row(f"v{i}") for i in range(300)], uri, Storage())
    good = Path(uri).read_bytes()
    rows = pa.Table.from_batches(read_manifest(uri, Storage()))
    chance = random.Random(7)
    reported = 0
    for _ in range(150):
        damaged = bytearray(good)
        damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        Path(uri).write_bytes(damaged)
        if check_of(uri):
            reported += 1
        else:
            assert pa.Table.from_batches(read_manifest(uri, Storage())).equals(rows)
    assert reported > 100


def test_a_fault_of_the_storage_stays_one(uri: str) -> None:
    """A cut connection is no damaged manifest."""

    class CutOff(Storage):
        def size(self, uri: str) -> int:
            return 10_000

        def read_range(self, uri: str, start: int, end: int) -> bytes:
            raise Unreadable(f"{uri}: hung up")

    with pytest.raises(Unreadable, match="hung up"):
        list(read_manifest("memory://bucket/m.parquet", CutOff()))


def test_a_range_reader_reads_like_a_file() -> None:
    Storage().put("memory://bucket/bytes", b"0123456789")
    with RangeReader("memory://bucket/bytes", Storage()) as reader:
        assert (reader.read(3), reader.tell()) == (b"012", 3)
        assert reader.seek(-2, 2) == 8
        assert (reader.read(5), reader.read(5), reader.tell()) == (b"89", b"", 10)
        assert reader.seek(0) == 0 and reader.seek(4, 1) == 4
        assert reader.read() == b"456789"


def test_reading_holds_a_piece_however_long_the_manifest(tmp_path: Path) -> None:
    def peak_bytes(num_rows: int) -> int:
        """Of Arrow's memory, while a manifest of one row group is read."""
        path = tmp_path / f"{num_rows}.parquet"
        ids = pa.array([f"video-{i}" for i in range(num_rows)])
        prompts = pa.array(a_row()["prompts"], PROMPTS.value_type)
        lists = pa.ListArray.from_arrays(
            np.arange(0, 2 * num_rows + 1, 2, dtype=np.int32),
            prompts.take(np.tile([0, 1], num_rows)),
        )
        table = pa.table({"video_id": ids, "video_uri": ids, "prompts": lists})
        pq.write_table(table, path, row_group_size=num_rows)
        del table, lists, prompts, ids
        before = pa.total_allocated_bytes()
        peak = 0
        for batch in read_manifest(str(path), Storage(), batch_rows=1000):
            peak = max(peak, pa.total_allocated_bytes() - before)
            assert batch.num_rows <= 1000
        return peak

    # Below some 100,000 rows a column is shorter than what is read ahead of it.
    assert peak_bytes(300_000) < 1.3 * peak_bytes(100_000)


def test_a_remote_manifest_is_read_in_ranges_not_in_whole_columns() -> None:
    class Counting(Storage):
        largest_bytes = 0

        def read_range(self, uri: str, start: int, end: int) -> bytes:
            self.largest_bytes = max(self.largest_bytes, end - start)
            return super().read_range(uri, start, end)

    ids = pa.array(np.random.default_rng(0).bytes(20).hex() + f"{i:060}" for i in range(20_000))
    prompts = pa.array([a_row()["prompts"]] * 20_000, PROMPTS)
    sink = pa.BufferOutputStream()
    table = pa.table({"video_id": ids, "video_uri": ids, "prompts": prompts})
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    storage = Counting()
    storage.put("memory://bucket/long.parquet", sink.getvalue().to_pybytes())
    batches = read_manifest("memory://bucket/long.parquet", storage)
    assert sum(batch.num_rows for batch in batches) == 20_000
    assert 0 < storage.largest_bytes <= READ_AHEAD_BYTES


def test_a_column_given_twice_is_refused(uri: str) -> None:
    table = pa.Table.from_pylist([a_row()], MANIFEST_SCHEMA)
    write_raw(Path(uri), table.append_column("priority", pa.array([1], pa.int32())))
    with pytest.raises(ManifestError, match="priority: is there twice"):
        list(read_manifest(uri, Storage()))


def test_writing_is_all_or_nothing(uri: str) -> None:
    write_manifest([a_row("before")], uri, Storage())

    def rows() -> Iterator[Row]:
        yield a_row("after")
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_manifest(rows(), uri, Storage())
    (batch,) = read_manifest(uri, Storage())
    assert batch["video_id"].to_pylist() == ["before"]
    assert [path.name for path in Path(uri).parent.iterdir()] == ["m.parquet"]


def test_a_row_with_a_fault_is_not_written(uri: str) -> None:
    with pytest.raises(ManifestError, match=r"row 1 \('bad'\): prompts: got \[\]; wanted at least"):
        write_manifest([a_row(), a_row("bad", prompts=[])], uri, Storage())
    assert not Path(uri).exists()


def test_a_value_of_another_type_is_not_written(uri: str) -> None:
    with pytest.raises(ManifestError, match="rows 0 to 0: "):
        write_manifest([a_row(priority="high")], uri, Storage())
    assert not Path(uri).exists()


# Faults


def a_prompt(**changes: Any) -> dict[str, Any]:
    return {"object_id": 1, "frame_index": 0, "points": [a_point()]} | changes


def a_point(**changes: Any) -> dict[str, Any]:
    return {"x": 1.0, "y": 1.0, "positive": True} | changes


def a_box(**changes: Any) -> dict[str, Any]:
    return {"x0": 1.0, "y0": 1.0, "x1": 3.0, "y1": 3.0} | changes


def points(*given: Any) -> Row:
    return {"prompts": [a_prompt(points=list(given))]}


def box(**changes: Any) -> Row:
    return {"prompts": [a_prompt(points=None, box=a_box(**changes))]}


def mask(**changes: Any) -> Row:
    return {"prompts": [a_prompt(points=None, mask=a_mask() | changes)]}


NAN, INF = float("nan"), float("inf")
FAULTS: list[tuple[Row, str, str]] = [
    ({"video_id": None}, "video_id", "got null; wanted text that is not empty"),
    ({"video_id": ""}, "video_id", "got ''; wanted text that is not empty"),
    ({"video_uri": ""}, "video_uri", "got ''; wanted text that is not empty"),
    ({"prompts": None}, "prompts", "got null; wanted at least one prompt"),
    ({"prompts": []}, "prompts", "got []; wanted at least one prompt"),
    ({"first_frame": -1}, "first_frame", "got -1; wanted 0 or more"),
    ({"first_frame": 0, "last_frame": -2}, "last_frame", "got -2; wanted first_frame or more"),
    ({"prompts": [None]}, "prompts[0]", "got null; wanted a prompt"),
    (
        {"prompts": [a_prompt(), a_prompt(object_id=-1)]},
        "prompts[1].object_id",
        "got -1; wanted 0 or more",
    ),
    (
        {"prompts": [a_prompt(object_id=None)]},
        "prompts[0].object_id",
        "got null; wanted 0 or more",
    ),
    (
        {"prompts": [a_prompt(frame_index=-1)]},
        "prompts[0].frame_index",
        "got -1; wanted 0 or more",
    ),
    (
        {"prompts": [a_prompt(frame_index=2)], "first_frame": 3},
        "prompts[0].frame_index",
        "got 2; wanted a frame from first_frame to last_frame",
    ),
    (
        {"prompts": [a_prompt(frame_index=9)], "last_frame": 8},
        "prompts[0].frame_index",
        "got 9; wanted a frame from first_frame to last_frame",
    ),
    (
        {"prompts": [a_prompt(), a_prompt(object_id=2), a_prompt()]},
        "prompts[2]",
        "object 1 has a prompt on frame 0 already; wanted one, with all of its points",
    ),
    ({"prompts": [a_prompt(points=None)]}, "prompts[0]", "empty; wanted points, a box or a mask"),
    (points(), "prompts[0]", "empty; wanted points, a box or a mask"),
    (
        {"prompts": [a_prompt(mask=a_mask())]},
        "prompts[0]",
        "a mask together with points or a box; wanted one",
    ),
    (
        {"prompts": [a_prompt(points=None, box=a_box(), mask=a_mask())]},
        "prompts[0]",
        "a mask together with points or a box; wanted one",
    ),
    (points(a_point(), None), "prompts[0].points[1]", "got null; wanted a point"),
    (points(a_point(), a_point(x=NAN)), "prompts[0].points[1].x", "got nan; wanted a number"),
    (points(a_point(y=INF)), "prompts[0].points[0].y", "got inf; wanted a number of pixels"),
    (points(a_point(y=None)), "prompts[0].points[0].y", "got null; wanted a number of pixels"),
    (points(a_point(x=-0.5)), "prompts[0].points[0].x", "got -0.5; wanted a place inside"),
    (points(a_point(positive=None)), "prompts[0].points[0].positive", "wanted true or false"),
    (box(x0=NAN), "prompts[0].box.x0", "got nan; wanted a number of pixels"),
    (box(y1=None), "prompts[0].box.y1", "got null; wanted a number of pixels"),
    (box(y0=-1.0), "prompts[0].box.y0", "got -1.0; wanted a place inside the frame"),
    (box(x1=1.0), "prompts[0].box.x1", "got 1.0; wanted more than x0"),
    (box(y1=0.5), "prompts[0].box.y1", "got 0.5; wanted more than y0"),
    (mask(size=[4]), "prompts[0].mask.size", "got [4]; wanted [height, width] in pixels"),
    (mask(size=None), "prompts[0].mask.size", "got null; wanted [height, width]"),
    (mask(size=[4, 0]), "prompts[0].mask.size", "got [4, 0]; wanted [height, width]"),
    (mask(size=[4, None]), "prompts[0].mask.size", "got [4, None]; wanted [height, width]"),
    (mask(counts=None), "prompts[0].mask.counts", "got null; wanted COCO run lengths"),
    (
        mask(size=[4, 7]),
        "prompts[0].mask.counts",
        "run lengths add up to 24 pixels; wanted height · width = 28",
    ),
    (mask(counts="?~"), "prompts[0].mask.counts", "got a character outside ASCII 48 to 111"),
    (mask(counts=""), "prompts[0].mask.counts", "run lengths add up to 0 pixels; wanted"),
    (
        {
            "prompts": [
                a_prompt(points=None, mask=a_mask()),
                a_prompt(object_id=2, points=None, mask=a_mask(6, 4)),
            ]
        },
        "prompts[1].mask.size",
        "got [6, 4]; wanted the size of the video's first mask",
    ),
    (
        {
            "prompts": [
                a_prompt(points=[a_point(x=6.0)]),
                a_prompt(object_id=2, points=None, mask=a_mask()),
            ]
        },
        "prompts[0].points[0].x",
        "got 6.0; wanted a place inside the frame",
    ),
    (
        {
            "prompts": [
                a_prompt(object_id=2, points=None, mask=a_mask()),
                a_prompt(points=None, box=a_box(y1=4.5)),
            ]
        },
        "prompts[1].box.y1",
        "got 4.5; wanted a place inside the frame",
    ),
]


@pytest.mark.parametrize(("changes", "column", "message"), FAULTS)
def test_a_fault_names_its_row_and_column(changes: Row, column: str, message: str) -> None:
    rows = [a_row("good"), a_row("bad") | changes, a_row("fine")]
    (fault,) = validate_batch(batch_of(*rows), first_row=100)
    assert (fault.row, fault.column) == (101, column)
    assert fault.video_id == rows[1]["video_id"]
    assert message in fault.message


def test_rows_without_a_fault_are_silent() -> None:
    at_the_edges = [
        a_prompt(points=[a_point(x=5.99, y=3.99), a_point(x=0.0, y=0.0)]),
        a_prompt(object_id=0, frame_index=0, points=[], box=a_box(x0=0.0, y0=0.0, x1=6.0, y1=4.0)),
        a_prompt(object_id=2, frame_index=7, points=None, mask=a_mask()),
        a_prompt(object_id=2, frame_index=8, points=None, mask={"size": [4, 6], "counts": "h0"}),
    ]
    rows = [a_row(), a_row(prompts=at_the_edges, first_frame=0, last_frame=8)]
    assert validate_batch(batch_of(*rows)) == []
    assert validate_batch(batch_of()) == []


def test_every_fault_of_every_row_is_listed_in_the_order_of_rows() -> None:
    rows = [a_row() | changes for changes, _, _ in FAULTS]
    faults = validate_batch(batch_of(*rows))
    assert [fault.row for fault in faults] == list(range(len(FAULTS)))
    assert [fault.column for fault in faults] == [column for _, column, _ in FAULTS]


def test_a_batch_that_was_cut_out_of_a_larger_one_is_checked_the_same() -> None:
    rows = [a_row() | changes for changes, _, _ in FAULTS]
    whole = validate_batch(batch_of(*rows))
    pieces = [
        fault
        for start in range(0, len(rows), 5)
        for fault in validate_batch(batch_of(*rows).slice(start, 5), start)
    ]
    assert pieces == whole


def nullable(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


NUMBERS = nullable(st.sampled_from([NAN, INF, -INF, -1.0, 0.0, 1.5, 5.0, 6.0, 1e30]))
INTEGERS = nullable(st.sampled_from([-(2**31), -1, 0, 1, 7, 2**31 - 1]))
COUNTS = nullable(
    st.sampled_from(["", "h0", "013000", a_mask()["counts"], "P", "\u00e9", "oooooooo0"])
)
ANY_PROMPT = st.fixed_dictionaries(
    {
        "object_id": INTEGERS,
        "frame_index": INTEGERS,
        "points": nullable(
            st.lists(
                nullable(
                    st.fixed_dictionaries(
                        {"x": NUMBERS, "y": NUMBERS, "positive": nullable(st.booleans())}
                    )
                ),
                max_size=3,
            )
        ),
        "box": nullable(st.fixed_dictionaries(dict.fromkeys(("x0", "y0", "x1", "y1"), NUMBERS))),
        "mask": nullable(
            st.fixed_dictionaries(
                {
                    "size": nullable(
                        st.lists(nullable(st.sampled_from([-1, 0, 4, 6])), max_size=3)
                    ),
                    "counts": COUNTS,
                }
            )
        ),
    }
)
ANY_ROW = st.fixed_dictionaries(
    {
        "video_id": nullable(st.sampled_from(["", "a", "b\n"])),
        "video_uri": nullable(st.sampled_from(["", "a.mp4"])),
        "prompts": nullable(st.lists(nullable(ANY_PROMPT), max_size=3)),
        "first_frame": INTEGERS,
        "last_frame": INTEGERS,
    }
)


@given(st.lists(ANY_ROW, max_size=4))
@settings(max_examples=200, deadline=None)
def test_whatever_the_rows_hold_the_check_reports_and_the_engine_can_use_the_rest(
    rows: list[Row],
) -> None:
    faulty = {fault.row for fault in validate_batch(batch_of(*rows))}
    for index, row in enumerate(batch_of(*rows).to_pylist()):
        try:
            prompts = decode_prompts(row["prompts"])
        except (PromptError, TypeError, AttributeError):
            assert index in faulty
        else:
            assert prompts or index in faulty


# Repeated ids


def test_repeated_ids_are_found_wherever_they_stand(uri: str) -> None:
    ids = [f"v{i}" for i in range(5000)] + ["v17", "w", "v4999", "v17"]
    write_raw(Path(uri), [a_row(video_id) for video_id in ids])
    assert check_of(uri) == [
        "row 5000 ('v17'): video_id: repeats row 17; ids are unique",
        "row 5002 ('v4999'): video_id: repeats row 4999; ids are unique",
        "row 5003 ('v17'): video_id: repeats row 17; ids are unique",
    ]


def test_ids_that_only_share_a_hash_are_not_repeated(uri: str) -> None:
    write_raw(Path(uri), [a_row(video_id) for video_id in ("aa", "bb", "c", "aa", "dd")])
    assert check_of(uri, hash_id=len) == ["row 3 ('aa'): video_id: repeats row 0; ids are unique"]


def test_repeats_are_looked_for_in_parts_when_there_are_many(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_check, "REPEATS_AT_ONCE", 2)
    write_raw(Path(uri), [a_row(f"v{i % 7}") for i in range(14)])
    faults = check_of(uri)
    assert sorted(int(fault.split()[1]) for fault in faults) == list(range(7, 14))


def test_missing_ids_do_not_repeat_each_other(uri: str) -> None:
    write_raw(Path(uri), [a_row("v"), a_row(None), a_row(None), a_row("v")])  # type: ignore[arg-type]
    assert [fault.split(":")[0] for fault in check_of(uri)] == ["row 1", "row 2", "row 3 ('v')"]


# Videos


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[[str], str]:
    def make(name: str) -> str:
        frames = (np.full((HEIGHT * 16, WIDTH * 16, 3), i * 10, dtype=np.uint8) for i in range(8))
        write_video(tmp_path / name, frames, 8)
        return str(tmp_path / name)

    return make


def test_probing_holds_prompts_against_the_video(
    uri: str, make_video: Callable[[str], str], tmp_path: Path
) -> None:
    video = make_video("v.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = [
        a_row("fits", video_uri=video, prompts=[a_prompt(frame_index=7)]),
        a_row("late", video_uri=video, prompts=[a_prompt(frame_index=8)]),
        a_row("outside", video_uri=video) | points(a_point(x=96.0)),
        a_row("size", video_uri=video) | mask(),
        a_row("gone", video_uri=str(tmp_path / "gone.mp4")) | points(a_point()),
        a_row("broken", video_uri=str(tmp_path / "broken.mp4")) | points(a_point()),
        a_row("remote", video_uri="ftp://host/v.mp4") | points(a_point()),
    ]
    write_raw(Path(uri), rows)
    assert check_of(uri) == []
    faults = check_of(uri, probe=probe_with(Storage()))
    wanted = [
        ("row 1 ('late')", "the video has frames 0 to 7"),
        ("row 2 ('outside')", "point (96.0, 1.0) outside 96×64 px"),
        ("row 3 ('size')", "mask of "),
        ("row 4 ('gone')", "not found"),
        ("row 5 ('broken')", "broken.mp4"),
        ("row 6 ('remote')", "scheme ftp; wanted one of"),
    ]
    assert len(faults) == len(wanted)
    for fault, (row, message) in zip(faults, wanted, strict=True):
        assert fault.startswith(f"{row}: video_uri: ") and message in fault


def test_a_row_with_a_fault_of_its_own_is_not_probed(uri: str) -> None:
    write_raw(Path(uri), [a_row("bad", prompts=[]), a_row("good")])
    probed: list[str] = []

    def probe(request: Any) -> None:
        probed.append(request.video_id)

    check_of(uri, probe=probe)
    assert probed == ["good"]


# The job


def last_line(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], Any]:
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_the_job_passes_a_good_manifest(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest([a_row("a"), a_row("b")], uri, Storage())
    assert main(["check", uri]) == 0
    lines, summary = last_line(capsys)
    assert lines == []
    assert summary == {"manifest": uri, "videos": 2, "prompts": 4, "faults": 0}


def test_the_job_lists_faults_up_to_a_limit_and_counts_them_all(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_raw(Path(uri), [a_row(f"v{i}", prompts=[]) for i in range(10)])
    assert main(["check", uri, "--limit", "2"]) == 2
    lines, summary = last_line(capsys)
    assert lines == [
        "row 0 ('v0'): prompts: got []; wanted at least one prompt",
        "row 1 ('v1'): prompts: got []; wanted at least one prompt",
        "… and 8 more, shown with --limit 10",
    ]
    assert (summary["faults"], summary["videos"]) == (10, 10)


def test_the_job_reports_what_is_no_manifest(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(uri).write_bytes(b"no")
    assert main(["check", uri]) == 2
    lines, summary = last_line(capsys)
    assert "cannot be read as Parquet" in lines[0]
    assert summary["faults"] == 1


def test_the_job_names_a_missing_manifest(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", uri]) == 2
    _, summary = last_line(capsys)
    assert summary["error"]["code"] == "NotFound"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check", "m", "--limit", "-1"], "--limit -1: wanted 0 or more"),
        (["check", "m", "--set", "storage.regoin=x"], "did you mean storage.region?"),
        (["check", "m", "--prob"], "unknown option --prob (did you mean --probe?)"),
        (["chek", "m"], "invalid choice: 'chek'"),
        ([], "the following arguments are required: build|check"),
    ],
)
def test_the_job_refuses_what_it_does_not_know(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    _, summary = last_line(capsys)
    assert message in summary["error"]["message"]
