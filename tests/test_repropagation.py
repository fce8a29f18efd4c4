"""Going again after a correction: no more than it changes, and the same masks as all over again.

Steps of one object and one frame each make fp32 sums repeatable, so equality here is to the bit.
"""

import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from small_network import small_network
from test_engine import HEIGHT, PROCESSOR, SAME, SEED, WIDTH_PX, FakeVideo, WatchedEngine, running
from test_engine import label as label_all

from sam2model.engine import EngineOptions
from sam2model.labelling_plan import Span, by_object
from sam2model.prompt_effect import effect_of_change, history
from sam2model.prompts import Prompt, PromptOutOfRange
from sam2model.refinement_memory import MemoryBudget, VideoMemory
from sam2model.semantics import REFERENCE
from sam2model.track_step import Sam2Network
from sam2model.tracked_masks import FrameMasks, TrackedMask

FRAMES = 22
ALONE = {"slots": 1, "frame_batch": 1}
Told = dict[tuple[int, int], TrackedMask]  # (object, frame) → mask


def click(object_id: int, frame: int, x: float = 20.0) -> Prompt:
    return Prompt(object_id, frame, ((x, 60.0),), (True,))


def box(object_id: int, frame: int, x: float = 10.0) -> Prompt:
    return Prompt(object_id, frame, box_xyxy_px=(x, 30.0, x + 60.0, 80.0))


def mask(object_id: int, frame: int, x: float = 30.0) -> Prompt:
    pixels = np.zeros((HEIGHT, WIDTH_PX), np.bool_)
    pixels[20:60, int(x) : int(x) + 40] = True
    return Prompt(object_id, frame, mask=pixels)


def told(frames: Sequence[FrameMasks]) -> Told:
    found = {(m.object_id, f.frame_index): m for f in frames for m in f.masks}
    assert len(found) == sum(len(f.masks) for f in frames), "each mask is told once"
    assert all(f.masks for f in frames), "a frame without a new mask is left out"
    return found


def refine(engine: WatchedEngine, prompts: list[Prompt], memory: Any, **options: Any) -> Told:
    video: Any = FakeVideo(FRAMES)
    return told(list(engine.refine(video, prompts, memory, **options)))


def whole(engine: WatchedEngine, prompts: list[Prompt], memory: Any = None) -> Told:
    return told(list(label_all(engine, FakeVideo(FRAMES), prompts, memory=memory)))


@pytest.fixture(scope="module")
def network() -> Sam2Network:
    built: Sam2Network = small_network(SEED)
    return built


@pytest.fixture(scope="module")
def capped(request: pytest.FixtureRequest) -> Iterator[WatchedEngine]:
    """An engine of steps of one object, which reads so many conditioning frames."""
    with running(small_network(SEED, max_cond_frame_num=request.param), **ALONE) as engine:
        yield engine


@pytest.fixture(scope="module")
def engine(network: Sam2Network) -> Iterator[WatchedEngine]:
    with running(network, **ALONE) as running_engine:
        yield running_engine


# The same masks.


def random_prompts(chance: random.Random) -> list[Prompt]:
    prompts = []
    for object_id in range(1, chance.randint(1, 3) + 1):
        for frame in chance.sample(range(FRAMES), chance.randint(1, 4)):
            kind = chance.choice([click, click, box, mask])
            prompts.append(kind(object_id, frame, chance.uniform(10, 60)))
    return prompts


def changed(prompts: list[Prompt], chance: random.Random) -> list[Prompt]:
    """The same with one prompt added, taken away or given anew."""
    objects = by_object(prompts)
    frames = objects[chance.choice(list(objects))]
    object_id = next(iter(frames.values())).object_id
    frame = chance.choice([*frames, *range(FRAMES)])
    if frame in frames and len(frames) > 1 and chance.random() < 0.5:
        del frames[frame]
    else:
        frames[frame] = chance.choice([click, box, mask])(object_id, frame, chance.uniform(10, 60))
    return [prompt for of_object in objects.values() for prompt in of_object.values()]


