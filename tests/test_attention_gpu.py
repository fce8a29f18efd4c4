"""Kernels for GPUs, as far as a processor shows: what they compute, that they compile, the choice.

Triton's interpreter and compiler run in processes of their own: both are chosen by the environment
before Triton is first imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sam2model import attention_gpu
from sam2model.attention import plain
from sam2model.attention_gpu import fastest

ROOT = Path(__file__).parents[1]

COMPARE = """
import json, sys, torch
from sam2model.attention import plain
from sam2model.attention_triton import Tiling, attention

def case(count, queries, keys, width, value_width, dtype, lengths, blocks):
    generator = torch.Generator().manual_seed(queries * keys)
    noise = lambda *shape: torch.randn(shape, generator=generator).to(getattr(torch, dtype))
    q = noise(count, queries, width)
    k, v = noise(count, keys, width), noise(count, keys, value_width)
    if blocks[0] < 0:  # not contiguous: a part of wider tensors
        q, k, v = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (q, k, v))
    tiling = Tiling(abs(blocks[0]), blocks[1], 4, 2)
    given = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    out, lse = attention(q, k, v, width**-0.5, tiling, given)
    worst = 0.0
    for row in range(count):
        n = keys if lengths is None else lengths[row]
        if n == 0:
            assert (out[row] == 0).all() and (lse[row] == -torch.inf).all()
            continue
        one = slice(row, row + 1)
        wanted_out, wanted_lse = plain(q[one], k[one, :n], v[one, :n], width**-0.5)
        for got, wanted in ((out[row], wanted_out[0]), (lse[row], wanted_lse[0])):
            worst = max(worst, float((got - wanted).abs().max() / wanted.abs().max()))
    return worst

print(json.dumps([case(*c) for c in json.loads(sys.argv[1])]))
"""


def in_process(code: str, argument: Any, **environment: str) -> Any:
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(argument)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_triton_kernel_computes_attention_and_its_log_sum_exp() -> None:
    # objects, queries, keys, channels, value channels, dtype, keys of each row, blocks
    in_fp32 = [
        [1, 16, 32, 16, 16, "float32", None, [16, 32]],
        [2, 70, 45, 32, 16, "float32", None, [32, 16]],  # nothing a multiple of its block
        [2, 33, 77, 24, 20, "float32", None, [16, 16]],  # nor the channels a power of two
        [1, 40, 100, 64, 64, "float32", None, [-16, 32]],  # strides of a larger tensor
        [4, 20, 50, 16, 16, "float32", [50, 17, 16, 0], [16, 16]],  # a length for each row
        [1, 32, 96, 256, 64, "float32", None, [32, 32]],  # SAM 2's own widths
    ]
    in_bf16 = [
        [1, 64, 130, 256, 64, "bfloat16", None, [32, 64]],
        [2, 33, 77, 24, 20, "bfloat16", [77, 5], [16, 16]],
    ]

    worst = in_process(COMPARE, in_fp32 + in_bf16, TRITON_INTERPRET="1")

    assert max(worst[: len(in_fp32)]) < 2e-6
    assert max(worst[len(in_fp32) :]) < 1e-2


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sam2model.attention_triton import TILINGS, _kernel

kernel = _kernel()
fixed = dict(width=256, value_width=64, wide=256, narrow=64, has_lengths=False, widens=False)
fixed |= dict(q_channel=1, k_channel=1, v_channel=1)
pointers = dict(q="*bf16", k="*bf16", v="*bf16", out="*fp32", lse="*fp32", lengths="*bf16")
pointers |= dict(scale="fp32")

def compiled(capability, tiling):
    constants = fixed | dict(query_block=tiling.queries, key_block=tiling.keys)
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32")
        for name in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name not in constants and name != "scale"
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options = dict(num_warps=tiling.warps, num_stages=tiling.stages)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return done.metadata.shared, "wgmma" in done.asm["ptx"], "cubin" in done.asm

which = json.loads(sys.argv[1])
print(json.dumps([compiled(capability, TILINGS[i]) for capability, i in which]))
"""
H100_SHARED, A100_SHARED, SMALL_SHARED = 227 << 10, 163 << 10, 99 << 10  # bytes a block may have


def test_the_triton_kernel_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    hopper, ampere, small = in_process(
        COMPILE, [(90, 1), (80, 1), (86, 5)], TRITON_CACHE_DIR=str(tmp_path)
    )

    assert hopper[0] <= H100_SHARED and ampere[0] <= A100_SHARED and small[0] <= SMALL_SHARED
    assert hopper[1], "on an H100 it runs on the matrix units of that generation"
    assert all(machine_code for *_, machine_code in (hopper, ampere, small))


