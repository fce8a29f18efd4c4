"""Clips to train on show the frames and the masks that the dataset has, in any process."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import Mask, label, relabel
from torch.utils.data import DataLoader
from videos import frame_index_from_pixels, square_mask, write_moving_square

from workflows.decoded_masks import decode_masks
from workflows.labelled_clips import ClipReader, ClipShape, LabelledClips
from workflows.labelled_videos import LabelsError, Selection
from workflows.query import Dataset, QueryError
from workflows.rows import MASKS_SCHEMA

pytest_plugins = ["local_ray"]

NUM_FRAMES = 16


def square(frames: range = range(NUM_FRAMES)) -> dict[int, Mask]:
    return {index: square_mask(index) for index in frames}


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Two videos of a moving square: object 3 on all frames, object 5 on frames 4 to 9 only."""
    root = str(tmp_path / "labels")
    video = write_moving_square(tmp_path / "v.mp4", NUM_FRAMES)
    objects = {3: square(), 5: square(range(4, 10))}
    label(root, {"a": objects, "b": {3: square()}}, categories={5: "box"}, video_uri=str(video))
    return root


def test_pixels_are_the_masks_and_say_where_nobody_labelled(root: str) -> None:
    decoded = Dataset(root).decoded("a", frames=(2, 5))
    assert decoded.object_ids.tolist() == [3, 5]
    assert decoded.frame_indices.tolist() == [2, 3, 4, 5]
    assert decoded.masks.shape == (2, 4, 96, 128)
    assert decoded.labelled.tolist() == [[True] * 4, [False, False, True, True]]
    for place, index in enumerate(range(2, 6)):
        assert (decoded.masks[0, place] == square_mask(index)).all()
    assert not decoded.masks[1, :2].any() and decoded.masks[1, 2].any()
    nothing = Dataset(root).decoded("nobody")
    assert nothing.masks.shape == (0, 0, 0, 0)


def test_masks_of_two_revisions_are_refused(root: str) -> None:
    dataset = Dataset(root)
    relabel(root, "b", {3: {0: square_mask(5)}})
    both = dataset.refresh().sql("SELECT * FROM masks WHERE video_id = 'b'").cast(MASKS_SCHEMA)
    with pytest.raises(ValueError, match="two masks on frame 0"):
        decode_masks(both)


def test_an_objects_history_is_all_its_revisions_oldest_first(root: str) -> None:
    relabel(root, "a", {3: square()}, author="ann")
    relabel(root, "a", {5: square(range(4, 10))}, author="bob")
    dataset = Dataset(root)
    columns = ["object_id", "revision", "parent_revision", "source", "author"]
    assert dataset.history("a", 3).select(columns).to_pylist() == [
        dict(zip(columns, (3, 1, None, "bulk", None), strict=True)),
        dict(zip(columns, (3, 2, 1, "refine", "ann"), strict=True)),
    ]
    of_all = dataset.history("a").select(["revision", "object_id"])
    assert [tuple(row.values()) for row in of_all.to_pylist()] == [(1, 3), (1, 5), (2, 3), (3, 5)]
    assert dataset.history("nobody").num_rows == 0


def test_a_clip_has_the_frames_it_names_and_their_masks(root: str) -> None:
    reader = ClipReader(root, shape=ClipShape(frames=3, step=2))
    firsts = reader.clips().select(["video_id", "first_frame"]).to_pylist()
    assert [tuple(row.values()) for row in firsts] == [(v, f) for v in "ab" for f in (0, 5, 10)]
    clip = reader.read(1)
    assert (clip.video_id, clip.frame_indices.tolist()) == ("a", [5, 7, 9])
    assert [frame_index_from_pixels(image) for image in clip.images] == [5, 7, 9]
    assert clip.categories == (None, "box")
    assert clip.labelled.all()
    for place, index in enumerate((5, 7, 9)):
        assert (clip.masks[:, place] == square_mask(index)).all()
    assert reader.read(0).labelled.tolist() == [[True] * 3, [False, False, True]]
    assert reader.read(-1).video_id == "b"
    with pytest.raises(IndexError, match="clip 6: there are 6"):
        reader.read(6)


