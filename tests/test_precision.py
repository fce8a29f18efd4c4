"""The number format follows from the processor's instructions, never from the clock."""

from collections.abc import Iterator

import pytest
import torch

from sam2model.precision import compute_dtype

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    compute_dtype.cache_clear()
    yield
    compute_dtype.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "wanted", "got"),
    [
        ({"avx512_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.bfloat16, torch.float32),
        ({}, torch.bfloat16, torch.float32),
        ({"avx512_bf16": True}, torch.float16, torch.float32),
        ({"avx512_bf16": True}, torch.float32, torch.float32),
    ],
)
def test_a_processor_computes_in_what_it_can_multiply(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    wanted: torch.dtype,
    got: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    assert compute_dtype(CPU, wanted) == got


def test_a_gpu_computes_in_what_is_wanted() -> None:
    assert compute_dtype(torch.device("cuda"), torch.bfloat16) == torch.bfloat16
    assert compute_dtype(torch.device("cuda"), torch.float16) == torch.float16
