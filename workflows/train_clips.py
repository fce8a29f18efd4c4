"""Clips to learn from as arrays: drawn once, kept on disk, read at random.

Knows nothing of networks or prompts.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from workflows.train_scenes import DURATION, Clip, Scene


class ClipSource(Protocol):
    """Numbered clips, each always the same; all of one length and size."""

    @property
    def name(self) -> str:
        """Equal for sources of the same clips only, and fit to name a folder."""
        ...

    def __len__(self) -> int: ...

    def clip(self, index: int) -> Clip: ...


@dataclass(frozen=True, slots=True)
class DrawnClips:
    """Scenes of consecutive seeds, a few moments of each.

    size: pixels a side; count: how many there are; seed: of the first.
    """

    seed: int
    count: int
    num_frames: int
    size: int

    @property
    def name(self) -> str:
        return f"drawn-{self.seed}-{self.count}-{self.num_frames}-{self.size}"

    def __len__(self) -> int:
        return self.count

    def clip(self, index: int) -> Clip:
        """The clip of a seed: its first frame, maybe a gap, then equal steps."""
        seed = self.seed + index
        rng = np.random.default_rng([seed, 3])
        step = float(rng.choice([0.5, 1.0, 1.0, 1.5, 2.0]))
        gap = float(rng.choice([0.0, 0.0, rng.uniform(0, 8)]))
        span = gap + step * (self.num_frames - 1)
        start = float(rng.uniform(0, max(DURATION - span, 0.1)))
        times = [start] + [start + gap + step * n for n in range(1, self.num_frames)]
        return Scene.of_seed(seed, self.size, self.size).draw(times)


class KeptClips:
    """Clips of a source in one file of equal records, each made when it is first asked for.

    Several processes may read and make them at once: a record is written before it is marked,
    and any two makers write the same bytes.
    """

    def __init__(self, source: ClipSource, spool: Path) -> None:
        self._source = source
        folder = spool / source.name
        first = source.clip(0)
        self._shape = first.labels.shape
        self._times = len(first.times)
        folder.mkdir(parents=True, exist_ok=True)
        self._records = self._open(folder / "clips.bin", (len(source), *self._shape, 4))
        self._made = self._open(folder / "made.bin", (len(source),))

    @property
    def name(self) -> str:
        return self._source.name

    def __len__(self) -> int:
        return len(self._source)

    def clip(self, index: int) -> Clip:
        record = self._records[index]
        if not self._made[index]:
            made = self._source.clip(index)
            record[..., :3] = made.frames
            record[..., 3] = made.labels
            self._made[index] = 1
        return Clip(record[..., :3], record[..., 3], tuple(map(float, range(self._times))))

    @staticmethod
    def _open(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        size_bytes = int(np.prod(shape))
        with path.open("ab") as file:
            if file.tell() != size_bytes:
                os.truncate(file.fileno(), size_bytes)
        return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)


class MixedClips:
    """Clips of several sources, each as often as its share says. Clip i is always the same."""

    def __init__(self, sources: Sequence[ClipSource], shares: Sequence[float]) -> None:
        self._sources = list(sources)
        total = sum(shares)
        self._shares = [share / total for share in shares]

    @property
    def name(self) -> str:
        return "+".join(source.name for source in self._sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self._sources)

    def clip(self, index: int) -> Clip:
        if len(self._sources) == 1:
            return self._sources[0].clip(index)
        rng = np.random.default_rng([index, 4])
        source = self._sources[int(rng.choice(len(self._sources), p=self._shares))]
        return source.clip(int(rng.integers(len(source))))
