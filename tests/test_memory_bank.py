"""What is remembered, for how long and why: the memory bank as a specification, without a model.

A frame's memory is filled with its frame index here, so that what a step reads can be read off;
indices that are read off stay below 256, since masks are kept in bf16.
"""

import random
from collections.abc import Sequence

import pytest
import torch
from small_network import small_config
from torch import Tensor

from sam2model.configuration import ConfigurationError
from sam2model.memory_bank import BankLimits, Direction, MemoryBank, PagePool, Readout

LAST_ROW = 6  # of the time table: a prompted frame, however long ago
PLACES, MEMORY, POINTER = 2, 3, 4


def bank(
    masks: int = 6,
    pointers: int = 15,
    conditioning: int = -1,
    *,
    one_history: bool = False,
    keep_all: bool = False,
    objects: Sequence[int] = (0,),
) -> MemoryBank:
    made = MemoryBank(
        BankLimits(masks, pointers, conditioning),
        (PLACES, MEMORY),
        POINTER,
        torch.device("cpu"),
        torch.float32,
        one_history=one_history,
        keep_all=keep_all,
    )
    for key in objects:
        made.add_object(key)
    return made


def write(
    to: MemoryBank,
    frame: int,
    *,
    prompt: bool = False,
    direction: Direction = 1,
    key: int = 0,
    value: float | None = None,
) -> None:
    """Remember a frame by its index, or by another number."""
    content = float(frame if value is None else value)
    to.write(
        [key],
        [frame],
        [direction],
        torch.full((1, PLACES, MEMORY), content),
        torch.full((1, POINTER), content),
        conditioning=prompt,
    )


def tracked(to: MemoryBank, frames: Sequence[int], direction: Direction = 1, key: int = 0) -> None:
    for frame in frames:
        write(to, frame, direction=direction, key=key)


def read(
    of: MemoryBank,
    frame: int,
    direction: Direction = 1,
    num_frames: int | None = None,
    key: int = 0,
) -> Readout:
    recall = of.recall(key, frame, direction, num_frames)
    return of.read([recall], [of.pointer_span(num_frames)])


def masks_read(
    of: MemoryBank, frame: int, direction: Direction = 1, key: int = 0
) -> dict[int, int]:
    """Which frames' masks a step reads, each with its row of the time table."""
    readout = read(of, frame, direction, key=key)
    frames = [int(v) for v in readout.masks[0, :, 0, 0]]
    rows: list[int] = readout.time_rows[0].tolist()
    assert len(set(frames)) == len(frames), "a frame is read once"
    return dict(zip(frames, rows, strict=True))


def pointers_read(
    of: MemoryBank,
    frame: int,
    direction: Direction = 1,
    num_frames: int | None = None,
    key: int = 0,
) -> list[int]:
    """Which frames' pointers a step reads."""
    readout = read(of, frame, direction, num_frames, key)
    return sorted(int(p[0]) for p in readout.pointers[0][readout.pointer_valid[0]])


def all_pages(of: MemoryBank) -> tuple[int, int]:
    return of.mask_pages_in_use, of._pointers.in_use


# The window of recent masks.


def test_a_step_reads_the_prompted_frame_and_the_last_six() -> None:
    memory = bank()
    write(memory, 0, prompt=True)
    tracked(memory, range(1, 20))

    assert masks_read(memory, 20) == {0: LAST_ROW, 14: 5, 15: 4, 16: 3, 17: 2, 18: 1, 19: 0}


def test_a_frame_that_is_missing_from_the_window_leaves_a_hole() -> None:
    memory = bank()
    write(memory, 0, prompt=True)
    tracked(memory, [1, 2, 3, 4, 7, 8])

    assert masks_read(memory, 9) == {0: LAST_ROW, 3: 5, 4: 4, 7: 1, 8: 0}  # not 1 and 2 instead


