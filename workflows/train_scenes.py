"""Drawn videos to learn from: textured shapes that move, deform, hide one another and leave.

Knows nothing of models or prompts. A scene is a function of its seed alone; any moment of it
can be drawn without the ones before, but for the noise. Every pixel's object is known, so truth
costs nothing.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Floats = npt.NDArray[np.floating[Any]]  # float32
Frames = npt.NDArray[np.uint8]  # (T, H, W, 3)
Labels = npt.NDArray[np.uint8]  # (T, H, W) object id of each pixel, 0 is the ground

GROUND = 0
MAX_OBJECTS = 8  # moving things, ids 1 to 8; they are what is to be followed
FIRST_STILL = 100  # ids of flat shapes lying on the ground begin here; they move with it
DURATION = 24.0  # frames from a scene's beginning to its end
ANGLES = 512  # entries of an outline
GROUND_MARGIN = 0.5  # of the frame's sides, on each side, for the camera to move over
JPEG_QUALITIES = (25, 95)


@dataclass(frozen=True, slots=True)
class Clip:
    """Some frames of one scene. times: (T,) frames from the scene's beginning, ascending."""

    frames: Frames
    labels: Labels
    times: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Traits:
    """What makes a scene hard; each is drawn by chance in `Scene.of_seed`."""

    num_objects: int
    alike: bool  # some objects share texture and colour
    camera: bool
    blur: bool
    noise: float  # standard deviation, of 255
    jpeg_quality: int | None
    still_shapes: int


@dataclass(frozen=True, slots=True)
class Outline:
    """Distance of the edge from the middle by angle, swelling and shrinking over time.

    waves: (K, 3) of order, amplitude and phase; the first pulse_waves of them pulse.
    """

    base: Floats  # (ANGLES,) around 1
    waves: Floats
    pulse: float  # radians a frame

    def at(self, time: float) -> Floats:
        """(ANGLES,) at a moment."""
        angles = np.linspace(0, 2 * math.pi, ANGLES, endpoint=False, dtype=np.float32)
        radius = self.base.copy()
        for order, amplitude, phase in self.waves:
            swing = amplitude * (0.6 + 0.4 * math.sin(self.pulse * time + phase))
            radius += self.base * swing * np.cos(order * angles + phase)
        return np.maximum(radius, 0.15)


