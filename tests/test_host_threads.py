"""Parts run on threads of their own, and leave the process's settings as they were."""

import threading
from collections.abc import Iterator

import pytest
import torch

from sam2model.host_threads import in_blocks, run_parts


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_parts_run_on_several_threads_with_one_operator_thread_each() -> None:
    meeting = threading.Barrier(3, timeout=30)  # broken unless three run at the same time
    seen = []

    def part() -> None:
        meeting.wait()
        seen.append((threading.current_thread().name, torch.get_num_threads()))

    run_parts([part] * 6)

    assert {threads for _, threads in seen} == {1}
    assert len({name for name, _ in seen}) == 3


def test_threads_that_begin_later_have_all_operator_threads() -> None:
    run_parts([lambda: None] * 4)
    later: list[int] = []

    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()

    assert later == [3]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("inference", [False, True])
def test_a_part_is_in_the_callers_inference_mode_and_has_no_gradients(inference: bool) -> None:
    with torch.inference_mode(inference):
        out = torch.zeros(4)
        modes = []

        def part() -> None:
            modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            out.add_(1)

        run_parts([part, part])

    assert modes == [(inference, False)] * 2


def test_what_a_part_raises_reaches_the_caller_after_all_have_ended() -> None:
    ended = []

    def fails() -> None:
        raise ValueError("a part's own")

    with pytest.raises(ValueError, match="a part's own"):
        run_parts([fails, *[lambda: ended.append(1)] * 5])

    assert len(ended) == 5


def test_one_part_or_one_thread_needs_no_other() -> None:
    names = []

    def part() -> None:
        names.append(threading.current_thread())

    run_parts([part])
    torch.set_num_threads(1)
    run_parts([part, part])

    assert set(names) == {threading.current_thread()}


@pytest.mark.parametrize("shape", [(1, 7, 2), (3, 8, 2), (2, 3, 2)], ids=str)
def test_blocks_make_what_one_call_makes(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape)
    sizes = []

    def doubled(objects: slice, rows: slice) -> torch.Tensor:
        sizes.append(tuple(x[objects, rows].shape))
        return 2 * x[objects, rows]

    with torch.inference_mode():
        assert torch.equal(in_blocks(doubled, x, shape, 3), 2 * x)
    assert len(sizes) == shape[0] * -(-shape[1] // 3)
    assert max(sizes) == (1, 3, 2)


def test_with_gradients_all_is_one_block() -> None:
    x = torch.randn(2, 9, requires_grad=True)

    made = in_blocks(lambda objects, rows: x[objects, rows].square(), x, (2, 9), 3)

    made.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, 2 * x.detach())