def test_the_first_frames_after_a_prompt_read_what_there_is() -> None:
    memory = bank()
    write(memory, 5, prompt=True)

    assert masks_read(memory, 6) == {5: LAST_ROW}
    tracked(memory, [6])
    assert masks_read(memory, 7) == {5: LAST_ROW, 6: 0}


def test_a_prompted_frame_inside_the_window_is_read_as_prompted_only() -> None:
    memory = bank()
    write(memory, 0, prompt=True)
    tracked(memory, range(1, 5))
    write(memory, 5, prompt=True)
    tracked(memory, range(6, 8))

    assert masks_read(memory, 8) == {0: LAST_ROW, 5: LAST_ROW, 2: 5, 3: 4, 4: 3, 6: 1, 7: 0}


def test_every_prompted_frame_is_read_from_before_and_after_for_ever() -> None:
    memory = bank()
    for frame in (0, 100, 250):
        write(memory, frame, prompt=True)
    tracked(memory, range(1, 200))

    read_now = masks_read(memory, 200)

    assert {f for f, row in read_now.items() if row == LAST_ROW} == {0, 100, 250}
    assert memory.conditioning_frames(0) == [0, 100, 250]
    assert memory.is_conditioning(0, 100) and not memory.is_conditioning(0, 101)


def test_a_smaller_model_has_a_shorter_window() -> None:
    memory = bank(masks=3)
    write(memory, 0, prompt=True)
    tracked(memory, range(1, 10))

    assert masks_read(memory, 10) == {0: 3, 7: 2, 8: 1, 9: 0}


# Pointers.


def test_pointers_reach_back_fifteen_frames_and_to_every_prompt_so_far() -> None:
    memory = bank()
    write(memory, 0, prompt=True)
    write(memory, 50, prompt=True)
    tracked(memory, range(1, 40))

    assert pointers_read(memory, 40) == [0, *range(25, 40)]  # not of the prompt to come
    assert pointers_read(memory, 40, direction=-1) == [50]  # backward: the prompt already passed


def test_a_pointers_offset_is_its_distance_over_the_span() -> None:
    memory = bank()
    write(memory, 0, prompt=True)
    tracked(memory, range(1, 5))

    readout = read(memory, 5)

    offsets = dict(
        zip(readout.pointers[0, :, 0].tolist(), readout.pointer_offsets[0].tolist(), strict=True)
    )
    assert offsets == pytest.approx({f: (5 - f) / 15 for f in range(5)})


def test_a_prompt_long_ago_has_an_offset_beyond_one() -> None:
    memory = bank()
    write(memory, 0, prompt=True)

    assert float(read(memory, 45).pointer_offsets[0, 0]) == 3.0


@pytest.mark.parametrize(("num_frames", "reached"), [(5, 4), (16, 15), (300, 15), (None, 15)])
def test_pointers_reach_no_further_back_than_a_short_clip_is_long(
    num_frames: int | None, reached: int
) -> None:
    memory = bank(keep_all=True)
    tracked(memory, range(30))
    write(memory, 100, prompt=True)

    assert pointers_read(memory, 30, num_frames=num_frames) == list(range(30 - reached, 30))
    offsets = read(memory, 30, num_frames=num_frames).pointer_offsets
    assert float(offsets.max()) == 1.0


def test_a_clip_of_one_frame_divides_by_nothing() -> None:
    memory = bank()
    write(memory, 0, prompt=True)

    assert read(memory, 0, num_frames=1).pointer_offsets.tolist() == [[0.0]]


def test_objects_with_unequal_numbers_of_pointers_share_a_step() -> None:
    memory = bank(objects=[1, 2])
    write(memory, 0, prompt=True, key=1)
    write(memory, 3, prompt=True, key=2)
    tracked(memory, [2, 3], key=1)
    tracked(memory, [4], key=2)
    recalls = [memory.recall(1, 3, 1, None), memory.recall(2, 5, 1, None)]
    assert [len(r.mask_pages) for r in recalls] == [2, 2]
    recalls[1].pointer_pages.clear()
    recalls[1].pointer_distances.clear()

    readout = memory.read(recalls, [16, 16])

    assert readout.pointer_valid.tolist() == [[True, True], [False, False]]
    assert readout.masks.shape == (2, 2, PLACES, MEMORY)
    assert readout.pointers.shape == (2, 2, POINTER)


