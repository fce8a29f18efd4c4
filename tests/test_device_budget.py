"""Slots that fit into a device's memory, from measurements of steps of few objects."""

import pytest
import torch
from small_network import small_network
from test_engine import SEED

from sam2model.device_budget import SHARE, slots_that_fit
from sam2model.semantics import LABELLING
from sam2model.stepper import Stepper

MB = 1 << 20


def step(slots: int) -> int:
    """100 MB, and 50 for each object."""
    return (100 + 50 * slots) * MB


@pytest.mark.parametrize(
    ("free_mb", "wanted", "fits"),
    [(10_000, 16, 16), (1_000, 16, 12), (500, 16, 5), (100, 16, 1), (0, 16, 1), (10_000, 1, 1)],
)
def test_as_many_slots_as_fit_and_no_more_than_wanted(free_mb: int, wanted: int, fits: int) -> None:
    slots = slots_that_fit(step, free_mb * MB, wanted)

    assert slots == fits
    assert slots == 1 or step(slots) <= SHARE * free_mb * MB
    assert slots == wanted or step(slots + 1) > SHARE * free_mb * MB


def test_a_step_that_has_no_room_at_all_leaves_one_slot() -> None:
    assert slots_that_fit(lambda slots: step(slots) if slots == 1 else 1 << 40, 500 * MB, 16) == 1


def test_a_rehearsal_is_a_whole_step_and_leaves_nothing_behind() -> None:
    stepper = Stepper(small_network(SEED), LABELLING, keep_all=False)
    seen: list[tuple[int, ...]] = []
    encode = stepper.network.memory_encoder.forward

    def noting(*args: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(args[1].shape))
        remembered: torch.Tensor = encode(*args)
        return remembered

    stepper.network.memory_encoder.forward = noting  # type: ignore[method-assign]
    with torch.inference_mode():
        stepper.rehearse(3)

    assert sum(shape[0] for shape in seen) == 3  # a processor takes one after the other
    assert stepper.bank.mask_pages_in_use == 0
