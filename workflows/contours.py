"""Masks as one closed path of pixels and back. Knows nothing of formats or files.

A path is what a polygon reader of YOLO fills: pixels one step apart in eight directions, along the
outermost pixels of the object, and the filled polygon includes the pixels of its outline. So a mask
without other parts comes back exactly. Holes are joined to the outline along the object's own
pixels, there and back, which costs nothing; other parts are joined to the largest by a line of one
pixel's width, which adds the background it crosses.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]  # (H, W)
Path = npt.NDArray[np.int64]  # (P, 2) x, y in pixels, P ≥ 1; the last is followed by the first

# directions of a pixel's edges, clockwise: top to the east, right to the south, …
EAST, SOUTH, WEST, NORTH = range(4)
PIECE = 64  # pixels of a part compared at once with a whole path


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """The pixels of the object along one border, clockwise outside and the reverse round a hole."""

    path: Path
    is_hole: bool


def single_path(mask: Mask) -> Path:
    """The whole object as one path; raises ValueError for an empty mask.

    Parts touch where they share a corner.
    """
    loops = trace(mask)
    outer = sorted((loop for loop in loops if not loop.is_hole), key=lambda loop: -len(loop.path))
    if not outer:
        raise ValueError("an empty mask has no outline")
    holes = [_landing(mask, loop.path) for loop in loops if loop.is_hole]
    paths = [_with_holes(loop.path, holes) for loop in outer]
    joined = paths[0]
    for path in paths[1:]:
        joined = _join_parts(joined, path)
    return joined


def trace(mask: Mask) -> list[Loop]:
    """All borders of the object."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return []
    top, left = int(rows[0]), int(columns[0])
    loops = []
    for pixels_y, pixels_x, area in _border_loops(mask[top : rows[-1] + 1, left : columns[-1] + 1]):
        path = np.stack([pixels_x + left, pixels_y + top], axis=1)
        changes = np.any(path != np.roll(path, 1, axis=0), axis=1)
        loops.append(Loop(path[changes] if changes.any() else path[:1], area < 0))
    return loops


def corners(path: Path) -> Path:
    """The path without the pixels that lie straight between two others."""
    before, after = path - np.roll(path, 1, axis=0), np.roll(path, -1, axis=0) - path
    turns = np.any(np.sign(before) != np.sign(after), axis=1) | (np.abs(after).max(axis=1) > 1)
    turns |= np.abs(before).max(axis=1) > 1
    return path[turns] if turns.any() else path[:1]


def fill(path: Path, height: int, width: int) -> Mask:
    """The polygon's inside by the even-odd rule, and its outline."""
    steps = _unit_steps(path)
    filled = np.zeros((height, width), bool)
    following = np.roll(steps, -1, axis=0)
    climbs = following[:, 1] != steps[:, 1]
    upper = np.where((steps[:, 1] < following[:, 1])[:, None], steps, following)[climbs]
    crossings = np.zeros((height, width), np.int64)
    np.add.at(crossings, (upper[:, 1], upper[:, 0]), 1)
    filled |= np.cumsum(crossings, axis=1) % 2 == 1
    filled[steps[:, 1], steps[:, 0]] = True
    return filled