@dataclass(frozen=True, slots=True)
class Thing:
    """One moving object: outlines that are joined, a texture, and where it is when.

    radius: of the frame's shorter side; parts: (outline, offset x, offset y, size).
    """

    parts: tuple[tuple[Outline, float, float, float], ...]
    hole: float  # radius of a hole, of the object's
    texture: Floats  # (S, S, 3) in [0, 1]
    radius: float
    stretch: float
    spin: float
    angle: float
    growth: float  # amplitude of slow changes in size
    start: tuple[float, float]  # of the frame's sides
    velocity: tuple[float, float]  # sides a frame
    sway: tuple[float, float, float, float]  # amplitude x, y, radians a frame, phase
    trip: tuple[float, float, float, float]  # way out x, y in sides; leaves at, is back at
    depth: float

    def position(self, time: float) -> tuple[float, float]:
        """The middle, in sides of the frame; outside [0, 1] it may be out of sight."""
        sway_x, sway_y, rate, phase = self.sway
        swing = math.sin(rate * time + phase) - math.sin(phase)
        x = self.start[0] + self.velocity[0] * time + sway_x * swing
        y = self.start[1] + self.velocity[1] * time + sway_y * swing
        way_x, way_y, leaves, back = self.trip
        out = _smooth_step((time - leaves + 6) / 6) * (1 - _smooth_step((time - back) / 6))
        # Reflected at soft walls just outside, so that only trips are long absences.
        return _reflect(x) + way_x * out, _reflect(y) + way_y * out


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that decides a video; `draw` makes frames of it."""

    height: int
    width: int
    traits: Traits
    ground: Tensor  # (4, H', W') colours in [0, 1] and the still shapes' ids
    things: tuple[Thing, ...]  # far to near; thing i has id i + 1 by order of making
    ids: tuple[int, ...]
    pan: tuple[float, float, float, float, float]  # velocity x, y; shake; turn; zoom a frame
    light: tuple[float, float]  # gain's amplitude, radians a frame
    seed: int
    shadows: bool = field(default=False)

    @classmethod
    def of_seed(cls, seed: int, height: int = 256, width: int = 256) -> "Scene":
        """The scene of a seed: all chances are drawn here but the pixels' noise."""
        rng = np.random.default_rng([seed, 1])
        traits = Traits(
            num_objects=int(rng.integers(1, MAX_OBJECTS - 1)),
            alike=bool(rng.random() < 0.35),
            camera=bool(rng.random() < 0.5),
            blur=bool(rng.random() < 0.25),
            noise=float(rng.choice([0.0, 2.0, 5.0, 9.0])),
            jpeg_quality=int(rng.integers(*JPEG_QUALITIES)) if rng.random() < 0.6 else None,
            still_shapes=int(rng.choice([0, 0, 4, 10, 20])),
        )
        things: list[Thing] = []
        for _ in range(traits.num_objects):
            twin = things[int(rng.integers(len(things)))] if things and traits.alike else None
            things.append(_thing(rng, twin if rng.random() < 0.6 else None))
        order = sorted(range(len(things)), key=lambda i: things[i].depth)
        moves = 1.0 if traits.camera else 0.0
        return cls(
            height=height,
            width=width,
            traits=traits,
            ground=_ground(rng, height, width, traits.still_shapes),
            things=tuple(things[i] for i in order),
            ids=tuple(i + 1 for i in order),
            pan=(
                moves * float(rng.normal(0, 0.006)),
                moves * float(rng.normal(0, 0.004)),
                moves * float(rng.uniform(0, 0.008)),
                moves * float(rng.normal(0, 0.004)),
                moves * float(rng.normal(0, 0.004)),
            ),
            light=(float(rng.uniform(0, 0.12)), float(rng.uniform(0.05, 0.5))),
            seed=seed,
            shadows=bool(rng.random() < 0.3),
        )

    def draw(self, times: Sequence[float]) -> Clip:
        """The frames of some moments, in [0, DURATION)."""
        rng = np.random.default_rng([self.seed, 2])
        frames = np.empty((len(times), self.height, self.width, 3), dtype=np.uint8)
        labels = np.empty((len(times), self.height, self.width), dtype=np.uint8)
        for row, time in enumerate(times):
            picture, labels[row] = self._moment(time)
            if self.traits.blur:
                for shift in (-0.25, 0.25):
                    picture += self._moment(time + shift)[0]
                picture /= 3
            picture *= 1 + self.light[0] * math.sin(self.light[1] * time)
            frames[row] = self._developed(picture, rng)
        return Clip(frames, labels, tuple(float(t) for t in times))

    def _developed(self, picture: Floats, rng: np.random.Generator) -> Frames:
        """Colours in [0, 1] to the bytes that a camera and a codec would leave."""
        picture = picture * 255
        if self.traits.noise:
            noise = rng.standard_normal(picture.shape, dtype=np.float32)
            picture = picture + self.traits.noise * noise
        pixels = np.clip(picture, 0, 255).astype(np.uint8)
        if self.traits.jpeg_quality is None:
            return pixels
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="jpeg", quality=self.traits.jpeg_quality)
        return np.asarray(Image.open(stream))

    def _moment(self, time: float) -> tuple[Floats, npt.NDArray[np.uint8]]:
        """Colours (H, W, 3) in [0, 1] and the object of each pixel at a moment."""
        shift_x, shift_y, turn, zoom = self._camera(time)
        picture, labels = self._ground_at(shift_x, shift_y, turn, zoom)
        for thing, number in zip(self.things, self.ids, strict=True):
            self._paint(picture, labels, thing, number, time, (shift_x, shift_y, turn, zoom))
        return picture, labels

    def _camera(self, time: float) -> tuple[float, float, float, float]:
        """Shift x and y in sides, turn in radians, and zoom, of the camera at a moment."""
        velocity_x, velocity_y, shake, turn, zoom = self.pan
        moment = time - DURATION / 2
        shift_x = velocity_x * moment + shake * math.sin(1.9 * time)
        shift_y = velocity_y * moment + shake * math.cos(2.3 * time)
        return shift_x, shift_y, turn * moment, math.exp(zoom * moment)

    def _ground_at(
        self, shift_x: float, shift_y: float, turn: float, zoom: float
    ) -> tuple[Floats, npt.NDArray[np.uint8]]:
        span = 1 + 2 * GROUND_MARGIN  # the ground's sides, in sides of the frame
        aspect = self.width / self.height
        cos, sin = math.cos(turn) / (zoom * span), math.sin(turn) / (zoom * span)
        theta = torch.tensor(
            [
                [cos, -sin / aspect, 2 * shift_x / span],
                [sin * aspect, cos, 2 * shift_y / span],
            ]
        )
        size = [1, 1, self.height, self.width]
        grid = F.affine_grid(theta[None], size, align_corners=False)
        colours = F.grid_sample(
            self.ground[None, :3], grid, padding_mode="reflection", align_corners=False
        )
        still = F.grid_sample(
            self.ground[None, 3:],
            grid,
            mode="nearest",
            padding_mode="reflection",
            align_corners=False,
        )
        picture = colours[0].permute(1, 2, 0).contiguous().numpy()
        return picture, still[0, 0].numpy().astype(np.uint8)

    def _paint(
        self,
        picture: Floats,
        labels: npt.NDArray[np.uint8],
        thing: Thing,
        number: int,
        time: float,
        camera: tuple[float, float, float, float],
    ) -> None:
        """Draw one object over what lies behind it, in place."""
        shift_x, shift_y, turn, zoom = camera
        side = min(self.height, self.width)
        place_x, place_y = thing.position(time)
        # The world turns the other way when the camera turns.
        off_x = (place_x - 0.5 - shift_x) * self.width
        off_y = (place_y - 0.5 - shift_y) * self.height
        cos, sin = math.cos(-turn), math.sin(-turn)
        centre_x = self.width / 2 + zoom * (cos * off_x - sin * off_y)
        centre_y = self.height / 2 + zoom * (sin * off_x + cos * off_y)
        grown = 1 + thing.growth * math.sin(0.25 * time + thing.angle)
        radius = thing.radius * side * zoom * grown
        reach = 2.0 * radius * max(thing.stretch, 1 / thing.stretch) + 2
        x0, x1 = int(max(centre_x - reach, 0)), int(min(centre_x + reach + 1, self.width))
        y0, y1 = int(max(centre_y - reach, 0)), int(min(centre_y + reach + 1, self.height))
        if x0 >= x1 or y0 >= y1:
            return
        angle = thing.angle + thing.spin * time - turn
        cos, sin = math.cos(angle), math.sin(angle)
        x = _span(x0, x1, centre_x)[None]
        y = _span(y0, y1, centre_y)[:, None]
        u: Floats = (cos * x + sin * y) / (radius * thing.stretch)
        v: Floats = (-sin * x + cos * y) * (thing.stretch / radius)
        alpha = _coverage(thing, u, v, radius, time)
        region = picture[y0:y1, x0:x1]
        if self.shadows:
            down, right = max(int(0.12 * radius), 1), max(int(0.08 * radius), 1)
            shadow = np.zeros_like(alpha)
            shadow[down:, right:] = alpha[:-down, :-right]
            region *= 1 - 0.45 * shadow[..., None]
        size = thing.texture.shape[0]
        rows = ((v * 0.33 + 0.5) * size).astype(np.int64) % size
        columns = ((u * 0.33 + 0.5) * size).astype(np.int64) % size
        colours = thing.texture[rows, columns]
        region += alpha[..., None] * (colours - region)
        labels[y0:y1, x0:x1][alpha > 0.5] = number


