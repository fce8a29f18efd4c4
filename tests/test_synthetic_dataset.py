"""Datasets made from a few masks are what they say, and large ones are read in bounded memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from labelled import disk

from sam2model import rle
from workflows.compaction import compact
from workflows.data_files import ROW_GROUP_ROWS, SCAN, open_files
from workflows.dataset_log import DatasetLog
from workflows.mask_sources import Rle
from workflows.query import Dataset
from workflows.storage import Storage
from workflows.synthetic_dataset import FAILED_EVERY, SyntheticSize, make_dataset, video_name

MASKS = [Rle(rle.encode_mask(disk(20, 16, radius)), 36, 64) for radius in (-1, 3, 5, 9)]


def test_a_dataset_has_the_size_asked_for_and_its_rows_are_true(tmp_path: Path) -> None:
    size = SyntheticSize(videos=40, objects=3, frames=7, refined_every=4)
    make_dataset(Storage(), str(tmp_path), MASKS, size)
    dataset = Dataset(str(tmp_path))
    counts = "SELECT (SELECT count(*) FROM masks), (SELECT count(*) FROM current_tracks), "
    counts += "(SELECT count(*) FROM tracks), (SELECT count(*) FROM current_masks)"
    assert list(dataset.sql(counts).to_pylist()[0].values()) == [
        size.mask_rows,
        size.tracks,
        size.tracks + size.refined_tracks,
        size.tracks * size.frames,
    ]
    failed = dataset.sql("SELECT count(*) FROM videos WHERE status = 'failed'")
    assert failed[0].to_pylist() == [1 + 39 // FAILED_EVERY]
    masks = dataset.masks(video_name(17))
    assert masks.num_rows == 3 * 7
    for row in masks.to_pylist():
        assert rle.area(row["counts"]) == row["area_px"]
        box = rle.box_xyxy(row["counts"], 36, 64)
        assert row["box"] == (
            dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
            if row["area_px"]
            else None
        )


def test_the_same_size_gives_the_same_rows(tmp_path: Path) -> None:
    size = SyntheticSize(videos=5, objects=2, frames=3)
    for name in "ab":
        make_dataset(Storage(), str(tmp_path / name), MASKS, size)
    one, other = (Dataset(str(tmp_path / name)).masks(video_name(3)) for name in "ab")
    assert one == other and one.num_rows


def test_masks_of_two_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted one"):
        make_dataset(Storage(), str(tmp_path), [*MASKS, Rle("4", 2, 2)], SyntheticSize(1))


def peak_of(read: Callable[[], int]) -> tuple[int, int]:
    """What the call returns, and the most bytes that Arrow held meanwhile."""
    pool = pa.system_memory_pool()
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        return read(), pool.max_memory()
    finally:
        pa.set_memory_pool(before)


def test_a_scan_holds_few_batches_whoever_asks(tmp_path: Path) -> None:
    storage, root = Storage(), str(tmp_path)
    make_dataset(storage, root, MASKS, SyntheticSize(videos=300))
    log = DatasetLog(storage, root)
    files = open_files(storage, log.masks.folder, log.masks.paths(), log.masks.schema)
    batches = list(files.to_batches())
    assert max(batch.num_rows for batch in batches) <= ROW_GROUP_ROWS == SCAN["batch_size"]
    assert sum(batch.num_rows for batch in batches) == SyntheticSize(videos=300).mask_rows


@pytest.mark.slow
def test_ten_million_rows_are_read_in_bounded_memory_and_by_few_files(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    video = json.loads(real_data("sav_000001_manual.json").read_text())
    masks = [
        Rle(objects[place]["counts"], *map(int, objects[place]["size"]))
        for place in range(int(video["masklet_num"]))
        for objects in video["masklet"]
    ]
    storage, root, size = Storage(), str(tmp_path), SyntheticSize(videos=17_800)
    log = make_dataset(storage, root, masks, size)
    assert size.mask_rows > 10**7
    video_id = video_name(1234)
    assert len(log.masks.refresh().paths([video_id])) > 50, "compaction has nothing to do"
    _, peak_bytes = peak_of(lambda: compact(storage, root).files_after)
    assert peak_bytes < 2**30
    assert len(log.masks.refresh().paths([video_id])) <= 2
    dataset = Dataset(root)
    assert dataset.masks(video_id).num_rows == size.objects * size.frames

    def count_all() -> int:
        with dataset.answer("SELECT * FROM current_masks") as answer:
            return sum(batch.num_rows for batch in answer)

    num_rows, peak_bytes = peak_of(count_all)
    assert num_rows == size.tracks * size.frames
    assert peak_bytes < 2**30
    share = dataset.sql("SELECT avg((area_px > 0)::INT) FROM current_masks")[0][0].as_py()
    real_share = sum(rle.area(mask.counts) > 0 for mask in masks) / len(masks)
    assert share == pytest.approx(real_share, abs=0.05)


@pytest.mark.slow
def test_a_million_tracks_are_in_the_current_view(tmp_path: Path) -> None:
    """Each object once, at its newest revision, counted and ranked in bounded memory."""
    size = SyntheticSize(videos=200_000, with_masks=False)
    make_dataset(Storage(), str(tmp_path), MASKS, size)
    dataset = Dataset(str(tmp_path))
    refined = "count(*) FILTER (revision = 2)"
    (counted,) = dataset.sql(
        f"SELECT count(*) AS n, {refined} AS r FROM current_tracks"
    ).to_pylist()
    assert counted == {"n": 10**6, "r": size.refined_tracks} == {"n": size.tracks, "r": 125_000}
    worst, peak_bytes = peak_of(
        lambda: dataset.sql("FROM current_tracks ORDER BY doubt DESC LIMIT 20").num_rows
    )
    assert worst == 20 and peak_bytes < 2**30
    assert dataset.tracks([video_name(77)]).num_rows == size.objects
