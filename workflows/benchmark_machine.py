"""The machine that a figure belongs to: hardware, versions, and its own rate of products."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from workflows.benchmark_config import BenchConfig, Row
from workflows.benchmark_timing import Turns

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices: enough work to fill the device
REPEATS = 10
PACKAGES = ("torch", "transformers", "pycocotools", "ray", "duckdb", "numpy", "av")


def machine(config: BenchConfig) -> Row:
    """Hardware, versions, threads and how busy the machine is at the moment."""
    facts: Row = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    if torch.device(config.device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(config.device)
        facts["cuda"] = str(torch.version.cuda)
    return facts | {name: _version(name) for name in PACKAGES}


def measure_products(config: BenchConfig) -> Iterator[Row]:
    """Square matrix products in each number format: the rate that a model can hope for."""
    for dtype in (torch.float32, torch.bfloat16):
        rate = products_per_s(torch.device(config.device), dtype)
        yield {"dtype": str(dtype).removeprefix("torch."), "TFLOP/s": round(rate / 1e12, 3)}


def products_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of some products; a multiplication and a sum are two."""
    side = SIDE[device.type]
    a, b = (torch.ones((side, side), device=device, dtype=dtype) for _ in range(2))
    turns = Turns(device)
    for _ in range(REPEATS):
        turns.time("product", torch.mm, a, b)
    return 2 * side**3 / turns.best_s("product")


def _processor() -> str:
    """Its name where Linux tells it, and what multiplies bf16."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    able = [n for n in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(n)]
    return " ".join([names[0] if names else platform.machine(), *able])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