def clip_of_seed(seed: int, times: Sequence[float], height: int = 256, width: int = 256) -> Clip:
    """Frames of the scene of a seed."""
    return Scene.of_seed(seed, height, width).draw(times)


def moving_objects(first: Labels, least_px: float) -> list[int]:
    """Ids of the moving things that fill so much of a first frame (H, W)."""
    areas = np.bincount(first.ravel(), minlength=FIRST_STILL)
    return [number for number in range(1, MAX_OBJECTS + 1) if areas[number] >= least_px]


def _smooth_step(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def _reflect(x: float, low: float = -0.02, high: float = 1.02) -> float:
    """Fold a coordinate back into a span, as a ball between two walls."""
    span = high - low
    folded = (x - low) % (2 * span)
    return low + (folded if folded <= span else 2 * span - folded)


def _span(start: int, stop: int, middle: float) -> Floats:
    """Pixels of a row or a column, as distances from a middle."""
    return np.arange(start, stop, dtype=np.float32) - np.float32(middle)


def _coverage(thing: Thing, u: Floats, v: Floats, radius: float, time: float) -> Floats:
    """How much of each pixel the object covers, (H, W) in [0, 1]."""
    covered = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=np.float32)
    for outline, off_x, off_y, size in thing.parts:
        part_u, part_v = (u - off_x) / size, (v - off_y) / size
        distance = np.hypot(part_u, part_v)
        turns = np.arctan2(part_v, part_u) * np.float32(ANGLES / (2 * math.pi))
        edge = outline.at(time)[turns.astype(np.int64) % ANGLES]
        inside = np.clip((edge - distance) * np.float32(radius * size) + 0.5, 0, 1)
        np.maximum(covered, inside, out=covered)
    if thing.hole:
        distance = np.hypot(u, v)
        covered *= np.clip((distance - thing.hole) * np.float32(radius) + 0.5, 0, 1)
    return covered


