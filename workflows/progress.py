"""How far a run is, as people and scripts want to know it. Knows nothing of terminals or Ray."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RATE_WINDOW_S = 60.0  # a rate over the whole run would hide that it has slowed down
NEARLY = 0.95  # of what is left, which videos under way may seem to have done


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a run. Frames and masks count also those of videos still under way.

    cost_done, cost: of videos in the plan's own unit; what is left of it tells the time left.
    """

    videos: int
    videos_done: int
    videos_failed: int
    frames: int
    masks: int
    cost: float
    cost_done: float
    elapsed_s: float
    frames_per_s: float = 0.0
    device_idle_share: float | None = None
    is_starting: bool = False  # no actor has told anything yet

    @property
    def left_s(self) -> float | None:
        """None as long as there is nothing to go by."""
        if self.cost_done <= 0:
            return None
        return max(self.cost - self.cost_done, 0.0) / self.cost_done * self.elapsed_s

    def line(self) -> str:
        parts = [f"{self.videos_done} of {self.videos} videos"]
        if self.videos_failed:
            parts.append(f"{self.videos_failed} failed")
        if self.is_starting and self.videos_done < self.videos:
            return ", ".join([*parts, "waiting for the first actor"])
        parts.append(f"{self.frames_per_s:.1f} frames/s")
        parts.append(f"{self.masks} masks")
        if self.device_idle_share is not None:
            parts.append(f"devices idle {self.device_idle_share:.0%}")
        if self.videos_done < self.videos and self.left_s is not None:
            parts.append(f"{in_words(self.left_s)} left")
        return ", ".join(parts)


OnProgress = Callable[[Progress], None]


def cost_under_way(made: int, made_by_done: int, cost_done: float, cost_left: float) -> float:
    """Of videos that have begun and not ended, in the plan's unit of cost.

    made: frames and masks, by all videos and by those that are done; a plan counts in the same, but
    guesses. What ended tells how far off it is. Work on what then had to begin again counts too, so
    this is never all that is left.
    """
    guess = cost_done / made_by_done if made_by_done else 1.0
    return min(max(made - made_by_done, 0) * guess, NEARLY * cost_left)


class Rate:
    """Of a count that only grows, over the last minute."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now_s: float, count: int) -> float:
        """Per second, as of now."""
        self._seen.append((now_s, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - self._window_s:
            self._seen.popleft()
        began_s, began = self._seen[0]
        return (count - began) / (now_s - began_s) if now_s > began_s else 0.0


def in_words(seconds: float) -> str:
    """Two units, such as 3 h 20 min."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 1:
        return f"{int(days)} d {int(hours) % 24} h"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes) % 60} min"
    if minutes >= 1:
        return f"{int(minutes)} min {int(seconds) % 60} s"
    return f"{int(seconds)} s"