def _border_loops(mask: Mask) -> list[tuple[Path, Path, int]]:
    """Rows and columns of the pixel right of each border edge, in order, and the area in px.

    Edges of pixels next to background, directed so that the object lies to the right; at a corner
    that two pixels share the loop goes on to the other pixel.
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    neighbours = (
        padded[:-2, 1:-1],
        padded[1:-1, 2:],
        padded[2:, 1:-1],
        padded[1:-1, :-2],
    )
    begins = ((0, 0), (0, 1), (1, 1), (1, 0))  # corner of the pixel where each edge begins
    stride = width + 1
    edge_at = np.full((4, (height + 1) * stride), -1, np.int64)
    parts = []
    count = 0
    for direction, (neighbour, (down, right)) in enumerate(zip(neighbours, begins, strict=True)):
        y, x = np.nonzero(inside & ~neighbour)
        edge_at[direction, (y + down) * stride + x + right] = count + np.arange(len(y))
        count += len(y)
        end_down, end_right = begins[(direction + 1) % 4]
        end = (y + end_down) * stride + x + end_right
        parts.append((y, x, end, np.full(len(y), direction)))
    y, x, end, facing = (np.concatenate(each) for each in zip(*parts, strict=True))
    following = edge_at[(facing + 1) % 4, end]
    for turn in (0, -1):  # straight on, and before all else to the left
        other = edge_at[(facing + turn) % 4, end]
        following = np.where(other >= 0, other, following)
    loops = []
    # the area by columns: edges to the east lie above what they bound, edges to the west below
    share_px = np.where(facing == EAST, -y, np.where(facing == WEST, y + 1, 0))
    unseen, after = bytearray(b"\1") * count, following.tolist()
    for first in range(count):
        if unseen[first]:
            order, edge = [], first
            while unseen[edge]:
                unseen[edge] = 0
                order.append(edge)
                edge = after[edge]
            loops.append((y[order], x[order], int(share_px[order].sum())))
    return loops


@dataclass(frozen=True, slots=True, eq=False)
class _Hole:
    """A way round a hole that begins and ends at one pixel, and the pixel it is joined to."""

    path: Path
    landing: tuple[int, int]  # x, y


def _landing(mask: Mask, hole: Path) -> _Hole:
    """From the hole's leftmost pixel to the left as far as the object goes: to another border."""
    place = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
    x, y = hole[place]
    background = np.flatnonzero(~mask[y, : x + 1])
    landing = (int(background[-1]) + 1 if background.size else 0, int(y))
    return _Hole(_round_trip(hole, place), landing)


def _with_holes(path: Path, holes: list[_Hole]) -> Path:
    """The path with every hole that leads to it, directly or over other holes."""
    waiting = holes
    while True:
        left = []
        for hole in waiting:
            found = np.flatnonzero(np.all(path == hole.landing, axis=1))
            if found.size:
                path = _insert(path, int(found[0]), hole.path)
            else:
                left.append(hole)
        if len(left) == len(waiting):
            return path
        waiting = left


def _join_parts(path: Path, part: Path) -> Path:
    """Two paths and the shortest line between pixels of them, there and back."""
    nearest, at, place = np.iinfo(np.int64).max, 0, 0
    for start in range(0, len(part), PIECE):
        across = part[start : start + PIECE, None] - path
        distances = across[..., 0] ** 2 + across[..., 1] ** 2
        if distances.min() < nearest:
            nearest = distances.min()
            row, at = divmod(int(distances.argmin()), len(path))
            place = start + row
    across = part[place] - path[at]
    # first diagonally, then straight: every reader draws such lines with the same pixels
    elbow = (path[at] + np.sign(across) * np.abs(across).min())[None]
    return _insert(path, at, np.concatenate([elbow, _round_trip(part, place), elbow]))


def _round_trip(path: Path, place: int) -> Path:
    return np.concatenate([path[place:], path[: place + 1]])


def _insert(path: Path, at: int, round_trip: Path) -> Path:
    """The path that leaves at a pixel for the round trip and comes back to it."""
    return np.concatenate([path[: at + 1], round_trip, path[at:]])


def _unit_steps(path: Path) -> Path:
    """The path with its longer lines, those between parts and holes, as single steps."""
    pieces = []
    for start, end in zip(path, np.roll(path, -1, axis=0), strict=True):
        length = int(np.abs(end - start).max())
        if length <= 1:
            pieces.append(start[None])
        else:
            share = np.arange(length)[:, None] / length
            pieces.append(np.floor(start + (end - start) * share + 0.5).astype(np.int64))
    return np.concatenate(pieces)