def _outline(rng: np.random.Generator) -> Outline:
    angles: Floats = np.linspace(0, 2 * math.pi, ANGLES, endpoint=False, dtype=np.float32)
    kind = rng.choice(["blob", "box", "star", "polygon"], p=[0.5, 0.2, 0.1, 0.2])
    base: Floats = np.ones(ANGLES, dtype=np.float32)
    if kind == "box":
        power = float(rng.uniform(2.5, 12))
        base = (np.abs(np.cos(angles)) ** power + np.abs(np.sin(angles)) ** power) ** (-1 / power)
    elif kind == "star":
        points, depth = int(rng.integers(4, 8)), float(rng.uniform(0.2, 0.45))
        base = 1 + depth * np.cos(points * angles)
    elif kind == "polygon":
        sides = int(rng.integers(3, 7))
        sector = 2 * math.pi / sides
        base = math.cos(sector / 2) / np.cos((angles % sector) - sector / 2)
    count = int(rng.integers(0, 4)) if kind != "blob" else int(rng.integers(2, 6))
    strength = 0.06 if kind != "blob" else 0.22
    waves = np.stack(
        [
            rng.integers(1 if kind != "blob" else 2, 7, count),
            rng.normal(0, strength, count) / np.sqrt(max(count, 1)),
            rng.uniform(0, 2 * math.pi, count),
        ],
        axis=1,
    )
    return Outline(base.astype(np.float32), waves.astype(np.float32), float(rng.uniform(0, 0.6)))


def _thing(rng: np.random.Generator, twin: Thing | None) -> Thing:
    """An object; a twin lends its texture, and half the time its shape and size."""
    same_shape = twin is not None and rng.random() < 0.5
    radius = float(np.exp(rng.uniform(math.log(0.045), math.log(0.22))))
    parts = [(_outline(rng), 0.0, 0.0, 1.0)]
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 4))):
            angle, size = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 0.7)
            parts.append((_outline(rng), math.cos(angle), math.sin(angle), float(size)))
    trip = (0.0, 0.0, 99.0, 99.0)
    if rng.random() < 0.35:
        angle, leaves = rng.uniform(0, 2 * math.pi), rng.uniform(3, 14)
        away = rng.uniform(2, 9)
        way = 1.6 if rng.random() < 0.85 else 0.7
        trip = (way * math.cos(angle), way * math.sin(angle), float(leaves), float(leaves + away))
    speed = float(rng.choice([0.0, 0.006, 0.015, 0.03]))
    heading = rng.uniform(0, 2 * math.pi)
    return Thing(
        parts=twin.parts if twin is not None and same_shape else tuple(parts),
        hole=float(rng.uniform(0.25, 0.5)) if rng.random() < 0.06 else 0.0,
        texture=twin.texture if twin is not None else _texture(rng, 96),
        radius=twin.radius if twin is not None and same_shape else radius,
        stretch=float(np.exp(rng.normal(0, 0.25))),
        spin=float(rng.normal(0, 0.08)) if rng.random() < 0.7 else 0.0,
        angle=float(rng.uniform(0, 2 * math.pi)),
        growth=float(rng.uniform(0, 0.25)),
        start=(float(rng.uniform(0.05, 0.95)), float(rng.uniform(0.05, 0.95))),
        velocity=(speed * math.cos(heading), speed * math.sin(heading)),
        sway=(
            float(rng.normal(0, 0.05)),
            float(rng.normal(0, 0.05)),
            float(rng.uniform(0.1, 0.5)),
            float(rng.uniform(0, 2 * math.pi)),
        ),
        trip=trip,
        depth=float(rng.random()),
    )


def _within(values: Floats, low: float, high: float) -> Floats:
    clipped: Floats = np.clip(values, low, high).astype(np.float32)
    return clipped


def _texture(rng: np.random.Generator, size: int) -> Floats:
    """A square of colours that repeats without a seam only by luck; (S, S, 3) in [0, 1]."""
    return _shaded(rng, _pattern(rng, size, size), _colour(rng))


def _colour(rng: np.random.Generator) -> Floats:
    """A colour, often a dull one, as most are."""
    grey = rng.uniform(0.1, 0.9)
    tint = rng.normal(0, rng.choice([0.05, 0.15, 0.3]), 3)
    return _within(grey + tint, 0.02, 0.98)