BUDGETS = [
    MemoryBudget(snapshot_every=1),
    MemoryBudget(snapshot_every=5),
    MemoryBudget(snapshot_every=4, device_feature_bytes=60_000, host_feature_bytes=90_000),
    MemoryBudget(device_feature_bytes=0, host_feature_bytes=60_000, snapshot_bytes=0),
    MemoryBudget(snapshot_every=2, device_feature_bytes=0, host_feature_bytes=0),
    MemoryBudget(snapshot_every=2, snapshot_bytes=40_000),
]


CASES = [(-1, 1), (-1, 2), (-1, 4), (1, 0), (2, 3), (3, 5)]  # cap, seed: each budget once
REST = [(cap, seed) for cap in (-1, 1, 2, 3) for seed in range(12) if (cap, seed) not in CASES]


@pytest.mark.parametrize(
    ("capped", "seed"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)],
    indirect=["capped"],
)
def test_masks_after_any_change_are_those_of_all_over_again_and_the_others_did_not_change(
    capped: WatchedEngine, seed: int
) -> None:
    chance = random.Random(seed)
    memory = VideoMemory(BUDGETS[seed % len(BUDGETS)])
    cap = capped.stepper.bank.limits.max_conditioning
    prompts = random_prompts(chance)
    present = whole(capped, prompts, memory)
    for _ in range(3):
        new = changed(prompts, chance)
        wanted = whole(capped, new)

        found = refine(capped, new, memory, before=prompts)

        objects, before = by_object(new), by_object(prompts)
        effects = {
            o: effect_of_change(history(before[o]), history(objects[o]), cap) for o in objects
        }
        reached = {
            (o, f) for o, effect in effects.items() if effect for f in range(FRAMES) if f in effect
        }
        assert found == {place: wanted[place] for place in reached}
        assert {p: present[p] for p in wanted.keys() - reached} == {
            p: wanted[p] for p in wanted.keys() - reached
        }
        prompts, present = new, wanted


@pytest.mark.parametrize("seed", range(3))
def test_masks_of_objects_that_share_steps_are_the_same_to_the_last_bits(
    network: Sam2Network, seed: int
) -> None:
    chance = random.Random(100 + seed)
    with running(network) as engine:
        prompts = random_prompts(chance)
        memory = VideoMemory(MemoryBudget(snapshot_every=3))
        whole(engine, prompts, memory)
        new = changed(prompts, chance)
        wanted = whole(engine, new)
        found = refine(engine, new, memory, before=prompts)

    assert found
    for place, one in found.items():
        assert one.object_score == pytest.approx(wanted[place].object_score, rel=SAME)
        assert one.iou_pred == pytest.approx(wanted[place].iou_pred, rel=SAME)
        assert abs(one.area_px - wanted[place].area_px) <= 4


def test_reference_semantics_go_all_over_again() -> None:
    # There the backward pass reads what the forward pass left: no snapshot tells enough.
    engine = WatchedEngine(small_network(SEED), PROCESSOR, REFERENCE, EngineOptions(**ALONE))
    memory = VideoMemory(MemoryBudget(snapshot_every=2))
    old, new = [click(1, 5)], [click(1, 5), click(1, 12)]
    whole(engine, old, memory)
    wanted = whole(engine, new)
    found = refine(engine, new, memory, before=old)
    engine.close()

    assert found == wanted
    assert len(memory.snapshots) == 0


# No more than is needed.


def steps_of(engine: WatchedEngine, run: Any) -> int:
    before = engine.frames_tracked
    run()
    return engine.frames_tracked - before


def test_a_later_click_begins_again_at_the_snapshot_before_it(engine: WatchedEngine) -> None:
    memory = VideoMemory(MemoryBudget(snapshot_every=4))
    old, new = [click(1, 0)], [click(1, 0), click(1, 14)]
    whole(engine, old, memory)

    steps = steps_of(engine, lambda: refine(engine, new, memory, before=old))

    assert steps == FRAMES - 13  # a snapshot of frame 12: frame 13, and from 14 to the end


