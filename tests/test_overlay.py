"""Overlay videos and contact sheets: the right masks on the right frames, whole files or none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam2model import rle
from sam2model.prompts import Prompt
from sam2model.video import Frame, Video, VideoError
from sam2model.video_writer import write_video
from workflows.drawing import FILL_OPACITY, object_colour
from workflows.overlay import (
    PANEL_GAP_PX,
    TILE_GAP_PX,
    OverlayError,
    Panel,
    draw_panels,
    panel_caption,
    sheet_frames,
    write_contact_sheet,
    write_overlay,
)

HEIGHT, WIDTH, NUM_FRAMES, GREY = 96, 160, 16, 100
BAR_PX = 19  # of pictures up to 384 px: 1.6 times the smallest letters, 12 px


@pytest.fixture(scope="module")
def video_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 frames of 96×160 in one grey."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    grey = np.full((HEIGHT, WIDTH, 3), GREY, dtype=np.uint8)
    write_video(path, [grey] * NUM_FRAMES, 10)
    return path


@pytest.fixture
def video(video_path: Path) -> Iterator[Video]:
    with Video(video_path, name="grey.mp4") as opened:
        yield opened


def row(object_id: int, frame_index: int, x0: int, size: int = 40, **more: Any) -> dict[str, Any]:
    """A square from (x0, 40); size 0: absent."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[40 : 40 + size, x0 : x0 + size] = True
    counts = rle.encode_mask(mask)
    return {
        "object_id": object_id,
        "frame_index": frame_index,
        "counts": counts,
        "height": HEIGHT,
        "width": WIDTH,
    } | more


def grey_frame(index: int = 0) -> Frame:
    return Frame(index, index / 10, np.full((HEIGHT, WIDTH, 3), GREY, dtype=np.uint8))


def tinted(object_id: int) -> list[int]:
    colour = object_colour(object_id)
    return [round(GREY * (1 - FILL_OPACITY) + channel * FILL_OPACITY) for channel in colour]


def test_every_frame_shows_its_own_masks(video: Video, tmp_path: Path) -> None:
    panel = Panel.from_rows("auto", [row(1, index, 5 * index) for index in range(NUM_FRAMES)])
    path = tmp_path / "overlay.mp4"
    assert write_overlay(video, [panel], path) == NUM_FRAMES
    with Video(path, name="overlay.mp4") as overlay:
        assert overlay.info.fps == 10
        frames = list(overlay.frames())
    assert len(frames) == NUM_FRAMES
    for frame in frames:
        assert frame.rgb.shape == (BAR_PX + HEIGHT + 1, WIDTH, 3)  # even, for the codec
        line = frame.rgb[BAR_PX + 60].astype(int)
        blue = np.flatnonzero(line[:, 2] - line[:, 0] > 40)
        assert abs(blue.min() - 5 * frame.index) <= 2
        assert abs(blue.max() - min(5 * frame.index + 39, WIDTH - 1)) <= 2


def test_a_part_of_the_video_keeps_its_frame_numbers(video: Video, tmp_path: Path) -> None:
    panel = Panel.from_rows("auto", [row(1, 9, 100)])
    assert write_overlay(video, [panel], tmp_path / "part.webm", start=8, stop=11) == 3
    with Video(tmp_path / "part.webm", name="part.webm") as overlay:
        shown = [abs(int(f.rgb[BAR_PX + 60, 120, 2]) - tinted(1)[2]) < 12 for f in overlay.frames()]
    assert shown == [False, True, False]


def test_panels_stand_side_by_side_with_a_mask_each() -> None:
    auto = Panel.from_rows("auto", [row(1, 0, 0)])
    corrected = Panel.from_rows("corrected", [row(1, 0, 100)])
    picture = draw_panels(grey_frame(), [auto, corrected])
    assert picture.shape == (BAR_PX + HEIGHT, 2 * WIDTH + PANEL_GAP_PX, 3)
    right = WIDTH + PANEL_GAP_PX
    assert picture[BAR_PX + 60, 20].tolist() == tinted(1)
    assert picture[BAR_PX + 60, 120].tolist() == [GREY] * 3
    assert picture[BAR_PX + 60, right + 20].tolist() == [GREY] * 3
    assert picture[BAR_PX + 60, right + 120].tolist() == tinted(1)
    assert not picture[:, WIDTH:right].any()


