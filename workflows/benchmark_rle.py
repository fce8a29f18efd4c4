"""Run lengths beside pycocotools: one mask of 1080p on one core, the strings equal."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from sam2model.rle import BoolArray, area, encode_masks, string_to_counts
from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_timing import Turns

HEIGHT, WIDTH = 1080, 1920
REPEATS = 30


def measure_rle(config: BenchConfig) -> Iterator[Row]:
    """A row-major mask of bools, as a model makes it, to the string."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, mask in masks().items():
            row = _measure(name, mask)
            yield row | _on_gpu(mask, torch.device(config.device))
    finally:
        torch.set_num_threads(threads)


def masks() -> dict[str, BoolArray]:
    """An object, a crowd, and torn cloth: 10^3 runs are usual, 10^4 and more are the worst case.

    The busiest of 605 hand-drawn SA-V masks of 480×848 has 1,213 runs.
    """
    return {
        "one object": _blobs((5, 9), 1.2),
        "ten objects": _blobs((10, 18), 0.9),
        "torn": _blobs((34, 60), 0.5),
        "empty": np.zeros((HEIGHT, WIDTH), np.bool_),
    }


def _blobs(cells: tuple[int, int], threshold: float) -> BoolArray:
    """Smooth noise above a threshold: the more cells, the more and the smaller blobs."""
    coarse = torch.randn((1, 1, *cells), generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")
    mask: BoolArray = (fine[0, 0] > threshold).numpy()
    return mask


def _measure(name: str, mask: BoolArray) -> Row:
    from pycocotools import mask as coco

    pixels = mask.view(np.uint8)
    columns = np.asfortranarray(pixels)

    def theirs(pixels: npt.NDArray[np.uint8]) -> str:
        counts: bytes = coco.encode(pixels)["counts"]
        return counts.decode("ascii")

    sides: dict[str, Callable[[], str]] = {
        "ours": lambda: encode_masks(mask[None])[0],
        "pycocotools": lambda: theirs(np.asfortranarray(pixels)),
        "column-major": lambda: theirs(columns),
    }
    turns = Turns(torch.device("cpu"))
    for _ in range(REPEATS):
        strings = set()
        for side, call in sides.items():
            strings.add(call())  # a mask comes straight from what made it: it is in the cache
            turns.time(side, call)
        if len(strings) != 1:
            raise AssertionError(f"{name}: our run lengths differ from pycocotools'")
    ours_s = turns.best_s("ours")
    (string,) = strings
    return {
        "mask": name,
        "runs": len(string_to_counts(string)),
        "area_share": round(area(string) / mask.size, 3),
        "ours_ms": round(ours_s * 1e3, 3),
        "pycocotools_ms": round(turns.best_s("pycocotools") * 1e3, 3),
        "ratio": round(turns.best_s("pycocotools") / ours_s, 2),
        "ratio_without_its_copy": round(turns.best_s("column-major") / ours_s, 2),
    }


def _on_gpu(mask: BoolArray, device: torch.device) -> Row:
    """Milliseconds a mask from a GPU's memory to strings on the host, 64 masks at a time."""
    if device.type != "cuda":
        return {}
    masks, turns = torch.from_numpy(mask).to(device).expand(64, -1, -1).contiguous(), Turns(device)
    for _ in range(REPEATS):
        turns.time("device", encode_masks, masks)
    return {"device_ms": round(turns.best_s("device") * 1e3 / len(masks), 3)}
