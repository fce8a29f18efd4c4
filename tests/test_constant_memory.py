"""Memory that does not grow with a video's length: counted in fast tests, weighed in a slow one."""

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_network import random_pixels, small_network
from test_engine import PROCESSOR, SEED, FakeVideo, Idle, click, label, wait_until
from torch import Tensor

from sam2model.engine import Engine, EngineOptions
from sam2model.refinement_memory import MemoryBudget, VideoMemory
from sam2model.semantics import LABELLING
from sam2model.stepper import Ask, ModelPrompt, Stepper

ROOT = Path(__file__).parents[1]


def wait_for_rest(engine: Engine) -> None:
    """Until nobody reads and all that may be done ahead is done."""
    schedule, ahead = engine.schedule, engine.options.frames_ahead

    def rests() -> bool:
        with engine._changed:
            is_ahead = all(len(job.decoded) == ahead for job in schedule.jobs)
            return is_ahead and not schedule.has_work() and not schedule.unwritten

    wait_until(rests)
    time.sleep(0.2)  # for what was last taken from a queue


def tensors_alive(engine: Engine) -> int:
    # Not while its threads work: a tuple that somebody else holds cannot grow to its size.
    wait_for_rest(engine)
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_as_many_tensors_and_pages_are_held_after_two_thousand_frames_as_after_two_hundred() -> (
    None
):
    engine = Engine(small_network(SEED, Idle), PROCESSOR, LABELLING, EngineOptions())
    bank = engine.stepper.bank
    budget = MemoryBudget(20_000, 20_000, 20_000, snapshot_every=8)
    memory = VideoMemory(budget)
    prompts = [click(o, 0, (5.0, 5.0)) for o in (1, 2)]
    held: list[tuple[int, int, int, int, int]] = []
    video: Any = FakeVideo(2100, side=16)
    for count, _ in enumerate(label(engine, video, prompts, memory=memory)):
        if count in (200, 2000):
            pages = bank.mask_pages_in_use, bank._pointers.in_use, len(bank._masks.pages)
            kept = memory.features.nbytes[0] + memory.features.nbytes[1] + memory.snapshots.nbytes
            held.append((*pages, tensors_alive(engine), kept))
    engine.close()

    early, late = held
    assert late[:3] == early[:3]
    # How far ahead the engine happens to be differs: a frame ahead holds some ten tensors.
    ahead = engine.options.frames_ahead + engine.options.frame_batch + engine.options.results_ahead
    assert late[3] <= early[3] + 12 * ahead
    assert late[4] <= 60_000


def test_only_prompted_frames_are_remembered_for_ever_and_a_step_reads_no_more_than_the_cap() -> (
    None
):
    cap = 3
    network = small_network(SEED, max_cond_frame_num=cap)
    stepper = Stepper(network, LABELLING, keep_all=False)
    bank = stepper.bank
    bank.add_object(1)
    read = []
    with torch.inference_mode():
        image = network.encode_images(random_pixels(1))
        for frame in range(120):
            prompt = ModelPrompt(torch.full((1, 2), 20.0), torch.ones(1, dtype=torch.int64))
            if frame % 10 == 0:
                stepper.prompt(image, [Ask(1, 0, frame, prompt=prompt)])
            else:
                read.append(len(bank.recall(1, frame, 1, None).mask_pages))
                stepper.track(image, [Ask(1, 0, frame)])
            prompted = frame // 10 + 1
            assert bank.mask_pages_in_use <= prompted + 6
            assert bank._pointers.in_use <= prompted + 15

    assert max(read) <= cap + 6


def test_forgetting_what_no_step_reads_changes_no_bit() -> None:
    network = small_network(SEED)
    steppers = [Stepper(network, LABELLING, keep_all=keep_all) for keep_all in (False, True)]
    prompt = ModelPrompt(torch.full((1, 2), 20.0), torch.ones(1, dtype=torch.int64))
    with torch.inference_mode():
        frames = [network.encode_images(random_pixels(1, seed)) for seed in range(40)]
        for bounded, unbounded in [steppers]:
            for stepper in steppers:
                stepper.bank.add_object(1)
                stepper.bank.add_object(2)
            for index in [*range(15, 40), *range(14, -1, -1)]:
                direction = 1 if index >= 15 else -1
                asks = [Ask(o, 0, index, direction) for o in (1, 2)]  # type: ignore[arg-type]
                if index == 15:
                    asks = [Ask(o, 0, 15, prompt=prompt) for o in (1, 2)]
                elif index == 25:
                    asks[0] = Ask(1, 0, 25, prompt=prompt)
                outputs = []
                for stepper in (bounded, unbounded):
                    tracked = [a for a in asks if a.prompt is None]
                    given = [a for a in asks if a.prompt is not None]
                    run = stepper.prompt if index == 15 else stepper.correct
                    parts = [run(frames[index], given)] if given else []
                    parts += [stepper.track(frames[index], tracked)] if tracked else []
                    outputs.append(parts)
                for a, b in zip(*outputs, strict=True):
                    assert torch.equal(a.logits, b.logits) and torch.equal(a.pointer, b.pointer)
    assert steppers[0].bank.mask_pages_in_use < 40 < steppers[1].bank.mask_pages_in_use


WEIGH = """
import collections, json, resource, sys
from test_engine import PROCESSOR, SEED, FakeVideo, click, label
from small_network import small_network
from sam2model.engine import Engine, EngineOptions
from sam2model.refinement_memory import MemoryBudget, VideoMemory

num_frames, keeps = int(sys.argv[1]), sys.argv[2] == "keeps"
engine = Engine(small_network(SEED), PROCESSOR, options=EngineOptions(frame_batch=8))
memory = VideoMemory(MemoryBudget(1 << 20, 1 << 20, 1 << 20)) if keeps else None
prompts = [click(1, num_frames // 2, (5.0, 5.0)), click(2, 0, (9.0, 9.0))]
video = FakeVideo(num_frames, side=16)
video.pictures = collections.deque(maxlen=64)  # this one's own notes may not grow either
told = 0
for frame in label(engine, video, prompts, memory=memory):
    told += len(frame.masks)
engine.close()
print(json.dumps([told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def peak_bytes(num_frames: int, keeps: str) -> int:
    """Peak resident memory of a process that labels so many frames."""
    ran = subprocess.run(
        [sys.executable, "-c", WEIGH, str(num_frames), keeps],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        check=True,
    )
    told, peak = json.loads(ran.stdout.splitlines()[-1])
    assert told == 2 * num_frames
    return int(peak)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("keeps", ["keeps", "keeps nothing"])
def test_a_hundred_times_as_many_frames_take_the_same_memory(keeps: str) -> None:
    peaks = {count: peak_bytes(count, keeps) for count in (200, 2_000, 20_000)}
    print(peaks)

    assert max(peaks.values()) <= 1.05 * min(peaks.values()), peaks