def test_the_caption_names_panel_frame_time_and_absent_objects() -> None:
    panel = Panel.from_rows(
        "revision 2", [row(1, 7, 0), row(4, 7, 0, size=0), row(3, 7, 0, size=0)]
    )
    assert panel_caption(grey_frame(7), panel) == "revision 2   frame 7   0.70 s   absent: 3, 4"


def test_the_caption_names_what_differs_from_the_first_panel() -> None:
    before = Panel.from_rows("a", [row(1, 0, 0), row(2, 0, 0), row(3, 0, 50), row(8, 0, 0)])
    after = Panel.from_rows("b", [row(1, 0, 0), row(2, 0, 8), row(3, 0, 70), row(9, 0, 0)])
    assert panel_caption(grey_frame(), after, before).endswith(
        "differs: 3 (IoU 0.33), 2 (IoU 0.67), 9 (added), 8 (not here)"
    )
    assert panel_caption(grey_frame(), before, before).endswith("no difference")


def test_the_second_panel_is_compared_with_the_first() -> None:
    panel = Panel.from_rows("", [row(1, 0, 0)])
    bar = draw_panels(grey_frame(), [panel, panel])[:BAR_PX]
    longer = [np.flatnonzero((part > 200).any(axis=(0, 2))).max() for part in (bar[:, :WIDTH], bar)]
    assert longer[1] - WIDTH > longer[0] + 20  # "no difference" stands behind


def test_the_caption_is_drawn_in_the_bar_and_cut_at_its_end() -> None:
    short = draw_panels(grey_frame(), [Panel.from_rows("x", [])])
    long = draw_panels(grey_frame(), [Panel.from_rows("x" * 500, [])])
    assert short.shape == long.shape
    assert (short[:BAR_PX] > 200).any() and (long[:BAR_PX, -10:] > 200).any()
    assert (long[BAR_PX:] == GREY).all()


def test_prompts_are_drawn_on_their_frame_only() -> None:
    panel = Panel.from_rows("auto", [], [Prompt(1, 3, ((80, 50),), (True,))])
    assert (draw_panels(grey_frame(3), [panel])[BAR_PX + 50, 80] > 200).all()
    assert (draw_panels(grey_frame(4), [panel])[BAR_PX:] == GREY).all()


def test_labels_show_the_category_and_the_predicted_iou() -> None:
    def label(categories: dict[int, str], **more: Any) -> Any:
        return draw_panels(
            grey_frame(), [Panel.from_rows("", [row(1, 0, 0, **more)], (), categories)]
        )

    bare, named, scored = label({}), label({1: "cup"}), label({1: "cup"}, iou_pred=0.5)
    blue = [(picture == object_colour(1)).all(axis=2).sum() for picture in (bare, named, scored)]
    assert blue[0] < blue[1] < blue[2]
    assert (label({}, iou_pred=None) == bare).all()


def test_a_small_picture_has_masks_and_prompts_in_their_places() -> None:
    large = Frame(0, 0.0, np.full((960, 1600, 3), GREY, dtype=np.uint8))
    mask = np.zeros((960, 1600), dtype=bool)
    mask[400:800, 1000:1400] = True
    ball = np.zeros_like(mask)
    ball[300:303, 200:203] = True
    rows = [
        row(i, 0, 0, counts=rle.encode_mask(m), height=960, width=1600)
        for i, m in ((1, mask), (2, ball))
    ]
    panel = Panel.from_rows("", rows, [Prompt(1, 0, ((300, 700),), (True,))])
    picture = draw_panels(large, [panel], picture_height_px=96)[BAR_PX:]
    assert picture.shape == (96, 160, 3)
    assert picture[60, 120].tolist() == tinted(1)
    assert picture[60, 95].tolist() == [GREY] * 3
    assert (picture[70, 30] > 200).all()  # the middle of a plus
    assert tuple(picture[30, 20]) == object_colour(2)  # a third of a pixel, still shown


def test_a_picture_is_never_enlarged() -> None:
    assert draw_panels(grey_frame(), [Panel.from_rows("", [])], 5000).shape[1] == WIDTH


