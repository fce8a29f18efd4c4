"""What a first run needs and nobody has yet: a video and clicks. Knows no jobs and no models."""

from pathlib import Path

from sam2model import Prompt
from sam2model.video_writer import write_video
from workflows.train_scenes import Clip, Labels, clip_of_seed, moving_objects
from workflows.train_validation import innermost

HEIGHT, WIDTH, FPS = 240, 320, 12
DRAWN_NAME = "shapes.mp4"
DRAWN_SEED = 3_000_011  # of a scene that training never shows
DRAWN_FRAMES = 36
LEAST_AREA_PX = 200

# One click on each of some objects in videos that people try SAM 2 on, source pixels, frame 0.
KNOWN_CLICKS: dict[str, list[tuple[float, float]]] = {
    "02_cups.mp4": [(400, 464), (656, 420), (914, 420)],  # ball, two cups
    "05_default_juggle.mp4": [(652, 320), (700, 200)],  # ball, man
    "bedroom.mp4": [(236, 393), (405, 175)],  # two children
}


def demo_prompts(video: Path) -> list[Prompt]:
    """A click on each known object of a video; of any other, on the shapes of our own."""
    clicks = KNOWN_CLICKS.get(video.name) or _clicks_on_shapes()
    return [Prompt(object_id, 0, (click,), (True,)) for object_id, click in enumerate(clicks, 1)]


def write_demo_video(path: Path) -> None:
    """Shapes that move and pass behind one another."""
    write_video(path, iter(drawn_clip().frames), FPS)


def drawn_clip() -> Clip:
    """The frames of our own video and the object of each of their pixels."""
    times = [frame * 2 / 3 for frame in range(DRAWN_FRAMES)]
    return clip_of_seed(DRAWN_SEED, times, HEIGHT, WIDTH)


def _clicks_on_shapes() -> list[tuple[float, float]]:
    first = clip_of_seed(DRAWN_SEED, [0.0], HEIGHT, WIDTH).labels[0]
    return [innermost(first == number) for number in drawn_objects(first)]


def drawn_objects(first: Labels) -> list[int]:
    """Ids of the moving things of a first frame (H, W) that are large enough to click on."""
    return moving_objects(first, LEAST_AREA_PX)
