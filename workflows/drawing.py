"""Masks, ids, scores and prompts drawn on one picture. Knows nothing of videos, files or rows.

Pictures are (H, W, 3) uint8 RGB; positions are pixels of the picture, x right and y down.
Nothing is told by colour alone: objects carry their id, clicks a plus or a minus.
"""

import colorsys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sam2model.prompts import Prompt

Picture = npt.NDArray[np.uint8]  # (H, W, 3)
Mask = npt.NDArray[np.bool_]  # (H, W)
Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1 in px, ends exclusive

FILL_OPACITY = 0.4
HALO_BRIGHTNESS = 0.35  # of the pixels just outside an outline, so that it shows on any ground
GOLDEN_RATIO = 0.6180339887  # its multiples spread over the circle of hues, however many
CLICK_COLOURS = {True: (20, 150, 60), False: (215, 35, 35)}
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


class DrawingError(ValueError):
    """Something that does not fit the picture; the message says what, got and wanted."""


@dataclass(frozen=True, slots=True, eq=False)
class DrawnObject:
    """One object of one picture. mask: (H, W) bool; note: shown behind the id, plain text."""

    object_id: int
    mask: Mask
    note: str = ""


def draw_frame(
    picture: Picture, objects: Sequence[DrawnObject], prompts: Sequence[Prompt] = ()
) -> Picture:
    """A copy of the picture with masks tinted and outlined, objects labelled, prompts marked.

    Labels stand beside their object where there is room, and over nothing else that is drawn.
    An object with an empty mask is not drawn. A prompt's mask is not drawn: its object's is.
    Raises DrawingError if a mask has another size than the picture.
    """
    height, width = picture.shape[:2]
    for each in objects:
        if each.mask.shape != (height, width):
            raise DrawingError(
                f"object {each.object_id}: mask of {each.mask.shape}; wanted the picture's "
                f"(height, width), {(height, width)}"
            )
    visible = [(each, box) for each in objects if (box := _box(each.mask))]
    drawn, line_px = picture.copy(), line_width_px(height, width)
    for paint in (_tint, _outline):  # every outline above every tint
        for each, box in visible:
            paint(drawn, each, box, line_px)
    taken = np.zeros((height, width), dtype=bool)
    for each, _ in visible:
        taken |= each.mask
    canvas = Image.fromarray(drawn)
    for prompt in prompts:
        _mark_prompt(canvas, taken, prompt, line_px)
    for each, box in visible:
        _label(canvas, taken, each, box)
    return np.array(canvas)


