"""JPEG frames: those near are made ahead, and memory stays bounded."""

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from workflows.service_frames import FramesConfig, FrameShelf, RgbArray


class Film:
    """Frames of one grey each, as bright as their index; remembers who was asked for."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def frame(self, video_id: str, frame_index: int) -> RgbArray:
        self.may_go_on.wait(10)
        self.made.append(frame_index)
        return np.full((32, 48, 3), frame_index % 256, np.uint8)


@pytest.fixture
def film() -> Film:
    return Film()


@pytest.fixture
def shelf(film: Film) -> Iterator[FrameShelf]:
    made = FrameShelf(film.frame, FramesConfig(ahead=3))
    yield made
    made.close()


def settled(shelf: FrameShelf) -> None:
    """Wait for what is made ahead."""
    shelf._ahead.submit(lambda: None).result(10)


def test_a_frame_comes_as_jpeg_of_its_size(shelf: FrameShelf) -> None:
    with Image.open(io.BytesIO(shelf.jpeg("v", 7, 100))) as image:
        assert image.format == "JPEG" and image.size == (48, 32)
        assert abs(int(np.asarray(image).mean()) - 7) <= 1


def test_those_near_are_made_ahead_and_only_once(shelf: FrameShelf, film: Film) -> None:
    shelf.jpeg("v", 10, 100)
    settled(shelf)
    assert film.made == [10, 11, 12, 13, 7, 8, 9]
    for frame_index in (11, 9, 13):
        shelf.jpeg("v", frame_index, 100)
        settled(shelf)
    assert sorted(film.made) == list(range(6, 17))


def test_nothing_is_made_beyond_the_ends(shelf: FrameShelf, film: Film) -> None:
    shelf.jpeg("v", 1, 3)
    settled(shelf)
    assert sorted(film.made) == [0, 1, 2]


def test_a_newer_wish_replaces_what_was_to_be_made_ahead(shelf: FrameShelf, film: Film) -> None:
    shelf.jpeg("v", 0, 1000)
    settled(shelf)
    film.may_go_on.clear()
    blocked = shelf._ahead.submit(film.may_go_on.wait, 10)
    shelf._make_ahead("v", 100, 1000)
    shelf._make_ahead("v", 500, 1000)
    film.may_go_on.set()
    blocked.result(10)
    settled(shelf)
    assert {k for k in film.made if 97 <= k <= 103} == set()
    assert {497, 503} <= set(film.made)
    assert shelf._newest == {}


def test_what_was_used_longest_ago_leaves_first(film: Film) -> None:
    size_bytes = len(FrameShelf(film.frame, FramesConfig(ahead=0)).jpeg("v", 0, 9))
    shelf = FrameShelf(film.frame, FramesConfig(ahead=0, kept_bytes=3 * size_bytes + 10))
    for frame_index in (0, 1, 2, 0, 3):
        shelf.jpeg("v", frame_index, 9)
    film.made.clear()
    for frame_index in (0, 2, 3, 1):
        shelf.jpeg("v", frame_index, 9)
    assert film.made == [1]


@pytest.mark.parametrize("wrong", [{"jpeg_quality": 0}, {"jpeg_quality": 101}, {"ahead": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        FramesConfig(**wrong)
