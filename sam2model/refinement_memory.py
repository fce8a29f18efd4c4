"""What is worth keeping of a video from one refinement to the next. Changes no mask, only the time.

Give one to `Engine.label`, `Engine.refine` and `Engine.preview` for as long as somebody works on a
video; drop it when nobody does. All of it may be lost at any moment.
"""

import threading
from dataclasses import dataclass, fields

from sam2model.feature_cache import FeatureCache
from sam2model.snapshots import SnapshotStore


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """How much one video may keep.

    At 1,024 px and bf16 a frame's features are 15 MB and an object's snapshot 3.2 MB.
    snapshot_every: frames from one snapshot of a pass to the next, which is the most that a
    click makes the engine go again.
    """

    device_feature_bytes: int = 1 << 30
    host_feature_bytes: int = 2 << 30
    snapshot_bytes: int = 1 << 30
    snapshot_every: int = 16

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            least = 1 if name == "snapshot_every" else 0
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}; wanted {least} or more")


class VideoMemory:
    """Features of frames and snapshots of objects of one video, for one engine; thread-safe."""

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        self.budget = budget or MemoryBudget()
        self.features = FeatureCache(
            self.budget.device_feature_bytes, self.budget.host_feature_bytes
        )
        self.snapshots = SnapshotStore(self.budget.snapshot_bytes, self.budget.snapshot_every)
        self._belongs_to: tuple[object, str] | None = None
        self._lock = threading.Lock()

    @property
    def device_bytes(self) -> int:
        """Bytes that this keeps on the engine's device."""
        return self.features.nbytes[0]

    @property
    def host_bytes(self) -> int:
        """Bytes that this keeps in host memory."""
        return self.features.nbytes[1] + self.snapshots.nbytes

    def leave_device(self) -> None:
        """Give the device's memory back, for a video that nobody looks at just now."""
        self.features.leave_device()

    def clear(self) -> None:
        """Forget everything."""
        self.features.clear()
        self.snapshots.clear()

    def claim(self, engine: object, video_name: str) -> None:
        """Belong to one engine and one video; raises ValueError for others."""
        with self._lock:
            if self._belongs_to is None:
                self._belongs_to = (engine, video_name)
            owner, name = self._belongs_to
            if owner is not engine or name != video_name:
                whose = "another engine" if owner is not engine else f"video {name!r}"
                raise ValueError(f"the memory of {whose} was given for video {video_name!r}")