def test_objects_that_read_unequal_numbers_of_masks_are_refused() -> None:
    memory = bank(objects=[1, 2])
    for key in (1, 2):
        write(memory, 0, prompt=True, key=key)
    tracked(memory, [1], key=1)
    recalls = [memory.recall(key, 2, 1, None) for key in (1, 2)]

    with pytest.raises(ValueError, match=r"equally many masks, 1 or more; got \[1, 2\]"):
        memory.read(recalls, [16, 16])


def test_an_object_that_was_never_prompted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 or more; got \[0\]"):
        read(bank(), 5)


# Directions.


def test_each_direction_has_a_history_of_its_own_and_shares_prompts() -> None:
    memory = bank()
    write(memory, 10, prompt=True)
    tracked(memory, range(11, 15), direction=1)
    tracked(memory, range(9, 5, -1), direction=-1)

    assert masks_read(memory, 15) == {10: LAST_ROW, 11: 3, 12: 2, 13: 1, 14: 0}
    assert masks_read(memory, 5, -1) == {10: LAST_ROW, 9: 3, 8: 2, 7: 1, 6: 0}
    assert pointers_read(memory, 5, -1) == [6, 7, 8, 9, 10]


def test_backward_alone_equals_backward_after_forward() -> None:
    alone, after = bank(), bank()
    for memory in (alone, after):
        write(memory, 10, prompt=True)
    tracked(after, range(11, 30))
    for memory in (alone, after):
        tracked(memory, range(9, 7, -1), direction=-1)

    assert masks_read(after, 7, -1) == masks_read(alone, 7, -1)
    assert pointers_read(after, 7, -1) == pointers_read(alone, 7, -1)


def test_with_one_history_a_backward_pass_reads_what_the_forward_pass_left() -> None:
    memory = bank(one_history=True, keep_all=True)
    write(memory, 4, prompt=True)
    tracked(memory, range(5, 9))

    assert masks_read(memory, 3, -1) == {4: LAST_ROW, 5: 1, 6: 2, 7: 3, 8: 4}


# The cap on prompted frames.


def with_prompts(cap: int, frames: Sequence[int] = (0, 10, 20, 30, 40)) -> MemoryBank:
    memory = bank(conditioning=cap)
    for frame in frames:
        write(memory, frame, prompt=True)
    return memory


@pytest.mark.parametrize(
    ("cap", "now", "kept"),
    [
        (2, 25, {20, 30}),  # the nearest before and the nearest after
        (2, 39, {30, 40}),
        (2, 30, {20, 30}),  # a prompt on this very frame is the one at or after
        (3, 26, {20, 30, 40}),  # then the nearest of the others
        (3, 24, {20, 30, 10}),
        (2, 100, {40, 30}),  # nothing after: the nearest of the others
        (2, -5, {0, 10}),
        (1, 25, {20}),
        (1, -5, {0}),
        (4, 25, {10, 20, 30, 40}),
        (5, 25, {0, 10, 20, 30, 40}),
        (-1, 25, {0, 10, 20, 30, 40}),
    ],
)
def test_over_the_cap_the_nearest_prompted_frames_are_read(
    cap: int, now: int, kept: set[int]
) -> None:
    read_now = masks_read(with_prompts(cap), now)

    assert {f for f, row in read_now.items() if row == LAST_ROW} == kept


def test_a_prompted_frame_over_the_cap_is_read_as_a_recent_one_when_it_is_recent() -> None:
    memory = with_prompts(2, (0, 10, 12, 20))
    tracked(memory, [11, 13])

    assert masks_read(memory, 14) == {12: LAST_ROW, 20: LAST_ROW, 10: 3, 11: 2, 13: 0}
    assert pointers_read(memory, 14) == [0, 10, 11, 12, 13]  # pointers of all prompts so far


