"""Which frames' features are kept, where, and what is decoded for the others."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sam2model.feature_cache import FeatureCache, KnownFrame, KnownFrames
from sam2model.labelling_plan import FrameTime
from sam2model.track_step import ImageFeatures

ROW_BYTES = 6 * 4


def features(value: float, rows: int = 1) -> ImageFeatures:
    """Six tensors of one number for each row."""
    return ImageFeatures(*(torch.full((rows, 1), float(value)) for _ in range(6)))


def cache(device_frames: int, host_frames: int, *frames: int, focus: int = 0) -> FeatureCache:
    made = FeatureCache(device_frames * ROW_BYTES, host_frames * ROW_BYTES)
    made.focus(focus)
    for frame in frames:
        made.put(frame, frame / 10, features(frame))
    return made


def kept(of: FeatureCache) -> tuple[list[int], list[int]]:
    """Frames on the device, and in host memory."""
    return sorted(of._near.frames), sorted(of._far.frames)


def test_frames_nearest_to_the_focus_stay_on_the_device_and_the_next_ones_on_the_host() -> None:
    assert kept(cache(3, 4, *range(20), focus=10)) == ([9, 10, 11], [7, 8, 12, 13])


@pytest.mark.parametrize("order", [range(20), range(19, -1, -1)], ids=["forward", "backward"])
def test_a_pass_through_the_whole_video_drives_nothing_out_that_lies_nearer(order: Any) -> None:
    of = cache(2, 2, 5, 6, 4, focus=5)
    for frame in order:
        of.put(frame, frame / 10, features(frame))

    near, far = kept(of)
    assert sorted(near + far) in ([4, 5, 6, 7], [3, 4, 5, 6])


def test_another_focus_lets_what_is_far_from_it_leave_first() -> None:
    of = cache(2, 2, 0, 1, 2, 3)
    of.focus(50)
    for frame in (50, 51):
        of.put(frame, frame / 10, features(frame))

    assert kept(of)[0] == [50, 51]


def test_what_is_kept_comes_back_as_it_was_from_wherever() -> None:
    of = cache(1, 5, 0, 1, 2)
    for frame in range(3):
        known = of.get(frame)
        assert known is not None and (known.index, known.pts_s) == (frame, frame / 10)
        for tensor in known.features_on(torch.device("cpu")).tensors:
            assert tensor.tolist() == [[float(frame)]]
    assert of.get(3) is None


def test_a_row_of_a_batch_does_not_keep_the_batch() -> None:
    of = cache(5, 0)
    of.put(0, 0.0, features(1.0, rows=8).rows(slice(2, 3)))

    known = of.get(0)
    assert known is not None
    rows = known.features_on(torch.device("cpu")).tensors
    assert sum(t.untyped_storage().nbytes() for t in rows) == of.nbytes[0] == ROW_BYTES


def test_bytes_are_counted_whatever_comes_and_goes() -> None:
    of = cache(3, 4, *range(30), focus=12)
    assert of.nbytes == (3 * ROW_BYTES, 4 * ROW_BYTES) and len(of) == 7
    of.leave_device()
    assert of.nbytes == (0, 4 * ROW_BYTES)
    assert sorted(of._far.frames) == [10, 11, 12, 13] or sorted(of._far.frames) == [11, 12, 13, 14]
    of.clear()
    assert of.nbytes == (0, 0) and len(of) == 0


# Decoding what is not known.


class FakeVideo:
    """Notes which frames are decoded, and how often decoding begins."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self.decoded: list[int] = []
        self.begun = 0

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[FrameTime]:
        return self._decode(range(self.num_frames)[start:stop])

    def frames_backwards(self, start: int = 0, stop: int | None = None) -> Iterator[FrameTime]:
        return self._decode(range(self.num_frames)[start:stop][::-1])

    def _decode(self, indices: Any) -> Iterator[FrameTime]:
        self.begun += 1
        for index in indices:
            self.decoded.append(index)
            yield FrameTime(index, index / 10)


def seen(frames: Iterator[Any]) -> tuple[list[int], list[int]]:
    """All frames that come, and which of them are known."""
    all_frames = list(frames)
    return [f.index for f in all_frames], [f.index for f in all_frames if isinstance(f, KnownFrame)]


def test_a_long_run_of_known_frames_is_not_decoded_in_either_direction() -> None:
    known = list(range(20, 50))
    for backwards in (False, True):
        video = FakeVideo(70)
        frames = KnownFrames(video, cache(100, 0, *known))
        came = seen(frames.frames_backwards(10, 60) if backwards else frames.frames(10, 60))
        order = list(range(10, 60))[:: -1 if backwards else 1]

        assert came == (order, [f for f in order if f in known])
        assert not set(video.decoded) & set(known)
        assert video.begun == 2


def test_a_few_known_frames_are_decoded_along_and_still_taken_from_the_cache() -> None:
    video = FakeVideo(40)
    order, known = seen(KnownFrames(video, cache(100, 0, 5, 6, 7)).frames(0, None))

    assert (order, known) == (list(range(40)), [5, 6, 7])
    assert video.begun == 1


def test_frames_end_where_the_video_ends_also_when_all_of_them_are_known() -> None:
    frames = KnownFrames(FakeVideo(20), cache(100, 0, *range(20)))

    assert seen(frames.frames(0, None)) == (list(range(20)), list(range(20)))
    assert seen(frames.frames(15, 30))[0] == [15, 16, 17, 18, 19]
    assert seen(frames.frames_backwards(15, None))[0] == [19, 18, 17, 16, 15]
