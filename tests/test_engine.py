"""The engine: many videos through shared steps, and each as if it were alone.

Videos here are real files where decoding matters, and a fake with gates where the order of events
does; nothing is timed.
"""

import os
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_network import GRID, MEMORY, PLACES, SIZE, WIDTH, small_network
from torch import Tensor
from videos import moving_square, write_moving_square

from sam2model import Sam2VideoModel, Sam2VideoProcessor, Sam2VideoVideoProcessor
from sam2model.engine import Cancelled, DeadlineExceeded, Engine, EngineOptions
from sam2model.labelling_plan import LabellingPlan, Visit
from sam2model.prompts import Prompt, PromptError
from sam2model.rle import decode
from sam2model.semantics import LABELLING, REFERENCE
from sam2model.track_step import ImageFeatures, Sam2Network, StepOutput
from sam2model.tracked_masks import FrameMasks
from sam2model.video import Frame, Video, VideoError, VideoInfo

# Who shares a step changes the last bit of fp32 sums. Memories are kept in bf16, where such a bit
# may turn a rounding: in this model of 16 places, one of them moves logits by up to 1e-5.
SEED, SAME = 55, 1e-4
PROCESSOR = Sam2VideoProcessor(Sam2VideoVideoProcessor(SIZE))
HEIGHT, WIDTH_PX = 96, 128
THREADS = {"engine", "run lengths"}  # of an engine at rest
PATIENCE_S = 60.0  # only so that a defect fails and does not hang

DISC, CORNER = (20.0, 60.0), (100.0, 30.0)
MASK = np.zeros((HEIGHT, WIDTH_PX), np.bool_)
MASK[20:60, 30:70] = True


def click(object_id: int, frame: int, at: tuple[float, float] = DISC) -> Prompt:
    return Prompt(object_id, frame, (at,), (True,))


def box(object_id: int, frame: int) -> Prompt:
    return Prompt(object_id, frame, box_xyxy_px=(10.0, 30.0, 80.0, 80.0))


LABELLINGS: dict[str, list[Prompt]] = {
    "one click": [click(1, 0)],
    "click and box that begin apart": [click(1, 0), box(2, 5)],
    "two clicks in the middle": [Prompt(4, 6, (CORNER, DISC), (True, False))],
    "mask, and a click corrected later": [
        Prompt(3, 0, mask=MASK),
        click(1, 2),
        click(1, 9, CORNER),
    ],
    "box restated": [box(7, 3), Prompt(7, 11, box_xyxy_px=(30.0, 20.0, 120.0, 90.0))],
}


class WatchedEngine(Engine):
    """Keeps every answer's logits: (video, stage, frame, object) → (4H, 4W)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.logits: dict[tuple[str, str, int, int], Tensor] = {}
        super().__init__(*args, **kwargs)
        finish = self.tracker.finish

        def noting(encoded: Any, tasks: Any, answers: dict[int, StepOutput]) -> Any:
            self.note(encoded.job.video.name, encoded.visit, answers)
            return finish(encoded, tasks, answers)

        self.tracker.finish = noting  # type: ignore[method-assign]

    def note(self, name: str, visit: Visit, answers: dict[int, StepOutput]) -> None:
        for object_id, answer in answers.items():
            self.logits[name, visit.stage, visit.frame.index, object_id] = answer.logits[0].clone()


@contextmanager
def running(network: Sam2Network, **options: int) -> Iterator[WatchedEngine]:
    """An engine that leaves neither a thread nor a page when all its labels are done."""
    before = set(threading.enumerate())
    engine = WatchedEngine(network, PROCESSOR, LABELLING, EngineOptions(**options))
    try:
        yield engine
        wait_until(lambda: is_at_rest(engine))
        assert engine.stepper.bank.mask_pages_in_use == 0
        assert engine.stepper.bank._pointers.in_use == 0
    finally:
        engine.close()
    assert engine_threads(before) == set()


def engine_threads(others: Set[threading.Thread] = frozenset()) -> set[str]:
    return {t.name for t in set(threading.enumerate()) - others} & {*THREADS, "decode", "prefetch"}


def is_at_rest(engine: Engine) -> bool:
    """Whether every video has left; asked between two turns of the engine, not within one."""
    with engine._changed:
        return not engine.schedule.jobs


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def network() -> Sam2Network:
    built: Sam2Network = small_network(SEED)
    return built


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A clip for each labelling, none shorter than the span of pointers."""
    folder = tmp_path_factory.mktemp("clips")
    return {
        name: write_moving_square(folder / f"{i}.mp4", 16 + i) for i, name in enumerate(LABELLINGS)
    }