def object_colour(object_id: int) -> Colour:
    """The same vivid colour for an id always; ids near each other have hues far apart."""
    red, green, blue = colorsys.hsv_to_rgb(object_id * GOLDEN_RATIO % 1, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(ground: Colour) -> Colour:
    """Black or white, whichever contrasts more: at least 4.5 to 1, as WCAG asks of text."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in ground)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return BLACK if luminance > 0.18 else WHITE


def line_width_px(height: int, width: int) -> int:
    return max(1, round(min(height, width) / 360))


def font_size_px(height: int, width: int) -> int:
    return max(12, round(min(height, width) / 32))


@cache
def font(size_px: int) -> ImageFont.FreeTypeFont:
    built_in = ImageFont.load_default(size_px)
    assert isinstance(built_in, ImageFont.FreeTypeFont)
    return built_in


def printable(text: str) -> str:
    """The text in the built-in font's letters: accents dropped, a ? for what it lacks."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(letters).encode("ascii", "replace").decode()


def _box(mask: Mask) -> Rectangle | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _window(box: Rectangle, margin_px: int) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    return (
        slice(max(y0 - margin_px, 0), y1 + margin_px),
        slice(max(x0 - margin_px, 0), x1 + margin_px),
    )


def _tint(drawn: Picture, each: DrawnObject, box: Rectangle, line_px: int) -> None:
    window = _window(box, 0)
    mask, part = each.mask[window], drawn[window]
    colour = np.array(object_colour(each.object_id))
    part[mask] = np.round(part[mask] * (1 - FILL_OPACITY) + colour * FILL_OPACITY)


def _outline(drawn: Picture, each: DrawnObject, box: Rectangle, line_px: int) -> None:
    """A line of the object's colour on the mask's own edge pixels, a dark one just outside."""
    window = _window(box, line_px + 1)
    mask, part = each.mask[window], drawn[window]
    outside = ~mask
    halo = _grown(mask, max(1, line_px // 2)) & outside
    part[halo] = np.round(part[halo] * HALO_BRIGHTNESS)
    part[mask & _grown(outside, line_px)] = object_colour(each.object_id)


def _grown(mask: Mask, steps: int) -> Mask:
    """The mask and all within so many steps of it: to four neighbours, then to eight, in turns."""
    grown = mask
    for step in range(steps):
        wider = grown.copy()
        wider[1:] |= grown[:-1]
        wider[:-1] |= grown[1:]
        rows = wider.copy() if step % 2 else grown
        wider[:, 1:] |= rows[:, :-1]
        wider[:, :-1] |= rows[:, 1:]
        grown = wider
    return grown


def _mark_prompt(canvas: Image.Image, taken: Mask, prompt: Prompt, line_px: int) -> None:
    """A dashed box, and a disc with a sign for every click; labels keep off what they cover."""
    colour = object_colour(prompt.object_id)
    if prompt.box_xyxy_px is not None:
        x0, y0, x1, y1 = (round(edge) for edge in prompt.box_xyxy_px)
        corners = [(x0, y0), (x1 - 1, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            _dashed_line(canvas, start, end, colour, line_px)
            left, right = sorted((start[0], end[0]))
            top, bottom = sorted((start[1], end[1]))
            taken[_window((left, top, right + 1, bottom + 1), line_px)] = True
    radius_px = 4 * line_px + 3
    for (x, y), positive in zip(prompt.points_px, prompt.positive, strict=True):
        left, top = round(x) - radius_px, round(y) - radius_px
        sprite = _click(radius_px, positive, colour)
        canvas.paste(sprite, (left, top), sprite)
        taken[_window((left, top, left + sprite.width, top + sprite.height), 0)] = True


def _dashed_line(
    canvas: Image.Image, start: tuple[int, int], end: tuple[int, int], colour: Colour, line_px: int
) -> None:
    """Dashes of colour on a dark line, horizontal or vertical."""
    draw = ImageDraw.Draw(canvas)
    draw.line([start, end], fill=BLACK, width=line_px + 2)
    length_px = abs(end[0] - start[0]) + abs(end[1] - start[1])
    dash_px = 6 * line_px
    right, down = np.sign(np.subtract(end, start))
    for begin in range(0, length_px, 2 * dash_px):
        stop = min(begin + dash_px, length_px)
        dash = [(start[0] + right * at, start[1] + down * at) for at in (begin, stop)]
        draw.line(dash, fill=colour, width=line_px)


@cache
def _click(radius_px: int, positive: bool, colour: Colour) -> Image.Image:
    """RGBA disc, 2 · radius + 1 px wide, with a white sign and a ring of the object's colour."""
    scale, size_px = 4, 2 * radius_px + 1  # drawn large and reduced, for smooth edges
    large = Image.new("RGBA", (scale * size_px, scale * size_px))
    draw = ImageDraw.Draw(large)
    middle = scale * size_px / 2
    rings = ((1.0, BLACK), (0.92, colour), (0.74, WHITE), (0.66, CLICK_COLOURS[positive]))
    for share, fill in rings:
        reach = middle * share
        draw.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=fill)
    arm, half = middle * 0.4, middle * 0.1
    draw.rectangle((middle - arm, middle - half, middle + arm, middle + half), fill=WHITE)
    if positive:
        draw.rectangle((middle - half, middle - arm, middle + half, middle + arm), fill=WHITE)
    return large.resize((size_px, size_px), Image.Resampling.LANCZOS)


def _label(canvas: Image.Image, taken: Mask, each: DrawnObject, box: Rectangle) -> None:
    """A plate of the object's colour with its id, where it covers least; the plate is taken."""
    text = printable(f"{each.object_id} {each.note}".rstrip())
    letters = font(font_size_px(*taken.shape))
    ascent_px, descent_px = letters.getmetrics()
    pad_px = max(2, descent_px // 2)
    size = round(letters.getlength(text)) + 2 * pad_px, ascent_px + descent_px
    x, y = _place(taken, size, box, gap_px=pad_px)
    taken[y : y + size[1], x : x + size[0]] = True
    colour = object_colour(each.object_id)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=colour, outline=BLACK)
    draw.text((x + pad_px, y), text, fill=text_colour(colour), font=letters)


def _place(taken: Mask, size: tuple[int, int], box: Rectangle, gap_px: int) -> tuple[int, int]:
    """Upper left corner of a plate of this (width, height): beside the box if it fits there."""
    (width, height), (x0, y0, x1, y1) = size, box
    right, bottom = max(taken.shape[1] - width, 0), max(taken.shape[0] - height, 0)
    above, below, middle = y0 - gap_px - height, y1 + gap_px, (y0 + y1 - height) // 2
    places = [(x0, above), (x1 - width, above), (x0, below), (x1 - width, below)]
    places += [(x1 + gap_px, middle), (x0 - gap_px - width, middle), (x0, y0), (x0, y1 - height)]
    # Pushed into the picture a place may come to lie on the object; then it costs that much.
    inside = [(min(max(x, 0), right), min(max(y, 0), bottom)) for x, y in places]
    return min(inside, key=lambda at: _taken_px(taken, at, size))


def _taken_px(taken: Mask, at: tuple[int, int], size: tuple[int, int]) -> int:
    (x, y), (width, height) = at, size
    return int(np.count_nonzero(taken[y : y + height, x : x + width]))
