"""Labels of datasets and annotated folders become clips: the right frames, masks and sizes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from labelled import label, relabel
from PIL import Image
from videos import moving_square, square_mask, write_moving_square

from sam2model import rle
from workflows.rows import Review
from workflows.storage import Storage
from workflows.train_clips import DrawnClips, KeptClips, MixedClips
from workflows.train_recorded import (
    RecordedClips,
    RecordedVideo,
    TrainingDataError,
    videos_of_dataset,
    videos_of_folder,
)
from workflows.train_scenes import Clip

FRAMES, SIZE = 16, 64


def squeezed(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask at the size of clips, by counting pixels."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(image) > 127


def clips_of(videos: list[RecordedVideo], frames: int = 4, count: int = 8) -> RecordedClips:
    return RecordedClips(videos, Storage(), count, frames, SIZE, seed=0)


def assert_follows_the_square(clip: Clip, number: int = 1) -> None:
    for time, frame, labels in zip(clip.times, clip.frames, clip.labels, strict=True):
        truth = squeezed(square_mask(int(time)))
        overlap = ((labels == number) & truth).sum() / ((labels == number) | truth).sum()
        assert overlap > 0.9, time
        assert frame[truth][:, 0].mean() > 180  # it is red
        assert frame[~truth][:, 0].mean() < 120


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A video whose bulk labels are wrong, corrected and accepted; and one that nobody saw."""
    video = write_moving_square(tmp_path / "square.mp4", FRAMES)
    wrong = {1: {t: np.roll(square_mask(t), 40, axis=0) for t in range(FRAMES)}}
    root = str(tmp_path / "labels")
    label(root, {"seen": wrong, "unseen": wrong}, video_uri=str(video))
    right = {1: {t: square_mask(t) for t in range(FRAMES)}}
    relabel(root, "seen", right, review=Review.ACCEPTED)
    return root


def test_accepted_corrections_of_a_dataset_are_what_is_learnt(dataset: str) -> None:
    videos = videos_of_dataset(dataset, Storage(), ("accepted",))
    assert [video.video_id for video in videos] == ["seen"]
    clips = clips_of(videos)
    starts = set()
    for index in range(len(clips)):
        clip = clips.clip(index)
        assert clip.frames.shape == (4, SIZE, SIZE, 3) and clip.labels.shape == (4, SIZE, SIZE)
        assert_follows_the_square(clip)
        starts.add(clip.times[0])
    assert len(starts) > 2


def test_a_dataset_without_accepted_tracks_is_refused(dataset: str) -> None:
    assert len(videos_of_dataset(dataset, Storage(), ("open", "accepted"))) == 2
    with pytest.raises(TrainingDataError, match="no object is rejected"):
        videos_of_dataset(dataset, Storage(), ("rejected",))


def test_a_new_correction_makes_other_clips(dataset: str) -> None:
    before = clips_of(videos_of_dataset(dataset, Storage(), ("accepted",)))
    again = clips_of(videos_of_dataset(dataset, Storage(), ("accepted",)))
    assert before.name == again.name
    relabel(dataset, "seen", {1: {0: square_mask(3)}}, review=Review.ACCEPTED)
    assert clips_of(videos_of_dataset(dataset, Storage(), ("accepted",))).name != before.name


def test_a_davis_folder_gives_its_frames_and_label_maps(tmp_path: Path) -> None:
    for index in range(6):
        for kind, picture in (("JPEG", moving_square(index)), ("PNG", square_mask(index) * 2)):
            folder = tmp_path / kind / "square"
            folder.mkdir(parents=True, exist_ok=True)
            suffix = "jpg" if kind == "JPEG" else "png"
            image = Image.fromarray(picture.astype(np.uint8))
            image.save(folder / f"{index:05d}.{suffix}", quality=95)
    videos = videos_of_folder(
        tmp_path / "PNG", str(tmp_path / "JPEG"), Storage(), tmp_path / "encoded"
    )
    # Object 1 is a gap in DAVIS' numbering; object 2 is the square.
    assert_follows_the_square(clips_of(videos).clip(0), number=2)