class FakeVideo:
    """Frames without a file; `gate` is waited for before frame `closed_at`, `fails_at` raises."""

    def __init__(
        self,
        num_frames: int = 12,
        name: str = "fake",
        closed_at: int | None = None,
        fails_at: int | None = None,
        side: int | None = None,
    ) -> None:
        self.name, self.num_frames, self.given = name, num_frames, 0
        self.closed_at, self.fails_at, self.gate = closed_at, fails_at, threading.Event()
        self.height, self.width = (side, side) if side else (HEIGHT, WIDTH_PX)
        self.info = VideoInfo(self.width, self.height, 0, 10.0, None, None, "none")
        self.pictures: list[weakref.ref[Any]] = []

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        return self._frames(range(self.num_frames)[start:stop])

    def frames_backwards(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        return self._frames(range(self.num_frames)[start:stop][::-1])

    def _frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            if index == self.closed_at:
                assert self.gate.wait(PATIENCE_S)
            if index == self.fails_at:
                raise VideoError("undecodable", f"{self.name}: frame {index} is damaged")
            rgb = np.ascontiguousarray(moving_square(index, HEIGHT, WIDTH_PX))
            rgb = rgb[: self.height, : self.width].copy()
            self.pictures.append(weakref.ref(rgb))
            self.given += 1
            yield Frame(index, index / 10, rgb)

    @property
    def alive(self) -> int:
        """Frames that somebody still holds."""
        return sum(ref() is not None for ref in self.pictures)


def label(engine: Engine, video: Any, prompts: list[Prompt], **options: Any) -> Any:
    """The engine's own iterator, for a real video or a fake one."""
    return engine.label(video, prompts, **options)


def assert_same_masks(got: list[FrameMasks], wanted: list[FrameMasks]) -> None:
    assert [f.frame_index for f in got] == [f.frame_index for f in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert (a.pts_s, a.height, a.width) == (b.pts_s, b.height, b.width)
        for x, y in zip(a.masks, b.masks, strict=True):
            assert (x.object_id, x.is_prompt) == (y.object_id, y.is_prompt)
            assert x.object_score == pytest.approx(y.object_score, rel=SAME)
            assert x.iou_pred == pytest.approx(y.iou_pred, rel=SAME)
            differing = decode(x.counts, a.height, a.width) ^ decode(y.counts, a.height, a.width)
            assert differing.sum() <= 4  # pixels where a logit is zero but for its last bits


def assert_same_logits(
    got: dict[tuple[str, str, int, int], Tensor],
    wanted: dict[tuple[str, str, int, int], Tensor],
    most: float = SAME,
) -> None:
    assert wanted
    for key, logits in wanted.items():
        error = float((got[key] - logits).abs().max() / logits.abs().max())
        assert error < most, f"{key}: {error}"


Alone = tuple[dict[str, list[FrameMasks]], dict[tuple[str, str, int, int], Tensor]]


@pytest.fixture(scope="module")
def alone(network: Sam2Network, clips: dict[str, Path]) -> Alone:
    """Masks and logits of every labelling, each in an engine of its own steps."""
    with running(network, slots=1) as engine:
        masks = {}
        for name, prompts in LABELLINGS.items():
            with Video(clips[name], name=name) as video:
                masks[name] = list(label(engine, video, prompts))
        return masks, dict(engine.logits)


# What comes out.


@pytest.mark.parametrize("name", LABELLINGS)
def test_every_object_comes_once_on_every_frame_of_the_video(
    alone: Alone, clips: dict[str, Path], name: str
) -> None:
    frames, prompts = alone[0][name], LABELLINGS[name]
    num_frames = 16 + list(LABELLINGS).index(name)
    told = [(m.object_id, f.frame_index) for f in frames for m in f.masks]

    ids = {p.object_id for p in prompts}
    assert sorted(told) == sorted((o, f) for o in ids for f in range(num_frames))
    prompted = {(p.object_id, p.frame_index) for p in prompts}
    assert prompted == {
        (m.object_id, f.frame_index) for f in frames for m in f.masks if m.is_prompt
    }
    for frame in frames:
        assert (frame.height, frame.width) == (HEIGHT, WIDTH_PX)
        assert frame.pts_s == pytest.approx(frame.frame_index / 10)
        for mask in frame.masks:
            pixels = decode(mask.counts, HEIGHT, WIDTH_PX)
            assert pixels.sum() == mask.area_px
            if mask.area_px:
                rows, columns = np.nonzero(pixels)
                x0, y0, x1, y1 = mask.box_xyxy_px
                assert (x0, y0) == (columns.min(), rows.min())
                assert (x1, y1) == (columns.max() + 1, rows.max() + 1)
            assert 0 <= mask.iou_pred <= 1 and 0 <= mask.stability <= 1


def test_frames_come_forward_first_and_then_backward(alone: Alone) -> None:
    order = [f.frame_index for f in alone[0]["two clicks in the middle"]]

    assert order == [*range(6, 18), *range(5, -1, -1)]


def test_masks_tell_objects_and_frames_apart(alone: Alone) -> None:
    counts = [m.counts for f in alone[0]["click and box that begin apart"] for m in f.masks]

    assert len(set(counts)) > len(counts) / 2  # else the comparisons below would prove little


def test_a_span_is_labelled_and_nothing_else(network: Sam2Network, clips: dict[str, Path]) -> None:
    name = "two clicks in the middle"
    with running(network) as engine, Video(clips[name], name=name) as video:
        frames = list(label(engine, video, LABELLINGS[name], first_frame=4, last_frame=8))

    assert [f.frame_index for f in frames] == [6, 7, 8, 5, 4]


# Whoever shares the steps.


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {}),
        (2, {"slots": 2, "frame_batch": 8, "frames_ahead": 2, "results_ahead": 1}),
        (3, {"slots": 3, "frame_batch": 1, "frames_ahead": 3, "results_ahead": 100}),
    ],
    ids=str,
)
def test_neighbours_that_join_and_leave_at_any_time_change_nothing_whatever_the_options(
    network: Sam2Network,
    clips: dict[str, Path],
    alone: Alone,
    seed: int,
    options: dict[str, int],
) -> None:
    with running(network, **options) as engine:
        found = label_in_turn(engine, clips, random.Random(seed), neighbours=4)

    for name, masks in found.items():
        assert_same_masks(masks, alone[0][name])
    assert_same_logits(engine.logits, alone[1])