def test_a_click_given_anew_begins_again_right_there(engine: WatchedEngine) -> None:
    memory = VideoMemory(MemoryBudget(snapshot_every=100))
    old, new = [click(1, 0), click(1, 14)], [click(1, 0), click(1, 14, 40.0)]
    whole(engine, old, memory)

    steps = steps_of(engine, lambda: refine(engine, new, memory, before=old))

    assert steps == FRAMES - 14


def test_frames_that_are_known_are_neither_decoded_nor_encoded(engine: WatchedEngine) -> None:
    memory = VideoMemory(MemoryBudget(snapshot_every=4))
    old, new = [click(1, 0)], [click(1, 0), click(1, 14)]
    whole(engine, old, memory)
    video: Any = FakeVideo(FRAMES)

    list(engine.refine(video, new, memory, before=old))

    assert video.given == 0


def test_only_the_objects_named_are_gone_through(engine: WatchedEngine) -> None:
    memory = VideoMemory()
    whole(engine, [click(1, 0), box(2, 3), click(3, 8)], memory)

    found = refine(engine, [box(2, 3), click(2, 9)], memory, before=[box(2, 3)])

    assert {object_id for object_id, _ in found} == {2}


def test_nothing_is_told_of_objects_whose_prompts_are_the_same(engine: WatchedEngine) -> None:
    memory = VideoMemory()
    same, old = [click(1, 4), mask(1, 9)], [click(2, 0)]
    video: Any = FakeVideo(FRAMES)

    frames = list(engine.refine(video, [*same, *old], memory, before=[*same, *old]))

    assert frames == []
    assert video.given == 0


@pytest.mark.parametrize("span", [(3, 5), (9, 12), (0, 21), (16, None), (7, 7)], ids=str)
def test_a_part_of_the_video_is_told_and_is_as_in_the_whole(
    engine: WatchedEngine, span: tuple[int, int | None]
) -> None:
    prompts = [click(1, 8), click(1, 13), box(2, 2), mask(2, 10), click(2, 15)]
    wanted = whole(engine, prompts)
    memory = VideoMemory(MemoryBudget(snapshot_every=3))
    for _ in range(2):  # the second time with snapshots
        found = refine(engine, prompts, memory, told=Span(*span))

        assert found == {place: m for place, m in wanted.items() if place[1] in Span(*span)}


def test_a_backward_pass_begins_again_at_the_snapshot_after_what_is_told(
    engine: WatchedEngine,
) -> None:
    memory = VideoMemory(MemoryBudget(snapshot_every=4))
    prompts = [click(1, 18), click(1, 20)]
    whole(engine, prompts, memory)

    steps = steps_of(engine, lambda: refine(engine, prompts, memory, told=Span(2, 3)))

    assert steps == 2


# One frame at once.


@pytest.mark.parametrize("again", [click, box, mask])
def test_a_preview_is_the_frame_as_the_whole_labelling_will_have_it(
    engine: WatchedEngine, again: Any
) -> None:
    old = [click(1, 2), box(2, 6)]
    for frame in (0, 2, 9):
        new = [p for p in old if (p.object_id, p.frame_index) != (1, frame)] + [again(1, frame, 33)]
        wanted = whole(engine, new)
        for memory in (None, VideoMemory(MemoryBudget(snapshot_every=4))):
            if memory is not None:
                whole(engine, old, memory)
            video: Any = FakeVideo(FRAMES)
            shown = engine.preview(video, new, memory, frame)

            assert shown.frame_index == frame
            assert [m.object_id for m in shown.masks] == [2, 1] if frame == 2 else [1, 2]
            assert told([shown]) == {p: m for p, m in wanted.items() if p[1] == frame}


