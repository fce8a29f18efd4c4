"""Work shared out among the processor's threads in large parts. Knows nothing of the work.

An operator that runs on several threads waits for the slowest of them at its end. Hundreds of
short operators in a row, on a machine that also decodes video, wait for most of their time; a
thread of its own for each part waits once, at the end of all.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Thread

import torch
from torch import Tensor

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = Lock()


def run_parts(parts: Sequence[Callable[[], None]]) -> None:
    """Run all parts on as many threads as PyTorch uses here, each one's operators on one thread.

    Gradients are off in a part; inference mode is the caller's. Raises what the first part that
    failed raised, when all have ended.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        for part in parts:
            part()
        return
    inference = torch.is_inference_mode_enabled()

    def run(part: Callable[[], None]) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            part()

    futures = [_pool(threads).submit(run, part) for part in parts]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    if errors:
        raise errors[0]


def in_blocks(
    work: Callable[[slice, slice], Tensor],
    like: Tensor,
    shape: Sequence[int],
    rows: int,
) -> Tensor:
    """work(all, all), a tensor like that one with this shape; on a processor a block at a time.

    work: of one of axis 0 and of some of axis 1, `rows` at most, neither of which sees the others.
    With gradients, in torch.compile and on other devices all is one block.
    """
    on_processor = like.device.type == "cpu"
    if not on_processor or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return work(slice(None), slice(None))
    out = like.new_empty(shape)

    def part(n: int, some: slice) -> Callable[[], None]:
        def run() -> None:
            out[n : n + 1, some] = work(slice(n, n + 1), some)

        return run

    starts = range(0, shape[1], rows)
    run_parts([part(n, slice(s, s + rows)) for n in range(shape[0]) for s in starts])
    return out


def _pool(threads: int) -> ThreadPoolExecutor:
    """The pool of that many threads, kept for the life of the process."""
    with _lock:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(
                threads, "operators", initializer=_one_operator_thread, initargs=(threads,)
            )
        return _pools[threads]


def _one_operator_thread(others: int) -> None:
    """Let this thread run its operators alone.

    The setting is a thread's own, but it is also what threads begin with that ask for none, so
    one that ends at once puts that back.
    """
    torch.get_num_threads()  # else the first operator would begin with the others' setting
    torch.set_num_threads(1)
    restore = Thread(target=torch.set_num_threads, args=(others,))
    restore.start()
    restore.join()
