"""Draws docs/refine-page*.png: the real page in a real browser, over a drawn video.

Run as `python tests/page_pictures.py`; needs Chromium. Masks are the drawing's own, and a click
makes them a little larger, so that there is something to see of a correction.
"""

import io
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from browser import FLAGS
from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright
from scripted_refinements import Mask, Scene, ScriptedRefinements, ScriptedVideos
from serving import TOKENS, app_over, served

from workflows.refine_types import RgbArray
from workflows.train_scenes import DURATION, Clip, clip_of_seed

DOCS = Path(__file__).parents[1] / "docs"
OBJECTS = (5, 6, 1)  # of the drawing, in the order of our ids


class Drawn(Scene):
    """A drawn clip for the discs of the scripted scene."""

    seed = 7

    @cached_property
    def clip(self) -> Clip:
        times = np.linspace(0, DURATION, self.num_frames, endpoint=False)
        return clip_of_seed(self.seed, times.tolist(), self.height, self.width)

    def disc(self, number: int, frame_index: int, grow: float = 0.0) -> Mask:
        mask: Mask = self.clip.labels[frame_index] == OBJECTS[number]
        for _ in range(round(grow)):
            wider = mask.copy()
            wider[1:] |= mask[:-1]
            wider[:-1] |= mask[1:]
            wider[:, 1:] |= mask[:, :-1]
            wider[:, :-1] |= mask[:, 1:]
            mask = wider
        return mask

    def nearest(self, x: float, y: float, frame_index: int) -> int:
        label = int(self.clip.labels[frame_index][int(y), int(x)])
        return OBJECTS.index(label) if label in OBJECTS else 0

    def picture(self, frame_index: int) -> RgbArray:
        soft = Image.fromarray(self.clip.frames[frame_index]).filter(ImageFilter.GaussianBlur(2))
        return np.asarray(soft)


class DrawnRefinements(ScriptedRefinements):
    def label(self, video_id: str, discs: Any = (0, 1, 2), **of_tracks: Any) -> None:
        """Each object is clicked on a pixel of it, on the first frame that shows it."""
        scene = self._of(video_id).scene
        places = []
        for number in range(3):
            found = np.argwhere(scene.disc(number, 0))
            y, x = found[len(found) // 2] if len(found) else (0, 0)
            places.append((0.0, float(x), float(y), 0.0, 0.0))
        object.__setattr__(scene, "discs", tuple(places))
        super().label(video_id, discs, **of_tracks)


def _correct(page: Any, mask: Mask) -> None:
    """A few clicks: most of them on the object, one beside it."""
    rows, columns = np.nonzero(mask)
    x, y = float(np.median(columns)), float(np.median(rows))
    box = page.locator("#stage").bounding_box()
    for dx, dy, button in ((0, 0, "left"), (16, 14, "left"), (-8, -22, "left"), (60, 40, "right")):
        left, top = page.evaluate(f"stage.toScreen({x + dx}, {y + dy})")
        page.mouse.click(box["x"] + left, box["y"] + top, button=button)


def _keep(png: bytes, path: Path) -> None:
    """Smaller, and in few colours that are chosen well: a picture for a README."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").resize((1088, 656), Image.Resampling.LANCZOS)
        few = small.quantize(256, Image.Quantize.MEDIANCUT, kmeans=8, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


def main() -> None:
    names = ("hall-12", "hall-07", "yard-03", "yard-04")
    scene = Drawn(height=360, width=640, num_frames=96)
    scenes = dict.fromkeys(names, scene)
    refinements = DrawnRefinements(scenes, step_s=0.01)
    for name in names:
        refinements.label(name)
    flags = {
        ("hall-12", 2): [(31, "area_jump", 0.87), (66, "overlap", 0.41)],
        ("hall-12", 1): [(52, "low_score", 0.33)],
        ("hall-07", 1): [(18, "disappearance", 0.79)],
        ("yard-03", 3): [(70, "boundary", 0.58)],
        ("yard-04", 2): [(44, "overlap", 0.52)],
        ("yard-04", 1): [(12, "low_score", 0.29)],
    }
    for (name, object_id), some in flags.items():
        rows = [{"frame_index": k, "kind": kind, "doubt": doubt} for k, kind, doubt in some]
        refinements.flag(name, object_id, rows)  # type: ignore[arg-type]
    DOCS.mkdir(exist_ok=True)
    with served(app_over(refinements, ScriptedVideos(refinements))) as url, sync_playwright() as p:
        browser = p.chromium.launch(args=list(FLAGS), executable_path="/usr/bin/chromium")
        for scheme in sys.argv[1:] or ["dark"]:
            page = browser.new_page(
                viewport={"width": 1360, "height": 820},
                color_scheme=scheme,  # type: ignore[arg-type]
            )
            page.goto(f"{url}/#token={TOKENS['ada']}")
            page.click("#queue-list li button")
            page.wait_for_timeout(2500)
            _correct(page, scenes["hall-12"].disc(1, 31))
            page.wait_for_timeout(800)
            name = "refine-page" if scheme == "dark" else f"refine-page-{scheme}"
            _keep(page.screenshot(), DOCS / f"{name}.png")
            page.keyboard.press("p")
            page.wait_for_timeout(4000)
            page.keyboard.press("d")
            page.wait_for_timeout(500)
            page.mouse.move(0, 0)
            _keep(page.screenshot(), DOCS / f"{name}-draft.png")
        browser.close()


if __name__ == "__main__":
    main()