# Pages.


@pytest.mark.parametrize("direction", [1, -1])
def test_pages_stay_constant_over_two_thousand_frames(direction: Direction) -> None:
    memory = bank()
    write(memory, 3000, prompt=True)
    seen = []
    for step in range(1, 2001):
        frame = 3000 + direction * step
        assert len(memory.recall(0, frame, direction, None).mask_pages) == 1 + min(step - 1, 6)
        write(memory, frame, direction=direction)
        seen.append(all_pages(memory))

    assert max(seen) == seen[14] == seen[-1] == (1 + 6, 1 + 15)


def test_nothing_that_a_later_step_reads_is_freed() -> None:
    forgetful, thorough = bank(), bank(keep_all=True)
    for memory in (forgetful, thorough):
        write(memory, 0, prompt=True)
    for frame in range(1, 60):
        assert masks_read(forgetful, frame) == masks_read(thorough, frame)
        assert pointers_read(forgetful, frame) == pointers_read(thorough, frame)
        for memory in (forgetful, thorough):
            write(memory, frame)


def test_a_bank_that_keeps_all_can_be_read_from_any_frame_again() -> None:
    memory = bank(keep_all=True)
    write(memory, 0, prompt=True)
    tracked(memory, range(1, 100))

    assert masks_read(memory, 50) == {0: LAST_ROW, 44: 5, 45: 4, 46: 3, 47: 2, 48: 1, 49: 0}
    assert all_pages(memory) == (100, 100)


@pytest.mark.parametrize("one_history", [True, False])
@pytest.mark.parametrize("keep_all", [True, False])
def test_a_thousand_objects_that_come_and_go_leave_no_page_behind(
    one_history: bool, keep_all: bool
) -> None:
    memory = bank(one_history=one_history, keep_all=keep_all, objects=[])
    chance = random.Random(0)
    living: list[int] = []
    for key in range(1000):
        memory.add_object(key)
        living.append(key)
        write(memory, 20, prompt=True, key=key)
        tracked(memory, range(21, 21 + chance.randrange(9)), key=key)
        tracked(memory, range(19, 19 - chance.randrange(9), -1), -1, key=key)
        write(memory, chance.randrange(12, 30), prompt=chance.random() < 0.5, key=key)
        while len(living) > 3:
            memory.remove_object(living.pop(chance.randrange(len(living))))
    for key in living:
        memory.remove_object(key)

    assert all_pages(memory) == (0, 0)
    assert memory._masks.pages.shape[0] < 200  # pages were used again


def test_removing_an_object_leaves_the_others_as_they_were() -> None:
    memory = bank(objects=[1, 2])
    for key, offset in ((1, 0), (2, 100)):
        write(memory, offset, prompt=True, key=key)
        tracked(memory, range(offset + 1, offset + 9), key=key)
    before = masks_read(memory, 109, key=2)

    memory.remove_object(1)
    memory.add_object(3)
    tracked(memory, range(500, 520), key=3)  # takes the pages that are free

    assert masks_read(memory, 109, key=2) == before


# Frames that are remembered anew.


@pytest.mark.parametrize("one_history", [True, False])
def test_a_prompt_replaces_whatever_was_remembered_of_its_frame(one_history: bool) -> None:
    memory = bank(one_history=one_history, keep_all=True)
    write(memory, 0, prompt=True)
    tracked(memory, range(1, 6))
    tracked(memory, range(6, 2, -1), -1)
    before = all_pages(memory)

    write(memory, 4, prompt=True, value=44)

    assert masks_read(memory, 5)[44] == LAST_ROW and 4 not in masks_read(memory, 5)
    assert masks_read(memory, 3, -1)[44] == LAST_ROW and 4 not in masks_read(memory, 3, -1)
    freed = 1 if one_history else 2
    assert all_pages(memory) == (before[0] - freed + 1, before[1] - freed + 1)


