"""Between device and host where both are the same, and how far a thread may run ahead."""

import torch

from sam2model.transfers import Pace, park, send


class Marked:
    """Notes who waits for it."""

    def __init__(self, number: int, waited_for: list[int]) -> None:
        self._number, self._waited_for = number, waited_for

    def synchronize(self) -> None:
        self._waited_for.append(self._number)


def test_a_thread_waits_for_the_work_before_the_last_two_and_for_no_other() -> None:
    waited_for: list[int] = []
    numbers = iter(range(100))
    pace = Pace(lambda: Marked(next(numbers), waited_for), ahead=2)
    seen = []
    for _ in range(5):
        pace.launched()
        seen.append(list(waited_for))

    assert seen == [[], [], [0], [0, 1], [0, 1, 2]]


def test_tensors_of_a_processor_are_there_at_once() -> None:
    a, b = torch.ones(3), torch.zeros(2, dtype=torch.bfloat16)
    parked = park(a, b)

    assert parked.nbytes == 12 + 4
    for tensors in (parked.wait(), parked.on(torch.device("cpu"))):
        assert all(torch.equal(x, y) for x, y in zip(tensors, (a, b), strict=True))
    assert send(a, torch.device("cpu")).arrived() is a
