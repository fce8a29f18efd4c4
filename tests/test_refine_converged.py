"""What only a scripted engine shows: where computing stops, what is left of a killed refinement.

The engine here is a script: a click moves its object's square for a few frames either way in time,
where the passes go, and after that all is as it was.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refining import click, labels, preview, refine, request, version
from videos import write_moving_square

from sam2model import Prompt
from sam2model.labelling_plan import Span
from sam2model.rle import decode, encode_mask
from sam2model.tracked_masks import FrameMasks, TrackedMask
from sam2model.video import Video
from workflows.mask_objects import write_mask_object
from workflows.query import Dataset
from workflows.refine import AGREEING_FRAMES, Maker
from workflows.refine_sessions import RefineSessions, SessionOptions
from workflows.refine_types import RefinedFrame
from workflows.results import DatasetWriter
from workflows.rows import Source, Status, VideoOutcome
from workflows.storage import Storage
from workflows.video_masks import VideoMasks, tracks_of

FRAMES, BEGINS, MOVED = 60, 20, 5
MAKER = Maker("scripted", "0" * 64, {}, "c", "run")


class ScriptedEngine:
    """frames_asked counts the frames it had to make."""

    def __init__(self) -> None:
        self.frames_asked = 0

    def refine(
        self,
        video: Video,
        prompts: Sequence[Prompt],
        memory: object,
        *,
        before: Sequence[Prompt] | None = None,
        first_frame: int = 0,
        last_frame: int | None = None,
        told: Span | None = None,
        lane: str = "interactive",
        deadline_s: float | None = None,
    ) -> Iterator[FrameMasks]:
        said = {(p.object_id, p.frame_index) for p in before or ()}
        new = [p for p in prompts if (p.object_id, p.frame_index) not in said]
        objects = {p.object_id: min(p.frame_index for p in new) for p in new}
        forth = [t for t in range(BEGINS, FRAMES)]
        for t in [*forth, *range(BEGINS - 1, -1, -1)]:
            reached = [o for o, first in objects.items() if t >= first or t < BEGINS]
            if reached and (told is None or t in told):
                self.frames_asked += 1
                masks = [mask(o, t, [p.frame_index for p in prompts]) for o in reached]
                yield FrameMasks(t, t / 10, 96, 128, masks)

    def close(self) -> None:
        pass


def mask(object_id: int, t: int, clicked: list[int]) -> TrackedMask:
    later = [k for k in clicked if k != BEGINS]
    is_moved = any(0 <= t - k < MOVED or (t < BEGINS and BEGINS - t <= MOVED) for k in later)
    x, y = 10 + t + (15 if is_moved else 0), 10 + 20 * object_id
    pixels = np.zeros((96, 128), np.bool_)
    pixels[y : y + 15, x : x + 15] = True
    box = (x, y, x + 15, y + 15)
    return TrackedMask(object_id, encode_mask(pixels), 225, box, 5.0, 0.9, 0.95, t in clicked)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects 1 and 2 of a video of 60 frames, both first prompted on frame 20."""
    folder = tmp_path_factory.mktemp("labelled")
    path = write_moving_square(folder / "v.mp4", FRAMES)
    masks = VideoMasks("v")
    for t in range(FRAMES):
        both = [mask(o, t, [BEGINS]) for o in (1, 2)]
        masks.add(FrameMasks(t, t / 10, 96, 128, both))
    table, prompts = masks.table(), [click(1, BEGINS, 30.0), click(2, BEGINS, 30.0)]
    outcome = VideoOutcome(
        video_id="v",
        video_uri=str(path),
        fingerprint="f" * 32,
        status=Status.OK,
        run_id="r",
        finished_at=datetime.now(UTC),
        num_frames_decoded=FRAMES,
        tracks=tracks_of("v", table, prompts, {"source": Source.BULK}),
    )
    root = str(folder / "labels")
    writer = DatasetWriter(Storage(), root)
    writer.commit([write_mask_object(Storage(), root, outcome, table)])
    return folder


@pytest.fixture
def folder(tmp_path: Path, labelled: Path) -> Path:
    shutil.copytree(labelled, tmp_path, dirs_exist_ok=True)
    return tmp_path


@contextmanager
def scripted(
    folder: Path, engine: ScriptedEngine | None = None
) -> Iterator[tuple[RefineSessions, ScriptedEngine]]:
    engine = engine or ScriptedEngine()
    options = SessionOptions(warm_frames=0)
    with closing(RefineSessions(str(folder / "labels"), engine, MAKER, options=options)) as opened:
        yield opened, engine


@pytest.fixture
def both(folder: Path) -> Iterator[tuple[RefineSessions, ScriptedEngine]]:
    with scripted(folder) as opened_and_engine:
        yield opened_and_engine


@pytest.fixture
def opened(both: tuple[RefineSessions, ScriptedEngine]) -> RefineSessions:
    return both[0]


@pytest.fixture
def engine(both: tuple[RefineSessions, ScriptedEngine]) -> ScriptedEngine:
    return both[1]