def test_a_prompt_given_anew_replaces_the_one_before() -> None:
    memory = bank()
    write(memory, 0, prompt=True)
    write(memory, 0, prompt=True, value=7)

    assert masks_read(memory, 1) == {7: LAST_ROW}
    assert all_pages(memory) == (1, 1)


def test_a_frame_tracked_again_replaces_what_its_direction_remembered() -> None:
    memory = bank()
    write(memory, 0, prompt=True)
    write(memory, 1)
    write(memory, 1, direction=-1, value=11)
    write(memory, 1, value=99)

    assert masks_read(memory, 2) == {0: LAST_ROW, 99: 0}
    assert masks_read(memory, 0, -1)[11] == 0
    assert all_pages(memory) == (3, 3)


@pytest.mark.parametrize(("masks", "pointers"), [(6, 15), (2, 5), (5, 2), (0, 3), (3, 0)])
def test_a_frame_tracked_again_after_a_while_frees_what_it_replaces(
    masks: int, pointers: int
) -> None:
    memory = bank(masks, pointers)
    write(memory, 0, prompt=True)
    tracked(memory, range(1, 8))

    for frame in (4, 7, 5, 7):
        write(memory, frame)

    assert all_pages(memory)[0] <= 1 + masks and all_pages(memory)[1] <= 1 + pointers
    memory.remove_object(0)
    assert all_pages(memory) == (0, 0)


def test_a_forgotten_frame_is_read_no_more_and_frees_its_pages() -> None:
    memory = bank()
    write(memory, 0, prompt=True)
    write(memory, 2, prompt=True)
    tracked(memory, [1, 3])

    for frame in (2, 3, 50):
        memory.forget_frame(0, frame)

    assert masks_read(memory, 4) == {0: LAST_ROW, 1: 2}
    assert all_pages(memory) == (2, 2)


# The pages themselves.


def test_a_pool_keeps_its_content_as_it_grows() -> None:
    pool = PagePool((2,), torch.float32, torch.device("cpu"))
    first = pool.take(10)
    pool.pages[first] = torch.arange(10.0)[:, None]

    more = pool.take(100)

    assert len({*first, *more}) == 110 == pool.in_use
    assert pool.pages[first, 0].tolist() == list(range(10))
    pool.give_back(first)
    assert pool.in_use == 100 and set(pool.take(10)) == set(first)


def test_masks_are_kept_in_bf16_and_pointers_in_the_models_dtype() -> None:
    memory = bank()
    write(memory, 0, prompt=True, value=1 + 2**-10)

    readout = read(memory, 1)

    assert readout.masks.dtype == torch.bfloat16 and float(readout.masks[0, 0, 0, 0]) == 1.0
    assert readout.pointers.dtype == torch.float32
    assert float(readout.pointers[0, 0, 0]) == 1 + 2**-10


def test_many_objects_are_written_in_one_call_each_to_its_own_frame_and_direction() -> None:
    memory = bank(objects=[1, 2, 3])

    def content(*shape: int) -> Tensor:
        return torch.tensor([10.0, 20.0, 30.0]).view(3, *[1] * len(shape)).expand(3, *shape)

    for key in (1, 2, 3):
        write(memory, 100, prompt=True, key=key)
    memory.write(
        [3, 1, 2],
        [101, 101, 99],
        [1, 1, -1],
        content(PLACES, MEMORY),
        content(POINTER),
        conditioning=False,
    )

    assert masks_read(memory, 102, key=3) == {100: LAST_ROW, 10: 0}
    assert masks_read(memory, 102, key=1) == {100: LAST_ROW, 20: 0}
    assert masks_read(memory, 98, -1, key=2) == {100: LAST_ROW, 30: 0}
    assert masks_read(memory, 102, key=2) == {100: LAST_ROW}


@pytest.mark.parametrize("cap", [0, -2])
def test_a_cap_that_would_leave_nothing_to_read_is_refused(cap: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"max_cond_frame_num: got {cap}; wanted 1"):
        small_config(max_cond_frame_num=cap)
