"""Drawn videos as the bundled checkpoint labels them from one click, and how right each track is.

A trained model's own scores and failures, where planted_failures.py only has a guess at them; what
it goes wrong on is known, for the drawing is. `python tests/modelled_videos.py` prints how well the
queue finds these failures, for docs/quality.md.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sam2model import Prompt, Sam2VideoModel, Sam2VideoProcessor, rle
from sam2model.engine import Engine, EngineOptions
from sam2model.semantics import LABELLING
from sam2model.video import Video
from sam2model.video_writer import write_video
from workflows.mask_metrics import region_similarity
from workflows.quality import assess
from workflows.train_validation import HeldOut, auroc, innermost
from workflows.video_masks import VideoMasks

SCENES = HeldOut()
# neither the model nor the weights of quality.py have seen them
SEEDS = range(2_100_000, 2_100_070)
FPS = 12
FAILS_BELOW = 0.5  # mean J after the prompted frame
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ModelledVideo:
    """masks: MASKS_SCHEMA; j: object → its J on each frame (1 where it is rightly absent)."""

    video_id: str
    masks: pa.Table
    j: dict[int, list[float]]

    @property
    def failures(self) -> set[int]:
        return {o for o, frames in self.j.items() if np.mean(frames[1:]) < FAILS_BELOW}


def modelled_videos(seeds: range, folder: Path) -> Iterator[ModelledVideo]:
    """One for each scene with objects large enough to be clicked on; files go to the folder."""
    model = Sam2VideoModel.from_pretrained("demo", semantics="labelling")
    processor = Sam2VideoProcessor.from_pretrained("demo")
    engine = Engine(model, processor, LABELLING, EngineOptions())
    try:
        for seed in seeds:
            found = _label(engine, seed, folder)
            if found is not None:
                yield found
    finally:
        engine.close()


def _label(engine: Engine, seed: int, folder: Path) -> ModelledVideo | None:
    clip, objects = SCENES.scene(seed)
    if not objects:
        return None
    path, name = folder / f"{seed}.mp4", f"s{seed}"
    write_video(path, iter(clip.frames), FPS)
    prompts = [Prompt(o, 0, (innermost(clip.labels[0] == o),), (True,)) for o in objects]
    masks = VideoMasks(name)
    j: dict[int, list[float]] = {o: [] for o in objects}
    with Video(path, name=name) as video:
        for frame in sorted(engine.label(video, prompts), key=lambda frame: frame.frame_index):
            masks.add(frame)
            for mask in frame.masks:
                shown = rle.decode(mask.counts, frame.height, frame.width)
                truth = clip.labels[frame.frame_index] == mask.object_id
                j[mask.object_id].append(region_similarity(shown, truth))
    return ModelledVideo(name, masks.table(), j)


def judged(videos: Iterable[ModelledVideo]) -> tuple[FloatArray, BoolArray]:
    """Doubt of each track, and whether it fails."""
    doubt, fails = [], []
    for video in videos:
        for object_id, quality in assess(video.masks).items():
            doubt.append(quality.doubt)
            fails.append(object_id in video.failures)
    return np.array(doubt), np.array(fails)


def first_of_queue(share: float, doubt: FloatArray, fails: BoolArray) -> BoolArray:
    """Whether the tracks that the queue begins with fail."""
    order = np.argsort(-doubt, kind="stable")
    first: BoolArray = fails[order[: round(share * len(order))]]
    return first


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        doubt, fails = judged(modelled_videos(SEEDS, Path(folder)))
    print(f"{len(doubt)} tracks, {fails.sum()} failing ({fails.mean():.1%})")
    print(f"a failing track is above another: {auroc(doubt.tolist(), fails.tolist()):.2f}")
    for share in (0.05, 0.1, 0.2, 0.3):
        first = first_of_queue(share, doubt, fails)
        found, most = first.sum() / fails.sum(), min(share / fails.mean(), 1)
        print(f"| {share:.0%} | {first.mean():.2f} | {found:.2f} | {most:.2f} |")
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        part = (doubt >= low) & (doubt < low + 0.2 if low < 0.8 else doubt <= 1)
        print(f"| {doubt[part].mean():.2f} | {fails[part].mean():.2f} | {part.sum()} |")


if __name__ == "__main__":
    main()