def test_click_after_click_on_a_frame_takes_a_step_each(engine: WatchedEngine) -> None:
    memory = VideoMemory(MemoryBudget(snapshot_every=100))
    video: Any = FakeVideo(FRAMES)
    first = [click(1, 0), click(1, 15)]
    engine.preview(video, first, memory, 15)
    decoded = video.given
    for x in (30.0, 40.0, 50.0):
        again = [click(1, 0), click(1, 15, x)]
        steps = steps_of(engine, lambda again=again: engine.preview(video, again, memory, 15))

        assert steps == 1
    assert video.given == decoded


def test_a_box_is_shown_without_the_way_to_its_frame(engine: WatchedEngine) -> None:
    video: Any = FakeVideo(FRAMES)
    steps = steps_of(
        engine, lambda: engine.preview(video, [click(1, 0), box(1, 15)], VideoMemory(), 15)
    )

    assert steps == 2  # read ahead, and told


def test_a_preview_past_the_end_says_so(engine: WatchedEngine) -> None:
    video: Any = FakeVideo(FRAMES)
    with pytest.raises(PromptOutOfRange, match="frame 99"):
        engine.preview(video, [click(1, 0)], VideoMemory(), 99)


# Budgets, owners, and several at once.


@pytest.mark.parametrize("budget", BUDGETS, ids=range(len(BUDGETS)))
def test_no_more_is_kept_than_the_budget_says(engine: WatchedEngine, budget: MemoryBudget) -> None:
    memory = VideoMemory(budget)
    whole(engine, [click(1, 3), box(1, 9), click(2, 8), click(2, 15)], memory)

    near, far = memory.features.nbytes
    assert near <= budget.device_feature_bytes and far <= budget.host_feature_bytes
    assert memory.snapshots.nbytes <= budget.snapshot_bytes
    assert (memory.device_bytes, memory.host_bytes) == (near, far + memory.snapshots.nbytes)
    memory.leave_device()
    assert memory.device_bytes == 0 and memory.features.nbytes[1] <= budget.host_feature_bytes
    memory.clear()
    assert (memory.device_bytes, memory.host_bytes) == (0, 0)


def test_a_memory_serves_one_engine_and_one_video(
    engine: WatchedEngine, network: Sam2Network
) -> None:
    memory = VideoMemory()
    whole(engine, [click(1, 0)], memory)
    other: Any = FakeVideo(FRAMES, "other")
    with pytest.raises(ValueError, match="memory of video 'fake' was given for video 'other'"):
        next(engine.refine(other, [click(1, 0)], memory))
    with running(network) as second, pytest.raises(ValueError, match="memory of another engine"):
        whole(second, [click(1, 0)], memory)


@pytest.mark.parametrize("name", ["snapshot_every", "snapshot_bytes", "device_feature_bytes"])
def test_a_budget_below_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got -1; wanted"):
        MemoryBudget(**{name: -1})


def test_refinements_of_one_video_at_the_same_time_do_not_disturb_one_another(
    engine: WatchedEngine,
) -> None:
    old = [click(1, 0), click(2, 6)]
    news = [[*old, click(1, f)] for f in (5, 12)] + [[*old, box(2, f)] for f in (9, 14)]
    wanted = [whole(engine, new) for new in news]
    memory = VideoMemory(MemoryBudget(snapshot_every=2, snapshot_bytes=60_000))
    whole(engine, old, memory)
    found: dict[int, Told] = {}

    def run(i: int) -> None:
        found[i] = refine(engine, news[i], memory)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(news))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [found[i] for i in range(len(news))] == wanted


def test_a_refinement_that_is_closed_leaves_a_memory_that_can_be_used(
    engine: WatchedEngine,
) -> None:
    memory = VideoMemory(MemoryBudget(snapshot_every=2))
    old, new = [click(1, 5)], [click(1, 5), click(1, 9)]
    whole(engine, old, memory)
    wanted = whole(engine, new)
    video: Any = FakeVideo(FRAMES)
    frames = engine.refine(video, new, memory, before=old)
    for _ in range(3):
        next(frames)
    frames.close()

    found = refine(engine, new, memory, before=old)

    assert found and found == {place: wanted[place] for place in found}
