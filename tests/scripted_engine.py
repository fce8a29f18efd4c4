"""Engines that need no model, or that go wrong where a test wants it. Imported by Ray's workers."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2model import Prompt
from sam2model.rle import encode_mask
from sam2model.tracked_masks import FrameMasks, TrackedMask
from sam2model.video import Video
from workflows.config import LabelConfig
from workflows.label_engine import DirtyDevice, MaskEngine, open_engine


class NoOpEngine:
    """Gives every object the same square on every frame of the video, decoded but not looked at.

    frame_s: how long it pretends to work on a frame.
    """

    def __init__(self, frame_s: float = 0.0) -> None:
        self.frame_s = frame_s

    def label(
        self,
        video: Video,
        prompts: list[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        height, width = video.info.height, video.info.width
        square = np.zeros((height, width), np.bool_)
        square[4:12, 4:12] = True
        counts = encode_mask(square)
        objects = sorted({prompt.object_id for prompt in prompts})
        for frame in video.frames(first_frame, None if last_frame is None else last_frame + 1):
            if self.frame_s:
                time.sleep(self.frame_s)
            masks = [
                TrackedMask(o, counts, 64, (4, 4, 12, 12), 1.0, 0.5, 0.25, frame.index == 0)
                for o in objects
            ]
            yield FrameMasks(frame.index, frame.pts_s, height, width, masks)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class NoOp:
    """Makes NoOpEngines; leaves a file named after each process's id in a folder."""

    pids: Path | None = None
    frame_s: float = 0.0

    def __call__(self, config: LabelConfig, weights_sha256: str) -> MaskEngine:
        register(self.pids)
        return NoOpEngine(self.frame_s)


@dataclass(frozen=True)
class Real:
    """The configuration's own engine; leaves a file named after each process's id in a folder."""

    pids: Path | None = None

    def __call__(self, config: LabelConfig, weights_sha256: str) -> MaskEngine:
        register(self.pids)
        return open_engine(config, weights_sha256)


def register(pids: Path | None) -> None:
    if pids is not None:
        (pids / str(os.getpid())).touch()


@dataclass(frozen=True)
class Gathered:
    """Makes NoOpEngines that begin their first video when so many processes have come.

    refused: of these, the first so many do not start; one_only: none after the first does.
    """

    pids: Path
    wanted: int
    refused: int = 0
    one_only: bool = False

    def __call__(self, config: LabelConfig, weights_sha256: str) -> MaskEngine:
        register(self.pids)
        late = len(list(self.pids.iterdir())) > self.refused
        if not late or (self.one_only and not self._is_first()):
            raise DirtyDevice("40.0 of 80.0 GiB are held by others after 60 s")
        return GatheredEngine(self.pids, self.wanted)

    def _is_first(self) -> bool:
        try:
            self.pids.with_name("first").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class GatheredEngine(NoOpEngine):
    def __init__(self, pids: Path, wanted: int) -> None:
        super().__init__()
        self._pids, self._wanted = pids, wanted

    def label(
        self,
        video: Video,
        prompts: list[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        while len(list(self._pids.iterdir())) < self._wanted:
            time.sleep(0.05)
        return super().label(video, prompts, first_frame, last_frame)


@dataclass(frozen=True)
class Patient:
    """Makes NoOpEngines that end a video named long-… when so many others have ended.

    together: a video begins only when so many of this process have begun.
    """

    done: Path
    others: int = 0
    together: int = 1

    def __call__(self, config: LabelConfig, weights_sha256: str) -> MaskEngine:
        return PatientEngine(self)


class PatientEngine(NoOpEngine):
    def __init__(self, patience: Patient) -> None:
        super().__init__()
        self._patience, self._begun = patience, threading.Barrier(patience.together)

    def label(
        self,
        video: Video,
        prompts: list[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        self._begun.wait()
        yield from super().label(video, prompts, first_frame, last_frame)
        name, done = Path(video.name).stem, self._patience.done
        while name.startswith("long") and len(list(done.iterdir())) < self._patience.others:
            time.sleep(0.05)
        (done / name).touch()


class PoisonedEngine:
    """The configuration's own engine, but for videos whose file's name says what they do to it."""

    def __init__(self, engine: MaskEngine, slots: int) -> None:
        self._engine, self._slots = engine, slots

    def label(
        self,
        video: Video,
        prompts: list[Prompt],
        first_frame: int = 0,
        last_frame: int | None = None,
        *,
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        name = Path(video.name).stem
        poison = getattr(self, f"_{name.partition('-')[0]}", None)
        masks = self._engine.label(video, prompts, first_frame, last_frame, deadline_s=deadline_s)
        for count, frame in enumerate(masks):
            if poison is not None and count == 2:  # in the midst of it
                yield from poison(frame)
            yield frame

    def close(self) -> None:
        self._engine.close()

    def _segfault(self, frame: FrameMasks) -> Iterator[FrameMasks]:
        os.kill(os.getpid(), signal.SIGSEGV)
        yield frame

    def _endless(self, frame: FrameMasks) -> Iterator[FrameMasks]:
        while True:
            time.sleep(0.01)
            yield frame

    def _silent(self, frame: FrameMasks) -> Iterator[FrameMasks]:
        time.sleep(1e6)
        yield frame

    def _defect(self, frame: FrameMasks) -> Iterator[FrameMasks]:
        raise KeyError("a mistake of the program")
        yield frame

    def _oom(self, frame: FrameMasks) -> Iterator[FrameMasks]:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory")
        yield frame

    def _greedy(self, frame: FrameMasks) -> Iterator[FrameMasks]:
        """Fits only alone and in small steps."""
        if self._slots > 1:
            yield from self._oom(frame)


@dataclass(frozen=True)
class Poisoned:
    """Makes PoisonedEngines; leaves a file named after each process's id in a folder."""

    pids: Path | None = None

    def __call__(self, config: LabelConfig, weights_sha256: str) -> MaskEngine:
        register(self.pids)
        engine = open_engine(config, weights_sha256)
        return PoisonedEngine(engine, config.compute.slots_per_actor)