def test_clips_may_overlap_and_short_videos_are_named(root: str) -> None:
    assert len(ClipReader(root, shape=ClipShape(frames=8, between=1))) == 2 * 9
    label(root, {"short": {1: square(range(2))}})
    reader = ClipReader(root, shape=ClipShape(frames=8))
    assert reader.too_short == ("short",) and len(reader) == 4
    with pytest.raises(ValueError, match="step is 0; wanted 1 or more"):
        ClipShape(step=0)


def test_only_selected_objects_are_in_clips(root: str) -> None:
    reader = ClipReader(root, Selection(where="category = 'box'"), ClipShape(frames=2))
    assert len(reader) == 3
    assert reader.read(0).object_ids.tolist() == [5]
    assert reader.read(0).frame_indices.tolist() == [4, 5]
    with pytest.raises(QueryError, match="colour"):
        ClipReader(root, Selection(where="colour = 1"))


def test_labels_committed_later_wait_for_the_next_reader(root: str) -> None:
    reader = ClipReader(root, Selection(video_ids=("b",)), ClipShape(frames=2))
    relabel(root, "b", {3: {index: ~square_mask(index) for index in range(NUM_FRAMES)}})
    again = pickle.loads(pickle.dumps(reader))
    assert (again.read(0).masks[0, 0] == square_mask(0)).all()
    newer = ClipReader(root, Selection(video_ids=("b",)), ClipShape(frames=2))
    assert (newer.read(0).masks[0, 0] == ~square_mask(0)).all()


def test_a_video_that_is_not_the_one_labelled_is_refused(root: str, tmp_path: Path) -> None:
    write_moving_square(tmp_path / "v.mp4", 3)
    with pytest.raises(LabelsError, match="ends before frame 3"):
        ClipReader(root, shape=ClipShape(frames=8)).read(0)
    write_moving_square(tmp_path / "v.mp4", NUM_FRAMES, 192, 256)
    with pytest.raises(LabelsError, match="frames of 192×256 .* wanted the masks' 96×128"):
        ClipReader(root, shape=ClipShape(frames=8)).read(0)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.cluster)])
def test_a_data_loader_gives_every_clip_once(root: str, workers: int) -> None:
    clips = LabelledClips(ClipReader(root, shape=ClipShape(frames=4)))
    context = "spawn" if workers else None
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(
        clips, batch_size=None, shuffle=True, num_workers=workers, multiprocessing_context=context
    )
    items = list(loader)
    seen = sorted((str(item["video_id"]), int(item["frame_indices"][0])) for item in items)
    assert seen == [(v, f) for v in "ab" for f in (0, 4, 8, 12)]
    for item in items:
        assert item["images"].shape == (4, 3, 96, 128) and item["images"].dtype == torch.uint8
        assert item["masks"].shape == (len(item["object_ids"]), 4, 96, 128)


@pytest.mark.cluster
def test_ray_reads_the_same_masks_as_one_process(root: str, local_ray: None) -> None:
    from workflows.ray_datasets import read_masks

    dataset = Dataset(root)
    rows = read_masks(root, videos_a_task=1).take_all()
    wanted = [*dataset.masks("a").to_pylist(), *dataset.masks("b").to_pylist()]
    rows.sort(key=lambda row: (row["video_id"], row["object_id"], row["frame_index"]))
    assert rows == wanted
    some = read_masks(root, Selection(where="category = 'box'")).take_all()
    assert {(row["video_id"], row["object_id"]) for row in some} == {("a", 5)}
    assert read_masks(root, Selection(video_ids=())).count() == 0


@pytest.mark.cluster
def test_ray_reads_the_same_clips_as_one_process(root: str, local_ray: None) -> None:
    from workflows.ray_datasets import read_clips

    shape = ClipShape(frames=4)
    reader = ClipReader(root, shape=shape)
    rows = read_clips(root, shape=shape, clips_a_task=3).take_all()
    rows.sort(key=lambda row: (row["video_id"], row["frame_indices"][0]))
    assert len(rows) == len(reader) == 8
    for row, number in zip(rows, range(len(reader)), strict=True):
        clip = reader.read(number)
        for name in ("images", "masks", "labelled", "object_ids", "frame_indices"):
            assert np.array_equal(row[name], getattr(clip, name)), name
