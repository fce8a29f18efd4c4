"""Pictures to judge masks by: an overlay video and a contact sheet, revisions side by side.

Knows nothing of models, tables or storage: takes an open video and rows of masks, writes a local
file. What is drawn on one picture, and how, is workflows/drawing.py.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sam2model import rle
from sam2model.prompts import Prompt
from sam2model.video import Frame, PrefetchedFrames, Video
from sam2model.video_writer import write_video
from workflows.drawing import (
    DrawnObject,
    Mask,
    Picture,
    draw_frame,
    font,
    font_size_px,
    printable,
)

FRAMES_AHEAD = 8  # decoded while earlier ones are drawn and encoded
ASSUMED_FPS = 25.0  # for a video that does not say
PANEL_GAP_PX, TILE_GAP_PX = 4, 16  # between a frame's panels; between frames on a sheet
BAR_COLOUR, BAR_TEXT_COLOUR = (24, 24, 24), (240, 240, 240)

MaskRow = Mapping[str, Any]  # object_id, frame_index, counts, height, width; iou_pred if known


class OverlayError(ValueError):
    """Masks that do not belong on this video; the message says what, where, got and wanted."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One revision of a video's masks, as one of the pictures side by side.

    masks: frame_index → object_id → row. prompts: frame_index → what a person said there.
    categories: object_id → name, shown behind the id.
    """

    title: str
    masks: Mapping[int, Mapping[int, MaskRow]]
    prompts: Mapping[int, Sequence[Prompt]] = field(default_factory=dict)
    categories: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def from_rows(
        cls,
        title: str,
        rows: Iterable[MaskRow],
        prompts: Iterable[Prompt] = (),
        categories: Mapping[int, str] | None = None,
    ) -> "Panel":
        """Rows of one video at one revision; OverlayError for an object twice on a frame."""
        masks: dict[int, dict[int, MaskRow]] = {}
        for row in rows:
            objects = masks.setdefault(row["frame_index"], {})
            if row["object_id"] in objects:
                raise OverlayError(
                    f"{title}: object {row['object_id']} has two masks on frame "
                    f"{row['frame_index']}; wanted rows of one video at one revision"
                )
            objects[row["object_id"]] = row
        by_frame: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_frame.setdefault(prompt.frame_index, []).append(prompt)
        return cls(title, masks, by_frame, categories or {})


def write_overlay(
    video: Video,
    panels: Sequence[Panel],
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    picture_height_px: int | None = None,
) -> int:
    """Frames start … stop-1 with the panels side by side, as .mp4 or .webm; how many it wrote.

    picture_height_px: of one picture, if the video's own is larger. A frame of the video is a frame
    of the overlay, at the video's mean rate. Raises as Video.frames and write_video do, and
    OverlayError for masks of another size; there is no file then.
    """
    with PrefetchedFrames(video.frames(start, stop), FRAMES_AHEAD) as frames:
        pictures = (draw_panels(frame, panels, picture_height_px) for frame in frames)
        return write_video(path, pictures, video.info.fps or ASSUMED_FPS)


def write_contact_sheet(
    video: Video,
    panels: Sequence[Panel],
    path: Path,
    frame_indices: Sequence[int],
    *,
    columns: int = 4,
    picture_height_px: int = 240,
) -> None:
    """A PNG of some frames, left to right and down, each with the panels side by side.

    Raises as Video.frame does, and OverlayError; there is no file then.
    """
    if not frame_indices:
        raise OverlayError(f"{path.name}: no frames to show")
    tiles = [draw_panels(video.frame(i), panels, picture_height_px) for i in frame_indices]
    unfinished = path.with_name(f".{path.stem}.unfinished.png")
    try:
        Image.fromarray(_grid(tiles, columns, TILE_GAP_PX)).save(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def sheet_frames(panels: Sequence[Panel], count: int) -> list[int]:
    """Up to `count` frames to show: those with prompts, then labelled ones far from all chosen."""
    prompted = sorted({index for panel in panels for index in panel.prompts})
    labelled = np.array(sorted({index for panel in panels for index in panel.masks}), dtype=int)
    places = np.linspace(0, len(prompted) - 1, min(count, len(prompted))).round().astype(int)
    chosen = [prompted[place] for place in places] or labelled[:1].tolist()
    while len(chosen) < count and labelled.size:
        distances = np.abs(labelled[:, None] - chosen).min(axis=1)
        if not distances.any():
            break
        chosen.append(int(labelled[distances.argmax()]))
    return sorted(chosen[:count])


def draw_panels(
    frame: Frame, panels: Sequence[Panel], picture_height_px: int | None = None
) -> Picture:
    """One frame as each panel has it, side by side, each under a line of text."""
    pictures = []
    for number, panel in enumerate(panels):
        picture = _draw_panel(frame, panel, picture_height_px)
        base = panels[0] if number else None
        pictures.append(_with_caption(picture, panel_caption(frame, panel, base)))
    return _grid(pictures, len(pictures), PANEL_GAP_PX)


def panel_caption(frame: Frame, panel: Panel, base: Panel | None = None) -> str:
    """The panel, the frame, the objects that are absent, and those that differ from the base.

    The most different come first, those that only one of the two has come last.
    """
    rows = panel.masks.get(frame.index, {})
    parts = [panel.title, f"frame {frame.index}", f"{frame.pts_s:.2f} s"]
    absent = [
        str(object_id) for object_id in sorted(rows) if not rle.area(rows[object_id]["counts"])
    ]
    if absent:
        parts.append(f"absent: {', '.join(absent)}")
    if base is not None:
        parts.append(_difference(base.masks.get(frame.index, {}), rows))
    return "   ".join(parts)


def _draw_panel(frame: Frame, panel: Panel, picture_height_px: int | None) -> Picture:
    height, width = frame.rgb.shape[:2]
    scale = min(1.0, (picture_height_px or height) / height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    objects = [
        DrawnObject(object_id, _shrunk_mask(mask, size), _note(panel, row))
        for object_id, row in sorted(panel.masks.get(frame.index, {}).items())
        if (mask := _decode(frame, panel, row)).any()
    ]
    prompts = [_shrunk_prompt(prompt, scale) for prompt in panel.prompts.get(frame.index, ())]
    # Shrunk before it is drawn on, so that lines and letters keep their size.
    return draw_frame(_shrunk_picture(frame.rgb, size), objects, prompts)


def _decode(frame: Frame, panel: Panel, row: MaskRow) -> Mask:
    height, width = frame.rgb.shape[:2]
    where = f"{panel.title}: object {row['object_id']}, frame {frame.index}"
    if (row["height"], row["width"]) != (height, width):
        raise OverlayError(
            f"{where}: mask of {row['height']}×{row['width']} (rows × columns); wanted the "
            f"video's {height}×{width}"
        )
    try:
        return rle.decode(row["counts"], height, width)
    except rle.RleError as error:
        raise OverlayError(f"{where}: {error}") from error


def _note(panel: Panel, row: MaskRow) -> str:
    category, iou = panel.categories.get(row["object_id"], ""), row.get("iou_pred")
    return f"{category} {iou:.2f}".lstrip() if iou is not None else category


def _shrunk_picture(picture: Picture, size: tuple[int, int]) -> Picture:
    """size: (height, width), as everywhere here; Pillow counts the other way."""
    if picture.shape[:2] == size:
        return picture
    return np.array(Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS))


def _shrunk_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    if mask.shape == size:
        return mask
    shares = Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.BOX)
    covered: Mask = np.asarray(shares) >= 128
    # What is too small to fill half a pixel anywhere is still shown.
    return covered if covered.any() else np.asarray(shares) > 0


def _shrunk_prompt(prompt: Prompt, scale: float) -> Prompt:
    box = prompt.box_xyxy_px
    return replace(
        prompt,
        points_px=tuple((x * scale, y * scale) for x, y in prompt.points_px),
        box_xyxy_px=box and (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale),
    )


def _difference(before: Mapping[int, MaskRow], after: Mapping[int, MaskRow]) -> str:
    ious = {i: rle.iou(before[i]["counts"], after[i]["counts"]) for i in before.keys() & after}
    changed = sorted((iou, object_id) for object_id, iou in ious.items() if iou < 1)
    texts = [f"{object_id} (IoU {iou:.2f})" for iou, object_id in changed]
    texts += [f"{object_id} (added)" for object_id in sorted(after.keys() - before.keys())]
    texts += [f"{object_id} (not here)" for object_id in sorted(before.keys() - after.keys())]
    return f"differs: {', '.join(texts)}" if texts else "no difference"


def _with_caption(picture: Picture, text: str) -> Picture:
    """The picture under a bar with the text, cut where the bar ends."""
    height, width = picture.shape[:2]
    size_px = font_size_px(height, width)
    bar = Image.new("RGB", (width, round(1.6 * size_px)), BAR_COLOUR)
    draw = ImageDraw.Draw(bar)
    place = (size_px // 2, bar.height // 2)
    draw.text(place, printable(text), fill=BAR_TEXT_COLOUR, font=font(size_px), anchor="lm")
    return np.vstack([np.array(bar), picture])


def _grid(tiles: Sequence[Picture], columns: int, gap_px: int) -> Picture:
    """Pictures of one size, left to right and down, black between them and at the end."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    down_px, right_px = tiles[0].shape[0] + gap_px, tiles[0].shape[1] + gap_px
    grid = np.zeros((rows * down_px, columns * right_px, 3), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * down_px, number % columns * right_px
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid[: grid.shape[0] - gap_px, : grid.shape[1] - gap_px]