def test_in_steps_of_one_object_neighbours_do_not_change_a_bit(
    network: Sam2Network, clips: dict[str, Path]
) -> None:
    logits = []
    for neighbours in (0, 4):
        with running(network, slots=1, frame_batch=1) as engine:
            label_in_turn(engine, clips, random.Random(4), neighbours)
            logits.append(
                {key: engine.logits[key] for key in engine.logits if key[0] in LABELLINGS}
            )
    assert logits[0].keys() == logits[1].keys()
    for key, wanted in logits[0].items():
        assert torch.equal(logits[1][key], wanted), key


def test_without_the_rounding_of_memories_neighbours_change_no_more_than_the_last_bits_of_fp32(
    network: Sam2Network, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("memory_bank", "track_step"):
        monkeypatch.setattr(f"sam2model.{module}.REMEMBERED_AS", torch.float32)
    logits = []
    for options, neighbours in (({"slots": 1, "frame_batch": 1}, 0), ({"slots": 5}, 3)):
        with running(network, **options) as engine:
            label_in_turn(engine, clips, random.Random(7), neighbours)
        logits.append({k: v for k, v in engine.logits.items() if k[0] in clips})

    assert_same_logits(logits[1], logits[0], 1e-5)


def label_in_turn(
    engine: Engine, clips: dict[str, Path], chance: random.Random, neighbours: int
) -> dict[str, list[FrameMasks]]:
    """All labellings, begun and read in random turns, among neighbours that stop half-way."""
    with ExitStack() as opened:
        waiting: list[tuple[str, Any, list[Prompt], int]] = []
        for name, path in clips.items():
            video = opened.enter_context(Video(path, name=name))
            waiting.append((name, video, LABELLINGS[name], 1000))
        for i in range(neighbours):
            name, prompts = f"neighbour {i}", LABELLINGS[chance.choice(list(LABELLINGS))]
            waiting.append((name, FakeVideo(40, name), prompts, chance.randrange(1, 12)))
        chance.shuffle(waiting)
        living: dict[str, tuple[Any, int]] = {}
        found: dict[str, list[FrameMasks]] = {}
        while waiting or living:
            if waiting and (not living or chance.random() < 0.1):
                name, video, prompts, most = waiting.pop()
                living[name], found[name] = (label(engine, video, prompts), most), []
            name = chance.choice(list(living))
            frames, most = living[name]
            frame = next(frames, None)
            if frame is not None:
                found[name].append(frame)
            if frame is None or len(found[name]) == most:
                frames.close()
                del living[name]
    return {name: frames for name, frames in found.items() if name in clips}


def test_objects_of_several_videos_share_a_step(network: Sam2Network) -> None:
    sizes = []

    class Counting(Sam2Network):
        def track_step(self, image: ImageFeatures, memory: Any) -> StepOutput:
            sizes.append(len(memory.masks))
            return super().track_step(image, memory)

    with running(small_network(SEED, Counting)) as engine:
        videos = [FakeVideo(name=str(i), closed_at=0) for i in range(4)]
        labels = [label(engine, v, LABELLINGS["one click"]) for v in videos]
        readers = [threading.Thread(target=list, args=(frames,)) for frames in labels]
        for reader in readers:
            reader.start()
        wait_until(lambda: len(engine.schedule.jobs) == 4)
        for video in videos:
            video.gate.set()
        for reader in readers:
            reader.join(PATIENCE_S)

    assert max(sizes) == 4
    assert sum(sizes) == 4 * 11  # every object once on every frame but its prompt's


class Pausing(Sam2Network):
    """Stands still in a step while `may_step` is not set."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.may_step, self.stands_still = threading.Event(), threading.Event()
        self.may_step.set()

    def track_step(self, image: ImageFeatures, memory: Any) -> StepOutput:
        if not self.may_step.is_set():
            self.stands_still.set()
        assert self.may_step.wait(PATIENCE_S)
        return super().track_step(image, memory)


def test_frames_of_one_video_that_are_decoded_already_are_encoded_together() -> None:
    batches: list[int] = []

    class Counting(Pausing):
        def encode_images(self, pixels: Tensor) -> ImageFeatures:
            batches.append(len(pixels))
            return super().encode_images(pixels)

    network: Pausing = small_network(SEED, Counting)
    with running(network, frame_batch=4, frames_ahead=8) as engine:
        video = FakeVideo(40)
        network.may_step.clear()
        frames = label(engine, video, [click(1, 0)])
        reader = threading.Thread(target=list, args=(frames,))
        reader.start()
        assert network.stands_still.wait(PATIENCE_S)
        before = sum(batches)
        wait_until(lambda: video.given == before + 8 + 1)
        network.may_step.set()
        reader.join(PATIENCE_S)

    assert sum(batches) == 40
    assert 4 in batches


def test_no_step_or_batch_of_frames_is_larger_than_the_options_say(network: Sam2Network) -> None:
    steps, batches = [], []

    class Counting(Sam2Network):
        def track_step(self, image: ImageFeatures, memory: Any) -> StepOutput:
            steps.append(len(memory.masks))
            return super().track_step(image, memory)

        def encode_images(self, pixels: Tensor) -> ImageFeatures:
            batches.append(len(pixels))
            return super().encode_images(pixels)

    with running(small_network(SEED, Counting), slots=4, frame_batch=3) as engine:
        videos = [FakeVideo(6, str(i), closed_at=0) for i in range(5)]
        prompts = [click(1, 0), click(2, 0, CORNER)]
        labels = [label(engine, v, prompts) for v in videos]
        readers = [threading.Thread(target=list, args=(frames,)) for frames in labels]
        for reader in readers:
            reader.start()
        wait_until(lambda: len(engine.schedule.jobs) == 5)
        for video in videos:
            video.gate.set()
        for reader in readers:
            reader.join(PATIENCE_S)

    assert max(steps) == 4 and max(batches) == 3
    assert sum(batches) == 5 * 6


# The same masks as the model's own session.


@pytest.mark.parametrize("name", LABELLINGS)
def test_masks_equal_a_session_propagated_forward_and_then_backward(
    clips: dict[str, Path], alone: Alone, name: str
) -> None:
    model: Sam2VideoModel = small_network(SEED, Sam2VideoModel)
    model.semantics = LABELLING
    with Video(clips[name], name=name) as video:
        session = PROCESSOR.init_video_session([frame.rgb for frame in video.frames()])
    prompts = LABELLINGS[name]
    firsts = {
        p.object_id: min(q.frame_index for q in prompts if q.object_id == p.object_id)
        for p in prompts
    }
    corrections = sorted(
        (p for p in prompts if p.points_px and p.frame_index > firsts[p.object_id]),
        key=lambda p: p.frame_index,
    )
    for prompt in prompts:
        if prompt not in corrections:
            add(session, prompt)

    outputs: dict[tuple[str, int, int], Tensor] = {}

    def keep(stage: str, emissions: Any) -> None:
        for emission in emissions:
            for row, object_id in enumerate(emission.object_ids):
                outputs[stage, emission.frame_idx, object_id] = emission.pred_masks[row, 0]

    start = min(firsts.values())
    for correction in corrections:
        reach = correction.frame_index - start
        keep("forward", model.propagate_in_video_iterator(session, start, reach))
        add(session, correction)
        start = correction.frame_index
    keep("forward", model.propagate_in_video_iterator(session, start))
    if max(firsts.values()) > 0:
        keep("backward", model.propagate_in_video_iterator(session, reverse=True))

    ours = {k[1:]: v for k, v in alone[1].items() if k[0] == name and k[1] != "restate"}
    assert len(ours) == (16 + list(LABELLINGS).index(name)) * len(firsts)
    assert_same_logits(outputs, ours)


def add(session: Any, prompt: Prompt) -> None:
    inputs: dict[str, Any] = {}
    if prompt.points_px:
        inputs["input_points"] = [[[list(p) for p in prompt.points_px]]]
        inputs["input_labels"] = [[[int(s) for s in prompt.positive]]]
    if prompt.box_xyxy_px is not None:
        inputs["input_boxes"] = [[list(prompt.box_xyxy_px)]]
    if prompt.mask is not None:
        inputs["input_masks"] = [prompt.mask]
    PROCESSOR.add_inputs_to_inference_session(
        session, prompt.frame_index, [prompt.object_id], **inputs
    )


# What goes wrong stays where it is.


def run_beside(
    engine: Engine, failing: Any, prompts: list[Prompt], neighbour: Any
) -> tuple[list[FrameMasks], BaseException, list[FrameMasks]]:
    """Frames and error of a video that fails, and the frames of its neighbour, read by turns."""
    good = label(engine, neighbour, LABELLINGS["one click"])
    bad = label(engine, failing, prompts)
    before, beside = [], [next(good)]
    try:
        for frame in bad:
            before.append(frame)
            beside += [f for f in [next(good, None)] if f is not None]
    except Exception as error:
        return before, error, [*beside, *good]
    raise AssertionError("it did not fail")


def test_a_damaged_video_fails_alone_after_the_frames_before_the_damage(
    network: Sam2Network, tmp_path: Path
) -> None:
    path = write_moving_square(tmp_path / "cut.mkv", 30, gop=5, b_frames=0)
    content = path.read_bytes()
    with running(network) as engine:
        with Video(content[: len(content) // 2], name="cut.mkv") as cut:
            frames, error, beside = run_beside(
                engine, cut, LABELLINGS["one click"], FakeVideo(20, "sound")
            )
        undisturbed = list(label(engine, FakeVideo(20), LABELLINGS["one click"]))

    assert isinstance(error, VideoError) and error.reason == "truncated"
    assert 5 < len(frames) < 30
    assert [f.frame_index for f in frames] == list(range(len(frames)))
    assert_same_masks(beside, undisturbed)


def test_every_frame_before_the_damage_is_handed_out_first(network: Sam2Network) -> None:
    with running(network) as engine:
        broken = FakeVideo(20, "broken", fails_at=9)
        frames, error, _ = run_beside(engine, broken, [click(1, 0)], FakeVideo(12))

    assert str(error) == "broken: frame 9 is damaged"
    assert [f.frame_index for f in frames] == list(range(9))


def test_a_prompt_beyond_the_end_fails_its_video_alone(network: Sam2Network) -> None:
    prompts = [click(1, 0), click(2, 30)]
    with running(network) as engine:
        _, error, beside = run_beside(engine, FakeVideo(10), prompts, FakeVideo(12))

    assert isinstance(error, PromptError)
    assert str(error) == "prompt of object 2 on frame 30: the video has frames 0 to 9"
    assert len(beside) == 12


@pytest.mark.parametrize(
    "prompts", [[], [Prompt(1, 0, ((500.0, 1.0),), (True,))], [click(1, 2), click(1, 2)]]
)
def test_prompts_that_cannot_be_used_are_refused_before_any_work(
    network: Sam2Network, prompts: list[Prompt]
) -> None:
    video = FakeVideo()
    with running(network) as engine:
        with pytest.raises(PromptError):
            next(label(engine, video, prompts))
        assert video.given == 0


class Refusing(Sam2Network):
    """Fails on the step or the batch of frames in which it is told to."""

    refuse_step: Callable[[int], bool] = staticmethod(lambda rows: False)
    refuse_frames: Callable[[int], bool] = staticmethod(lambda rows: False)

    def track_step(self, image: ImageFeatures, memory: Any) -> StepOutput:
        if self.refuse_step(len(memory.masks)):
            raise torch.OutOfMemoryError("this step is too large")
        return super().track_step(image, memory)

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        if self.refuse_frames(len(pixels)):
            raise torch.OutOfMemoryError("these frames are too many")
        return super().encode_images(pixels)


def test_an_error_in_a_step_reaches_the_videos_of_that_step_and_no_other() -> None:
    network: Refusing = small_network(SEED, Refusing)
    network.refuse_step = lambda rows: rows == 3
    with running(network) as engine:
        waiting = FakeVideo(8, "waiting", closed_at=4)
        beside = label(engine, waiting, [click(1, 0)])
        frames = [next(beside) for _ in range(4)]  # its next frame is not to be had yet
        three = label(engine, FakeVideo(), [click(o, 0) for o in (1, 2, 3)])
        with pytest.raises(torch.OutOfMemoryError, match="this step is too large"):
            list(three)
        waiting.gate.set()
        frames += list(beside)
        after = list(label(engine, FakeVideo(), [click(1, 0)]))

    assert [f.frame_index for f in frames] == list(range(8))
    assert len(after) == 12


def test_an_error_while_encoding_reaches_the_videos_of_those_frames_and_no_other() -> None:
    network: Refusing = small_network(SEED, Refusing)
    with running(network, frame_batch=1) as engine:
        waiting = FakeVideo(8, "waiting", closed_at=4)
        beside = label(engine, waiting, [click(1, 0)])
        frames = [next(beside) for _ in range(4)]
        network.refuse_frames = lambda rows: True
        with pytest.raises(torch.OutOfMemoryError, match="these frames are too many"):
            list(label(engine, FakeVideo(), [click(1, 0)]))
        network.refuse_frames = lambda rows: False
        waiting.gate.set()
        frames += list(beside)

    assert [f.frame_index for f in frames] == list(range(8))


def test_a_device_that_has_no_room_for_a_memory_loses_no_page(network: Sam2Network) -> None:
    with running(network) as engine:  # which sees to it that every page comes back
        bank = engine.stepper.bank
        put, refusals = bank._pointers.put, [5, 9]

        def full(content: Tensor) -> list[int]:
            refusals[:] = [left - 1 for left in refusals]
            if 0 in refusals:
                raise torch.OutOfMemoryError("no room for a pointer")
            return put(content)

        bank._pointers.put = full  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError, match="no room for a pointer"):
                list(label(engine, FakeVideo(), [click(1, 0), click(2, 0, CORNER)]))

        assert len(list(label(engine, FakeVideo(), [click(1, 0)]))) == 12


def test_what_failed_for_want_of_room_is_not_held_by_its_error() -> None:
    held: list[weakref.ref[Tensor]] = []

    class Greedy(Sam2Network):
        def track_step(self, image: ImageFeatures, memory: Any) -> StepOutput:
            much = torch.zeros(1000)
            held.append(weakref.ref(much))
            raise torch.OutOfMemoryError("this step is too large")

    with running(small_network(SEED, Greedy)) as engine:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            list(label(engine, FakeVideo(), [click(1, 0)]))

        assert raised.value is not None  # the error lives, what it could not place does not
        assert held and all(ref() is None for ref in held)


# Leaving, waiting and ending.


def test_closing_an_iterator_early_ends_its_thread_and_frees_its_pages(
    network: Sam2Network,
) -> None:
    with running(network) as engine:
        video = FakeVideo(500)
        frames = label(engine, video, [click(1, 0), click(2, 0, CORNER)])
        for _ in range(5):
            next(frames)
        assert engine.stepper.bank.mask_pages_in_use > 0

        frames.close()

        assert engine_threads() == THREADS  # its decoder has ended before `close` returns
        wait_until(lambda: is_at_rest(engine))
        assert engine.stepper.bank.mask_pages_in_use == 0
        assert video.given < 100
        wait_until(lambda: video.alive == 0)  # an engine at rest holds nothing
        assert len(list(label(engine, FakeVideo(), [click(1, 0)]))) == 12


def test_an_iterator_that_nobody_holds_any_more_is_closed(network: Sam2Network) -> None:
    with running(network) as engine:
        frames = label(engine, FakeVideo(500), [click(1, 0)])
        next(frames)

        del frames

        wait_until(lambda: is_at_rest(engine))
        assert engine_threads() == THREADS


def test_a_video_that_is_not_read_waits_and_holds_no_more_than_its_options_say(
    network: Sam2Network,
) -> None:
    options = {"frames_ahead": 3, "results_ahead": 4, "frame_batch": 2}
    with running(network, **options) as engine:
        unread = FakeVideo(10_000, "unread")
        frames = label(engine, unread, [click(1, 0)])
        next(frames)

        others = [list(label(engine, FakeVideo(40), [click(1, 0)])) for _ in range(2)]

        assert [len(o) for o in others] == [40, 40]
        # Decoded, encoded, masks; one taken, one in the decoder's hand.
        assert unread.given <= 3 + 2 + 4 + 2
        assert unread.alive <= 3 + 2 + 1
        frames.close()


def test_a_video_that_was_not_read_goes_on_where_it_waited(
    network: Sam2Network,
) -> None:
    with running(network, frames_ahead=2, results_ahead=2) as engine:
        frames = label(engine, FakeVideo(20), [click(1, 0)])
        first = next(frames)
        list(label(engine, FakeVideo(30), [click(1, 0)]))
        rest = list(frames)
        undisturbed = list(label(engine, FakeVideo(20), [click(1, 0)]))

    assert_same_masks([first, *rest], undisturbed)


def test_interactive_work_goes_before_bulk_work() -> None:
    order: list[str] = []

    class Noting(WatchedEngine):
        def note(self, name: str, visit: Visit, answers: dict[int, StepOutput]) -> None:
            order.append(name)

    network: Pausing = small_network(SEED, Pausing)
    options = EngineOptions(frames_ahead=20, results_ahead=1000)
    engine = Noting(network, PROCESSOR, LABELLING, options)
    bulk = [label(engine, FakeVideo(10_000, "bulk"), [click(1, 0)]) for _ in range(2)]
    for frames in bulk:
        next(frames)
    network.may_step.clear()
    assert network.stands_still.wait(PATIENCE_S)
    urgent = FakeVideo(20, "urgent")
    reader = threading.Thread(
        target=lambda: list(label(engine, urgent, [click(1, 0)], lane="interactive"))
    )
    reader.start()
    wait_until(lambda: urgent.given == 20)
    network.may_step.set()
    reader.join(PATIENCE_S)
    for frames in bulk:
        frames.close()
    engine.close()

    first = order.index("urgent")
    assert order[first : first + 20] == ["urgent"] * 20


def test_bulk_work_goes_on_while_interactive_work_waits_for_its_frames(
    network: Sam2Network,
) -> None:
    with running(network) as engine:
        slow = FakeVideo(3, "slow", closed_at=1)
        urgent = label(engine, slow, [click(1, 0)], lane="interactive")
        next(urgent)

        assert len(list(label(engine, FakeVideo(), [click(1, 0)]))) == 12

        slow.gate.set()
        assert len(list(urgent)) == 2


def test_closing_the_engine_cancels_the_labels_that_wait(network: Sam2Network) -> None:
    engine = Engine(network, PROCESSOR)
    videos = [FakeVideo(500, str(i), closed_at=3) for i in range(3)]
    ended: list[BaseException] = []

    def read(video: Any) -> None:
        try:
            list(label(engine, video, [click(1, 0)]))
        except Cancelled as error:
            ended.append(error)

    readers = [threading.Thread(target=read, args=(video,)) for video in videos]
    for reader in readers:
        reader.start()
    wait_until(lambda: all(v.given == 3 for v in videos))

    engine.close()
    for video in videos:
        video.gate.set()
    for reader in readers:
        reader.join(PATIENCE_S)

    assert len(ended) == 3 and "closed" in str(ended[0])
    assert engine_threads() == set()
    with pytest.raises(Cancelled):
        next(label(engine, FakeVideo(), [click(1, 0)]))
    engine.close()  # a second time does nothing


def test_a_video_that_hangs_ends_at_its_deadline_and_the_others_go_on(
    network: Sam2Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam2model.engine.FEEDER_PATIENCE_S", 0.01)
    with running(network) as engine:
        hanging = FakeVideo(20, "hanging", closed_at=3)
        beside = label(engine, FakeVideo(), [click(1, 0)])
        first = next(beside)

        with pytest.raises(DeadlineExceeded, match="hanging: [0-3] frames in 0 s, the deadline"):
            list(label(engine, hanging, [click(1, 0)], deadline_s=0.2))

        assert [f.frame_index for f in (first, *beside)] == list(range(12))
        wait_until(lambda: hanging.alive <= 1)  # the one in the decoder's hand
        hanging.gate.set()  # the decoder's thread notices that nobody waits for it
        wait_until(lambda: engine_threads() == THREADS)
        assert hanging.given <= 5


def test_an_engine_that_breaks_tells_everybody_who_waits(
    network: Sam2Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(network, PROCESSOR)
    frames = label(engine, FakeVideo(500), [click(1, 0)])
    next(frames)

    def broken() -> list[Any]:
        raise KeyError("a defect")

    monkeypatch.setattr(engine.schedule, "next_step", broken)

    with pytest.raises(KeyError, match="a defect"):
        list(frames)
    with pytest.raises(Cancelled):
        next(label(engine, FakeVideo(), [click(1, 0)]))
    engine.close()
    assert "the engine broke" in caplog.messages
    assert engine_threads() == set()


@pytest.mark.parametrize("name", ["slots", "frame_batch", "frames_ahead", "results_ahead"])
def test_options_that_would_let_nothing_through_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got 0; wanted 1 or more"):
        EngineOptions(**{name: 0})


# Constant memory.


class Idle(Sam2Network):
    """Answers at once, so that thousands of frames pass through the real engine and bank."""

    def encode_images(self, pixels: Tensor) -> ImageFeatures:
        n = len(pixels)
        wide = torch.zeros(n, PLACES, WIDTH)
        fine = torch.zeros(n, 4 * GRID, 4 * GRID, WIDTH // 8)
        middle = torch.zeros(n, 2 * GRID, 2 * GRID, WIDTH // 4)
        return ImageFeatures(wide, wide, wide, fine, middle, wide.view(n, GRID, GRID, WIDTH))

    def track_step(self, image: ImageFeatures, memory: Any) -> StepOutput:
        n = len(memory.masks)
        return StepOutput(
            torch.ones(n, 4 * GRID, 4 * GRID), torch.ones(n), torch.ones(n), torch.zeros(n, WIDTH)
        )

    def encode_memory(self, *args: Any) -> Tensor:
        return torch.zeros(len(args[1]), PLACES, MEMORY, dtype=torch.bfloat16)


def test_nothing_grows_over_two_thousand_frames() -> None:
    video = FakeVideo(2000, side=16)
    held: list[tuple[int, int, int]] = []
    engine = Engine(small_network(SEED, Idle), PROCESSOR, REFERENCE, EngineOptions())
    bank = engine.stepper.bank
    prompts = [click(o, 1000, (5.0, 5.0)) for o in (1, 2)]  # half forward, half backward
    for count, _ in enumerate(label(engine, video, prompts)):
        if count % 100 == 50:
            held.append((bank.mask_pages_in_use, bank._pointers.in_use, video.alive))
    engine.close()

    assert len(held) == 20
    pages, pointers, frames = (max(values) for values in zip(*held, strict=True))
    assert pages <= 2 * (1 + 2 * 6) and pointers <= 2 * (1 + 2 * 15)  # two objects, two ways
    ahead = engine.options.frames_ahead + engine.options.frame_batch
    assert frames <= 2 * ahead  # and the few that pass from hand to hand


def test_a_plan_is_made_of_the_videos_own_size(network: Sam2Network) -> None:
    # A click that is inside one video may lie outside another.
    with running(network) as engine:
        with pytest.raises(PromptError, match="outside 16×16 px"):
            next(label(engine, FakeVideo(side=16), [click(1, 0)]))
    assert LabellingPlan.make([click(1, 0)], 0, None, HEIGHT, WIDTH_PX).object_ids == [1]


LEAVES = """
import sys
from pathlib import Path
from small_network import SIZE, small_network
from sam2model import Prompt, Sam2VideoProcessor, Sam2VideoVideoProcessor
from sam2model.engine import Engine
from sam2model.video import Video

engine = Engine(small_network(), Sam2VideoProcessor(Sam2VideoVideoProcessor(SIZE)))
video = Video(Path(sys.argv[1]), name="v")
frames = engine.label(video, [Prompt(1, 0, ((20.0, 30.0),), (True,))])
next(frames)
sys.exit(7)
"""


def test_a_script_that_ends_without_closing_ends_with_its_own_exit_code(
    clips: dict[str, Path],
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEAVES, str(next(iter(clips.values())))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (7, "")