def test_a_contact_sheet_fills_rows_from_the_left(video: Video, tmp_path: Path) -> None:
    panel = Panel.from_rows("auto", [row(1, index, 10 * index) for index in (0, 5, 9)])
    path = tmp_path / "sheet.png"
    write_contact_sheet(video, [panel], path, [0, 5, 9], columns=2)
    sheet = np.array(Image.open(path))
    tile = BAR_PX + HEIGHT
    assert sheet.shape == (2 * tile + TILE_GAP_PX, 2 * WIDTH + TILE_GAP_PX, 3)
    places = [(0, 0), (0, WIDTH + TILE_GAP_PX), (tile + TILE_GAP_PX, 0)]
    for (top, left), index in zip(places, (0, 5, 9), strict=True):
        line = sheet[top + BAR_PX + 60, left : left + WIDTH].astype(int)
        blue = np.flatnonzero(line[:, 2] - line[:, 0] > 40)
        assert (blue.min(), blue.max()) == (10 * index, 10 * index + 39)
    assert not sheet[tile + TILE_GAP_PX :, WIDTH:].any()


def test_a_sheet_takes_prompted_frames_first_and_spreads_the_rest() -> None:
    rows = [row(1, index, 0) for index in range(10, 111)]
    prompts = [Prompt(1, 50, ((1, 1),), (True,)), Prompt(1, 10, ((1, 1),), (True,))]
    panel = Panel.from_rows("auto", rows, prompts)
    assert sheet_frames([panel], 5) == [10, 30, 50, 80, 110]
    assert sheet_frames([panel], 2) == [10, 50]
    assert sheet_frames([panel], 1) == [10]
    assert sheet_frames([panel], 1000) == list(range(10, 111))
    assert sheet_frames([Panel.from_rows("", rows)], 3) == [10, 60, 110]
    assert sheet_frames([Panel.from_rows("", rows[:1], prompts)], 5) == [10, 50]
    assert sheet_frames([Panel.from_rows("", rows[1:3], prompts)], 5) == [10, 11, 12, 50]
    assert sheet_frames([Panel.from_rows("", [])], 5) == []


def test_an_object_twice_on_a_frame_is_refused() -> None:
    with pytest.raises(OverlayError, match="auto: object 1 has two masks on frame 3"):
        Panel.from_rows("auto", [row(1, 3, 0), row(1, 3, 5)])


def test_a_mask_of_another_video_is_refused_and_nothing_is_written(
    video: Video, tmp_path: Path
) -> None:
    rows = [row(1, 0, 0), row(1, 2, 0, height=WIDTH, width=HEIGHT)]
    panel = Panel.from_rows("auto", rows)
    wanted = "auto: object 1, frame 2: mask of 160×96 .* wanted the video's 96×160"
    with pytest.raises(OverlayError, match=wanted):
        write_overlay(video, [panel], tmp_path / "overlay.mp4")
    with pytest.raises(OverlayError, match=wanted):
        write_contact_sheet(video, [panel], tmp_path / "sheet.png", [0, 2])
    assert list(tmp_path.iterdir()) == []


def test_damaged_run_lengths_are_refused_with_their_place(video: Video, tmp_path: Path) -> None:
    panel = Panel.from_rows("auto", [row(1, 2, 0, counts="06")])
    with pytest.raises(OverlayError, match="auto: object 1, frame 2: .*wanted 96×160"):
        write_overlay(video, [panel], tmp_path / "overlay.mp4")
    assert list(tmp_path.iterdir()) == []


def test_frames_that_the_video_lacks_are_refused(video: Video, tmp_path: Path) -> None:
    panel = Panel.from_rows("auto", [])
    with pytest.raises(IndexError, match="frame 16"):
        write_contact_sheet(video, [panel], tmp_path / "sheet.png", [16])
    with pytest.raises(OverlayError, match="sheet.png: no frames to show"):
        write_contact_sheet(video, [panel], tmp_path / "sheet.png", [])
    assert list(tmp_path.iterdir()) == []


def test_a_video_cut_short_leaves_no_overlay(video_path: Path, tmp_path: Path) -> None:
    cut = video_path.read_bytes()[:-200]
    with (
        pytest.raises(VideoError),
        Video(cut, name="cut.mp4") as damaged,
    ):
        write_overlay(damaged, [Panel.from_rows("auto", [])], tmp_path / "overlay.mp4")
    assert list(tmp_path.iterdir()) == []
