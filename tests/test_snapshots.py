"""Which snapshots are offered for which prompts, and which leave when there are too many."""

import pytest
import torch

from sam2model.memory_bank import Direction
from sam2model.prompt_effect import Said, history, said
from sam2model.prompts import Prompt
from sam2model.snapshots import ParkedPage, Snapshot, SnapshotStore, StandingAnswer
from sam2model.transfers import Parked, park

SNAPSHOT_BYTES = 100


def click(frame: int, x: float = 1.0) -> Prompt:
    return Prompt(1, frame, ((x, 1.0),), (True,))


def box(frame: int) -> Prompt:
    return Prompt(1, frame, box_xyxy_px=(0.0, 0.0, 2.0, 2.0))


def told(*prompts: Prompt) -> dict[int, Said]:
    return history({p.frame_index: p for p in prompts})


def parked(nbytes: int = SNAPSHOT_BYTES) -> Parked:
    return park(torch.zeros(nbytes, dtype=torch.uint8))


def store(*frames: int, of: dict[int, Said], direction: Direction = 1) -> SnapshotStore:
    made = SnapshotStore(10_000, every=10)
    for frame in frames:
        made.put(1, direction, Snapshot(frame, of, {}, (), (), parked()))
    return made


def nearest(
    of: SnapshotStore, now: dict[int, Said], before: int | None, direction: Direction = 1
) -> int | None:
    found = of.nearest(1, direction, now, -1, before)
    return None if found is None else found.frame_index


def test_the_last_snapshot_before_a_frame_is_offered() -> None:
    prompts = told(click(0))
    of = store(10, 20, 30, of=prompts)

    assert [nearest(of, prompts, before) for before in (10, 11, 20, 30, 99)] == [
        *(None, 10, 10, 20, 30)
    ]
    assert nearest(of, prompts, None) == 30
    assert of.nearest(2, 1, prompts, -1, None) is None


def test_a_backward_pass_is_offered_the_last_snapshot_after_a_frame() -> None:
    prompts = told(click(40))
    of = store(30, 20, 10, of=prompts, direction=-1)

    assert [nearest(of, prompts, before, -1) for before in (35, 29, 20, 5)] == [None, 30, 30, 10]
    assert nearest(of, told(click(40), click(50)), 5, -1) is None  # it reads all prompts


@pytest.mark.parametrize(
    ("now", "offered"),
    [
        (told(click(0), click(25)), 20),
        (told(click(0), click(20)), 10),
        (told(click(0), box(25)), None),  # read ahead of all
        (told(click(0, 2.0)), None),
        (told(click(5)), None),
    ],
    ids=["later click", "click on its frame", "later box", "other first click", "later begin"],
)
def test_snapshots_are_offered_only_where_other_prompts_lead_to_the_same(
    now: dict[int, Said], offered: int | None
) -> None:
    assert nearest(store(10, 20, 30, of=told(click(0))), now, None) == offered


def test_a_prompt_that_is_taken_back_makes_the_snapshots_of_before_good_again() -> None:
    of = store(10, 20, of=told(click(0)))
    of.put(1, 1, Snapshot(30, told(click(0), click(25)), {}, (), (), parked()))

    assert nearest(of, told(click(0), click(25)), None) == 30
    assert nearest(of, told(click(0)), None) == 20


def test_a_snapshot_replaces_the_one_of_its_frame() -> None:
    of = store(10, of=told(click(0)))
    of.put(1, 1, Snapshot(10, told(click(0, 2.0)), {}, (), (), parked(50)))

    assert len(of) == 1 and of.nbytes == 50
    assert nearest(of, told(click(0, 2.0)), None) == 10


def test_what_several_snapshots_share_counts_once() -> None:
    prompts = told(click(0), click(5))
    page = ParkedPage(parked(1000))
    of = SnapshotStore(10_000, every=10)
    for frame in (10, 20):
        of.put(1, 1, Snapshot(frame, prompts, {5: page}, (), (), parked()))
    assert of.nbytes == 1000 + 2 * SNAPSHOT_BYTES

    of.put(1, 1, Snapshot(10, prompts, {}, (), (), parked()))
    assert of.nbytes == 1000 + 2 * SNAPSHOT_BYTES
    of.put(1, 1, Snapshot(20, prompts, {}, (), (), parked()))
    assert of.nbytes == 2 * SNAPSHOT_BYTES


def test_snapshots_thin_out_evenly_and_those_before_a_prompt_stay() -> None:
    prompts = told(click(0), click(44))
    of = SnapshotStore(6 * SNAPSHOT_BYTES, every=10)
    for frame in [*range(0, 101, 10), 43]:
        of.put(1, 1, Snapshot(frame, prompts, {}, (), (), parked()))

    left = sorted(of._passes[1, 1])
    assert len(left) == 6 and 43 in left
    assert max(b - a for a, b in zip(left, left[1:], strict=False)) <= 40
    assert of.nbytes == 6 * SNAPSHOT_BYTES


def test_without_any_room_nothing_is_kept() -> None:
    of = SnapshotStore(10, every=10)
    of.put(1, 1, Snapshot(10, told(click(0)), {}, (), (), parked()))
    of.put_answer(box(5), StandingAnswer(ParkedPage(parked()), parked()))

    assert len(of) == 0 and of.nbytes == 0 and of.answer(box(5)) is None


def test_answers_are_found_by_what_their_prompt_says() -> None:
    of = SnapshotStore(1000, every=10)
    answer = StandingAnswer(ParkedPage(parked()), parked())
    of.put_answer(box(5), answer)

    assert of.answer(box(5)) is answer
    assert of.answer(box(6)) is None and of.answer(click(5)) is None
    assert said(box(5)) == said(Prompt(7, 5, box_xyxy_px=(0.0, 0.0, 2.0, 2.0)))
    of.clear()
    assert of.nbytes == 0 and of.answer(box(5)) is None