def test_computing_stops_where_the_masks_agree_with_the_base(
    opened: RefineSessions, engine: ScriptedEngine, folder: Path
) -> None:
    before = labels(folder)
    result = refine(opened, request(1, click(1, 30, 50.0), until_converged=True))
    (of_object,) = result.objects
    # Ten that agree in a row: 35 … 44 after the click, 14 … 5 on the way back.
    assert of_object.converged_frames == (5, 44)
    assert (of_object.first_frame, of_object.last_frame) == (5, 44)
    assert engine.frames_asked == 2 * (MOVED + AGREEING_FRAMES)
    after = labels(folder)
    assert sorted(after) == list(range(FRAMES))
    moved = {*range(30, 30 + MOVED), *range(BEGINS - MOVED, BEGINS)}
    assert {t for t in after if after[t] != before[t]} == moved
    (track,) = (t for t in opened.open("v").tracks if t.object_id == 1)
    assert track.refinement is not None
    assert track.refinement["converged_frames"] == [5, 44]
    in_sql = "SELECT refinement.converged_frames FROM current_tracks WHERE object_id = 1"
    assert Dataset(str(folder / "labels")).sql(in_sql)[0].to_pylist() == [[5, 44]]


def test_without_asking_all_frames_reached_are_computed(
    opened: RefineSessions, engine: ScriptedEngine
) -> None:
    refine(opened, request(1, click(1, 30, 50.0)))
    assert engine.frames_asked == (FRAMES - 30) + BEGINS


def test_agreement_counts_only_beyond_the_last_new_prompt(opened: RefineSessions) -> None:
    wanted = request(1, click(1, 22, 50.0), click(1, 48, 50.0), until_converged=True)
    result = refine(opened, wanted)
    assert result.objects[0].last_frame == FRAMES - 1, "frames end before ten agree"
    assert result.objects[0].converged_frames == (5,)


def test_each_object_converges_by_itself(opened: RefineSessions) -> None:
    wanted = request(1, click(1, 25, 50.0), click(2, 40, 50.0), until_converged=True)
    objects = {o.object_id: o for o in refine(opened, wanted).objects}
    assert [o.last_frame for o in objects.values()] == [39, 54]


KILLED = """
import sys
from pathlib import Path
from refining import click, request
from test_refine_converged import scripted
wanted = request(1, click(1, 30, 50.0), draft=sys.argv[2] == "draft")
with scripted(Path(sys.argv[1])) as (opened, _):
    for count, step in enumerate(opened.refine(wanted)):
        if count == 5:
            print("in the middle", flush=True)
            sys.stdin.read()
"""


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["commit", "draft"])
def test_a_refinement_killed_in_the_middle_leaves_nothing(folder: Path, kind: str) -> None:
    before, committed = everything(folder), version(folder)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), kind],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (everything(folder), version(folder)) == (before, committed)
    with scripted(folder) as (opened, _):
        assert opened.drafts("v") == ()
        assert refine(opened, request(1, click(1, 30, 50.0))).revision == 2


def everything(folder: Path) -> dict[str, Any]:
    return {o: labels(folder, o) for o in (1, 2)} | {"files": file_names(folder / "_drafts")}


def file_names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_frames_come_before_the_commit_and_are_what_it_commits(
    opened: RefineSessions, folder: Path
) -> None:
    committed = version(folder)
    steps = opened.refine(request(1, click(1, 30, 50.0)))
    streamed = {}
    for step in steps:
        if isinstance(step, RefinedFrame):
            streamed[step.frame_index] = step.masks[0].counts
            assert version(folder) == committed
    after = labels(folder)
    assert streamed == {t: after[t] for t in streamed}


class UnsteadyEngine(ScriptedEngine):
    """One pixel more each time it is asked, as other company on a device may make of a mask."""

    def refine(self, *args: Any, **kwargs: Any) -> Iterator[FrameMasks]:
        self.times = getattr(self, "times", 0) + 1
        for frame in super().refine(*args, **kwargs):
            masks = []
            for one in frame.masks:
                pixels = decode(one.counts, 96, 128).copy()
                pixels[80, : self.times] = True
                counts, area = encode_mask(pixels), int(pixels.sum())
                masks.append(replace(one, counts=counts, area_px=area))
            yield replace(frame, masks=masks)


def test_the_mask_that_was_previewed_is_committed_even_if_it_comes_out_otherwise_again(
    folder: Path,
) -> None:
    correction = click(1, 30, 50.0)
    with scripted(folder, UnsteadyEngine()) as (opened, _):
        seen = preview(opened, 1, correction)[1]
        assert preview(opened, 1, correction)[1] != seen
        seen = preview(opened, 1, correction)[1]
        other = preview(opened, 1, click(1, 30, 51.0))[1]
        refine(opened, request(1, correction))
    after = labels(folder)
    assert after[30] == seen != other
    assert Dataset(str(folder / "labels")).masks("v", [1], (30, 30))["area_px"].to_pylist() == [
        int(decode(seen, 96, 128).sum())
    ]
