"""What a reader of an overlay relies on: colours, outlines, labels and prompts in their places."""

from itertools import combinations

import numpy as np
import pytest

from sam2model.prompts import Prompt
from workflows.drawing import (
    FILL_OPACITY,
    DrawingError,
    DrawnObject,
    Mask,
    Picture,
    draw_frame,
    object_colour,
    printable,
    text_colour,
)

HEIGHT, WIDTH = 240, 320
GREY = 90


def picture() -> Picture:
    return np.full((HEIGHT, WIDTH, 3), GREY, dtype=np.uint8)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def changed(drawn: Picture) -> Mask:
    difference: Mask = (drawn != picture()).any(axis=2)
    return difference


def tinted(colour: tuple[int, int, int]) -> list[int]:
    return [round(GREY * (1 - FILL_OPACITY) + channel * FILL_OPACITY) for channel in colour]


def plate_box(
    drawn: Picture, mask: Mask, colour: tuple[int, int, int]
) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of pixels of exactly the object's colour that do not lie on its mask."""
    ys, xs = np.nonzero((drawn == colour).all(axis=2) & ~mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_a_mask_is_tinted_inside_and_outlined_in_its_colour() -> None:
    drawn = draw_frame(picture(), [DrawnObject(3, rectangle(100, 100, 160, 150))])
    colour = object_colour(3)
    assert drawn[125, 130].tolist() == tinted(colour)
    for y, x in ((100, 130), (149, 130), (125, 100), (125, 159), (100, 100), (149, 159)):
        assert tuple(drawn[y, x]) == colour
    assert drawn[101, 130].tolist() == tinted(colour)  # the line is 1 px wide at this size
    assert drawn[125, 99].max() < GREY / 2  # the dark pixel just outside
    assert drawn[125, 98].tolist() == [GREY] * 3


def test_the_outline_grows_with_the_picture() -> None:
    large = np.full((1080, 1920, 3), GREY, dtype=np.uint8)
    mask = np.zeros((1080, 1920), dtype=bool)
    mask[500:700, 800:1000] = True
    drawn = draw_frame(large, [DrawnObject(3, mask)])
    row = (drawn[600, 790:1010] == object_colour(3)).all(axis=1)
    assert np.flatnonzero(row).tolist() == [10, 11, 12, 207, 208, 209]


def test_a_hole_is_outlined_too_and_keeps_the_picture_inside() -> None:
    ring = rectangle(60, 60, 200, 200) & ~rectangle(100, 100, 160, 160)
    drawn = draw_frame(picture(), [DrawnObject(0, ring)])
    assert tuple(drawn[130, 99]) == object_colour(0)
    assert drawn[130, 130].tolist() == [GREY] * 3


def test_no_line_is_drawn_where_the_image_cuts_the_object() -> None:
    drawn = draw_frame(picture(), [DrawnObject(0, rectangle(0, 100, 60, 200))])
    assert drawn[150, 0].tolist() == tinted(object_colour(0))


def test_outlines_lie_above_all_tints() -> None:
    below, above = rectangle(80, 80, 160, 160), rectangle(120, 100, 220, 180)
    drawn = draw_frame(picture(), [DrawnObject(0, below), DrawnObject(1, above)])
    assert tuple(drawn[130, 159]) == object_colour(0)


def test_the_given_picture_and_mask_stay_as_they_were() -> None:
    original, mask = picture(), rectangle(100, 100, 160, 150)
    drawn = draw_frame(original, [DrawnObject(3, mask)], [Prompt(3, 0, ((120, 120),), (True,))])
    assert (original == GREY).all()
    assert (mask == rectangle(100, 100, 160, 150)).all()
    assert drawn.shape == original.shape and drawn.dtype == np.uint8


def test_empty_masks_and_no_masks_leave_the_picture_alone() -> None:
    assert not changed(draw_frame(picture(), [])).any()
    assert not changed(draw_frame(picture(), [DrawnObject(1, rectangle(0, 0, 0, 0))])).any()


def test_ids_have_colours_that_differ_and_stay() -> None:
    assert [object_colour(i) for i in (0, 1, 2)] == [(255, 38, 38), (38, 101, 255), (165, 255, 38)]
    for a, b in combinations(range(8), 2):
        distance = np.abs(np.subtract(object_colour(a), object_colour(b))).sum()
        assert distance > 70, f"objects {a} and {b}"


def test_text_is_readable_on_every_plate() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:  # WCAG 2 relative luminance
        channels = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for object_id in range(200):
        plate = object_colour(object_id)
        bright, dark = sorted([luminance(plate), luminance(text_colour(plate))], reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 4.5, f"object {object_id}"


def test_a_label_stands_above_its_object_and_not_on_it() -> None:
    mask = rectangle(100, 100, 200, 150)
    drawn = draw_frame(picture(), [DrawnObject(1, mask, "cup 0.93")])
    x0, y0, x1, y1 = plate_box(drawn, mask, object_colour(1))
    assert y1 <= 100 and y0 > 80
    assert 100 <= x0 < x1 < 200
    inside = drawn[105:145, 105:195].reshape(-1, 3)
    assert (inside == tinted(object_colour(1))).all()


@pytest.mark.parametrize(
    "box",
    [(0, 0, 50, 50), (270, 0, 320, 50), (0, 190, 50, 240), (270, 190, 320, 240), (0, 60, 320, 240)],
)
def test_a_label_stays_in_the_picture_and_off_an_object_at_its_edge(
    box: tuple[int, int, int, int],
) -> None:
    mask = rectangle(*box)
    drawn = draw_frame(picture(), [DrawnObject(1, mask, "object 0.50")])
    bare = draw_frame(picture(), [DrawnObject(1, mask)])
    x0, y0, x1, y1 = plate_box(drawn, mask, object_colour(1))
    assert (x1 - x0) > 40 and (y1 - y0) > 10
    assert (drawn[mask] == bare[mask]).all()


def test_an_object_that_fills_the_picture_is_still_labelled() -> None:
    full = rectangle(0, 0, WIDTH, HEIGHT)
    drawn = draw_frame(picture(), [DrawnObject(1, full, "everything")])
    assert (drawn == object_colour(1)).all(axis=2).sum() > 500


def test_labels_of_neighbours_cover_neither_object_nor_each_other() -> None:
    masks = [rectangle(20 + 30 * i, 100, 48 + 30 * i, 140) for i in range(4)]
    objects = [DrawnObject(i, mask, "cup 0.9") for i, mask in enumerate(masks)]
    drawn = draw_frame(picture(), objects)
    union = np.logical_or.reduce(masks)
    boxes = [plate_box(drawn, union, object_colour(i)) for i in range(4)]
    assert all((x1 - x0) > 40 for x0, _, x1, _ in boxes)  # each plate is whole
    for (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) in combinations(boxes, 2):
        assert ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0
    for each, mask in zip(objects, masks, strict=True):
        assert drawn[120, int(np.flatnonzero(mask[120])[5])].tolist() == tinted(
            object_colour(each.object_id)
        )


def test_a_label_without_room_covers_least() -> None:
    wide = rectangle(0, 20, WIDTH, HEIGHT)  # leaves a strip that holds the label
    drawn = draw_frame(picture(), [DrawnObject(1, wide, "wall")])
    assert changed(drawn)[:18].any()
    assert drawn[60, 160].tolist() == tinted(object_colour(1))


def test_a_plus_and_a_minus_differ_by_more_than_colour() -> None:
    clicks = Prompt(2, 0, ((100, 100), (200, 100)), (True, False))
    drawn = draw_frame(picture(), [], [clicks])
    white = (drawn > 230).all(axis=2)
    assert white[100, 98:103].all() and white[100, 198:203].all()  # both have a bar
    assert white[98:103, 100].all() and not white[97, 200]  # only the plus is crossed
    assert not changed(drawn)[100, 110:190].any()


def test_a_click_at_the_edge_is_drawn_as_far_as_it_is_seen() -> None:
    drawn = draw_frame(picture(), [], [Prompt(2, 0, ((0, 0), (319, 239)), (True, True))])
    assert changed(drawn)[0, 0] and changed(drawn)[239, 319]


def test_labels_keep_off_clicks() -> None:
    mask = rectangle(100, 100, 200, 150)
    click = Prompt(5, 0, ((110, 92),), (True,))
    drawn = draw_frame(picture(), [DrawnObject(1, mask, "cup")], [click])
    alone = draw_frame(picture(), [], [click])
    sign = alone[88:97, 106:115]
    assert (drawn[88:97, 106:115] == sign).all()


def test_labels_keep_off_boxes() -> None:
    mask, box = rectangle(100, 100, 200, 150), Prompt(5, 0, box_xyxy_px=(90, 90, 210, 160))
    drawn = draw_frame(picture(), [DrawnObject(1, mask, "cup")], [box])
    line = draw_frame(picture(), [], [box])[90, 90:210]
    assert (drawn[90, 90:210] == line).all()


def test_a_box_is_dashed_in_the_colour_of_its_object() -> None:
    drawn = draw_frame(picture(), [], [Prompt(4, 0, box_xyxy_px=(50, 60, 250, 200))])
    for line in (drawn[60, 50:250], drawn[199, 50:250], drawn[60:200, 50], drawn[60:200, 249]):
        coloured = (line == object_colour(4)).all(axis=1)
        assert 0.3 < coloured.mean() < 0.7
        assert (line[~coloured] == 0).mean() > 0.9
    assert not changed(drawn)[130, 60:240].any()


def test_letters_that_the_font_lacks_are_replaced() -> None:
    assert printable("tasse à café, 杯") == "tasse a cafe, ?"
    mask = rectangle(100, 100, 200, 150)
    spelled = draw_frame(picture(), [DrawnObject(1, mask, "cafe")])
    assert (draw_frame(picture(), [DrawnObject(1, mask, "café")]) == spelled).all()


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(DrawingError, match=r"object 7: mask of \(10, 10\); wanted .*\(240, 320\)"):
        draw_frame(picture(), [DrawnObject(7, np.ones((10, 10), dtype=bool))])


def test_drawing_twice_gives_the_same_picture() -> None:
    objects = [
        DrawnObject(i, rectangle(10 * i, 10 * i, 60 + 10 * i, 50 + 10 * i)) for i in range(5)
    ]
    assert (draw_frame(picture(), objects) == draw_frame(picture(), objects)).all()