@pytest.mark.slow
def test_every_tiling_compiles_and_fits_an_h100(tmp_path: Path) -> None:
    found = in_process(COMPILE, [(90, i) for i in range(6)], TRITON_CACHE_DIR=str(tmp_path))

    assert all(shared <= H100_SHARED and wgmma for shared, wgmma, _ in found)


# The choice.


def wrong(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = plain(q, k, v, scale)
    return 1.5 * out, lse


def wrong_sum(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = plain(q, k, v, scale)
    return out, lse + 1


def missing(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("no such operator\nand much more")


def slow_ones(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return plain(q, k, v, scale)


def swift_ones(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return plain(q, k, v, scale)


@pytest.fixture
def small_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_gpu, "PLACES", 64)
    monkeypatch.setattr(attention_gpu, "REMEMBERED", 128)


def clock(work: Any) -> float:
    return 1.0 if work.func is swift_ones else 2.0


@pytest.mark.usefixtures("small_problems")
def test_the_fastest_kernel_that_is_right_is_taken_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sam2model.attention_gpu")
    kernels: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "wrong": wrong,
        "wrong sum": wrong_sum,
        "missing": missing,
        "slow": slow_ones,
        "swift": swift_ones,
    }
    like = torch.randn(1, 8, 32)

    assert fastest(like, 16, kernels, plain, clock) is swift_ones
    assert fastest(like, 16, {"slow": slow_ones, "wrong": wrong}, plain, clock) is slow_ones
    assert (
        "attention by missing: left out: NotImplementedError: no such operator" in caplog.messages
    )
    said = [m for m in caplog.messages if "left out: wrong by" in m]
    assert any(m.startswith("attention by wrong sum") for m in said)
    assert "attention with values 16 wide in torch.float32: by swift" in caplog.messages


@pytest.mark.usefixtures("small_problems")
def test_without_a_kernel_that_works_attention_is_computed_as_defined() -> None:
    kernels = {"wrong": wrong, "missing": missing}

    assert fastest(torch.randn(1, 8, 32), 16, kernels, plain, clock) is plain


@pytest.mark.usefixtures("small_problems")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_of_the_dtype_is_not_taken_for_an_error(dtype: torch.dtype) -> None:
    def rounded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = plain(q, k, v, scale)
        return out.to(dtype), lse

    like = torch.randn(1, 8, 32).to(dtype)
    assert fastest(like, 16, {"rounded": rounded}, plain, clock) is rounded


def test_a_compiler_takes_the_chosen_kernel_whole() -> None:
    calls = []

    def noting(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        calls.append(torch.compiler.is_compiling())
        return plain(q, k, v, scale)

    kernel = attention_gpu.left_alone(noting)
    q, k, v = torch.randn(1, 5, 16), torch.randn(1, 7, 16), torch.randn(1, 7, 16)
    compiled = torch.compile(lambda q: kernel(q + 1, k, v, 0.5)[0] * 2, backend="eager")

    assert torch.equal(compiled(q), plain(q + 1, k, v, 0.5)[0] * 2)
    torch.compiler.reset()
    assert calls == [False]


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile:UserWarning")
def test_flexible_attention_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    def uncompiled() -> tuple[Any, Any]:
        return flex_attention, AuxRequest(lse=True)

    monkeypatch.setattr(attention_gpu, "_compiled_flex", uncompiled)
    q, k, v = torch.randn(2, 20, 32), torch.randn(2, 50, 32), torch.randn(2, 50, 16)
    for got, wanted in zip(attention_gpu._flex(q, k, v, 0.2), plain(q, k, v, 0.2), strict=True):
        assert (got - wanted).abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("value_width", [64, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_some_kernel_besides_the_definition_works_on_this_gpu(
    dtype: torch.dtype, value_width: int
) -> None:
    like = torch.randn(1, 8, 256, device="cuda", dtype=dtype)
    chosen = fastest(like, value_width, attention_gpu.candidates(), plain)

    assert chosen is not plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_triton_kernel_is_right_on_this_gpu(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from sam2model.attention_triton import TILINGS, attention

    problem = attention_gpu._problem(
        torch.empty(0, device="cuda", dtype=dtype), 3, 300, 777, 256, 64
    )
    ran = 0
    for tiling in TILINGS:
        try:
            got = attention(*problem, tiling)
        except Exception as error:  # a smaller card lacks the shared memory for the larger ones
            assert "shared memory" in str(error) or "OutOfResources" in type(error).__name__
            continue
        ran += 1
        for one, wanted in zip(got, plain(*problem), strict=True):
            off = float((one - wanted).abs().max() / wanted.abs().max())
            assert off < attention_gpu.TOLERANCE[dtype], str(tiling)
    assert ran