def test_sa_v_masks_belong_to_every_fourth_frame(tmp_path: Path) -> None:
    write_moving_square(tmp_path / "square.mp4", FRAMES)
    masks = [square_mask(t) for t in range(0, FRAMES, 4)]
    entry = [[{"size": list(m.shape), "counts": rle.encode_mask(m)}] for m in masks]
    (tmp_path / "square_manual.json").write_text(json.dumps({"masklet_id": [5], "masklet": entry}))
    videos = videos_of_folder(tmp_path, str(tmp_path), Storage(), tmp_path / "encoded")
    clip = clips_of(videos).clip(0)
    assert clip.times == (0.0, 4.0, 8.0, 12.0)
    assert_follows_the_square(clip)


def test_a_real_annotation_becomes_clips(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    annotation = real_data("sav_000001_manual.json")
    (tmp_path / "sav_000001_manual.json").symlink_to(annotation)
    num_frames = 4 * len(json.loads(annotation.read_text())["masklet"])
    write_moving_square(tmp_path / "sav_000001.mp4", num_frames, 32, 32)
    videos = videos_of_folder(tmp_path, str(tmp_path), Storage(), tmp_path / "encoded")
    clip = clips_of(videos, frames=3).clip(0)
    assert set(np.unique(clip.labels)) > {0} and clip.times[1] - clip.times[0] == 4


def test_a_video_with_too_few_masks_is_named(dataset: str) -> None:
    videos = videos_of_dataset(dataset, Storage(), ("accepted",))
    with pytest.raises(TrainingDataError, match=r"seen: 16 frames have masks; wanted at least 17"):
        clips_of(videos, frames=17).clip(0)


def test_masks_past_the_end_of_a_video_are_named(tmp_path: Path) -> None:
    write_moving_square(tmp_path / "square.mp4", 6)
    masks = [square_mask(t) for t in range(0, FRAMES, 4)]
    entry = [[{"size": list(m.shape), "counts": rle.encode_mask(m)}] for m in masks]
    (tmp_path / "square_manual.json").write_text(json.dumps({"masklet_id": [5], "masklet": entry}))
    videos = videos_of_folder(tmp_path, str(tmp_path), Storage(), tmp_path / "encoded")
    with pytest.raises(TrainingDataError, match="a mask for frame 8; it has frames 0 to 5"):
        clips_of(videos).clip(0)


def test_kept_clips_are_made_once_and_stay_the_same(tmp_path: Path) -> None:
    drawn = DrawnClips(seed=5, count=3, num_frames=2, size=32)
    made: list[int] = []

    class Counting:
        name = drawn.name

        def __len__(self) -> int:
            return len(drawn)

        def clip(self, index: int) -> Clip:
            made.append(index)
            return drawn.clip(index)

    kept = KeptClips(Counting(), tmp_path)
    made.clear()
    for _ in range(2):
        assert np.array_equal(kept.clip(1).frames, drawn.clip(1).frames)
    again = KeptClips(drawn, tmp_path)  # another process finds what the first one made
    assert np.array_equal(again.clip(1).labels, drawn.clip(1).labels)
    assert made == [1]


def test_sources_mix_by_their_shares() -> None:
    class Constant:
        def __init__(self, value: int) -> None:
            self.name, self._value = str(value), value

        def __len__(self) -> int:
            return 500

        def clip(self, index: int) -> Clip:
            filled = np.full((1, 2, 2), self._value, np.uint8)
            return Clip(np.zeros((1, 2, 2, 3), np.uint8), filled, (0.0,))

    mixed = MixedClips([Constant(1), Constant(2)], [3.0, 1.0])
    drawn = [int(mixed.clip(index).labels[0, 0, 0]) for index in range(len(mixed))]
    assert drawn.count(1) == pytest.approx(750, abs=50)
    assert drawn == [int(mixed.clip(index).labels[0, 0, 0]) for index in range(len(mixed))]
