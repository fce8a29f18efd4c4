"""What an actor makes sure of before it takes a device, and how it tells that one is lost."""

import pytest
import torch

from workflows.label_engine import (
    DIRTY_DEVICE_WAIT_S,
    DirtyDevice,
    is_device_lost,
    is_out_of_memory,
    use_threads,
    wait_for_free_device,
)

GIB = 2**30


class Device:
    """Memory that others hold, less of it each time somebody waits."""

    def __init__(self, *held_gib: float) -> None:
        self.held_gib = list(held_gib)
        self.slept_s: list[float] = []

    def memory(self) -> tuple[int, int]:
        return int((80 - self.held_gib[0]) * GIB), 80 * GIB

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        if len(self.held_gib) > 1:
            self.held_gib.pop(0)


def test_a_free_device_is_taken_at_once() -> None:
    device = Device(0.6)
    wait_for_free_device(device.memory, sleep=device.sleep)
    assert device.slept_s == []


def test_what_a_killed_process_held_is_waited_for() -> None:
    device = Device(40.0, 40.0, 1.0)
    wait_for_free_device(device.memory, sleep=device.sleep)
    assert len(device.slept_s) == 2


def test_a_device_that_somebody_else_keeps_is_refused_after_a_while() -> None:
    device = Device(40.0)
    with pytest.raises(DirtyDevice, match=r"40.0 of 80.0 GiB are held by others after 60 s") as got:
        wait_for_free_device(device.memory, sleep=device.sleep)
    assert sum(device.slept_s) == pytest.approx(DIRTY_DEVICE_WAIT_S)
    assert "compute.gpus_per_actor below 1" in str(got.value)


@pytest.mark.parametrize(("cpus", "threads"), [(3.0, 3), (0.5, 1), (2.9, 2)])
def test_threads_are_the_processors_of_the_actor(cpus: float, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        use_threads(cpus)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_running_out_of_memory_does_not_cost_the_device() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_device_lost(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_device_lost(torch.AcceleratorError("CUDA error: an illegal memory access"))
    assert not is_device_lost(RuntimeError("shapes do not fit"))