def _shaded(rng: np.random.Generator, pattern: Floats, first: Floats) -> Floats:
    """A pattern in [0, 1] between two colours, with a little colour noise; contrast varies."""
    contrast = rng.choice([0.1, 0.3, 0.8], p=[0.35, 0.4, 0.25])
    second = np.clip(first + contrast * (_colour(rng) - 0.5) * 2, 0, 1)
    mixed = first + pattern[..., None] * (second - first)
    return _within(mixed, 0, 1)


def _pattern(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Noise, stripes, checks, spots or a gradient: (H, W) in [0, 1]."""
    kind = rng.choice(
        ["noise", "stripes", "checks", "spots", "gradient"], p=[0.5, 0.15, 0.1, 0.1, 0.15]
    )
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 40)
    along = math.cos(angle) * x + math.sin(angle) * y
    across = -math.sin(angle) * x + math.cos(angle) * y
    if kind == "noise":
        return _noise(rng, height, width, float(rng.uniform(0.8, 2.0)))
    if kind == "stripes":
        wave = np.sin(along * (2 * math.pi / period) + 2 * _noise(rng, height, width, 2.0))
        return _sharpened(rng, wave)
    if kind == "checks":
        return _sharpened(rng, np.sin(along * 6.28 / period) * np.sin(across * 6.28 / period) * 2)
    if kind == "spots":
        wave = np.cos(along * 6.28 / period) + np.cos(across * 6.28 / period) - 0.8
        return _sharpened(rng, wave)
    gradient: Floats = (along - along.min()) / (np.ptp(along) + 1e-6)
    return gradient


def _sharpened(rng: np.random.Generator, wave: Floats) -> Floats:
    return _within(wave * rng.uniform(0.5, 4) * 0.5 + 0.5, 0, 1)


def _noise(rng: np.random.Generator, height: int, width: int, falloff: float) -> Floats:
    """Noise of many scales, (H, W) in [0, 1]; a larger falloff is smoother."""
    total = np.zeros((height, width), dtype=np.float32)
    cells, weight = 3, 1.0
    while cells < max(height, width):
        grid = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        total += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        cells *= 2
        weight /= 2**falloff
    low, high = np.percentile(total, (2, 98))
    return _within((total - low) / (high - low + 1e-6), 0, 1)


def _ground(rng: np.random.Generator, height: int, width: int, shapes: int) -> Tensor:
    """The whole ground with its still shapes: colours and ids, (4, H', W')."""
    rows, columns = int(height * (1 + 2 * GROUND_MARGIN)), int(width * (1 + 2 * GROUND_MARGIN))
    colours = _shaded(rng, _pattern(rng, rows, columns), _colour(rng))
    ids = np.zeros((rows, columns), dtype=np.float32)
    side = min(height, width)
    for number in range(shapes):
        outline = _outline(rng).at(0.0)
        radius = side * float(np.exp(rng.uniform(math.log(0.05), math.log(0.35))))
        centre_x, centre_y = rng.uniform(0, columns), rng.uniform(0, rows)
        stretch, turn = float(np.exp(rng.normal(0, 0.35))), rng.uniform(0, 2 * math.pi)
        reach = 1.6 * radius * max(stretch, 1 / stretch)
        x0, x1 = int(max(centre_x - reach, 0)), int(min(centre_x + reach, columns))
        y0, y1 = int(max(centre_y - reach, 0)), int(min(centre_y + reach, rows))
        x = _span(x0, x1, centre_x)[None]
        y = _span(y0, y1, centre_y)[:, None]
        u = (math.cos(turn) * x + math.sin(turn) * y) / (radius * stretch)
        v = (-math.sin(turn) * x + math.cos(turn) * y) * (stretch / radius)
        turns = np.arctan2(v, u) * np.float32(ANGLES / (2 * math.pi))
        edge = outline[turns.astype(np.int64) % ANGLES]
        alpha = np.clip((edge - np.hypot(u, v)) * np.float32(radius) + 0.5, 0, 1)
        texture = _texture(rng, 96)
        painted = texture[
            ((v * 0.33 + 0.5) * 96).astype(np.int64) % 96,
            ((u * 0.33 + 0.5) * 96).astype(np.int64) % 96,
        ]
        region = colours[y0:y1, x0:x1]
        region += alpha[..., None] * (painted - region)
        ids[y0:y1, x0:x1][alpha > 0.5] = FIRST_STILL + number
    stacked = np.concatenate((colours, ids[..., None]), axis=2)
    return torch.from_numpy(stacked).permute(2, 0, 1).contiguous()
