"""The flat optimiser steps: Triton interpreted and compiled ahead of time; Triton and CUDA on a GPU."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")

from fedsparse._native import extension  # noqa: E402
from fedsparse.kernels import flat_optimizer  # noqa: E402
from tests.kernels.sgd_steps import RULES, SIZES, Rule, assert_close, expected, start  # noqa: E402

# Triton reads TRITON_INTERPRET when it decorates a kernel, so the interpreter needs a process of its own.
INTERPRETED = """
import sys
import torch
from fedsparse.kernels.flat_optimizer import sgd_momentum_

torch.set_num_threads(1)
runs = torch.load(sys.argv[1])
for run in runs:
    for step, grad in enumerate(run["grads"]):
        sgd_momentum_([run["values"]], [grad], [run["momentum"]], **run["rule"], first_step=step == 0)
torch.save(runs, sys.argv[2])
"""


def test_interpreted_steps_equal_torch_sgd(tmp_path: Path) -> None:
    runs = []
    for seed, (n, rule) in enumerate(product(SIZES, RULES)):
        values, grads = start(n, seed)
        # NaN: the first step must not read the buffer, and without momentum nothing may touch it
        runs.append(
            {
                "values": values,
                "grads": grads,
                "momentum": torch.full_like(values, torch.nan),
                "rule": rule._asdict(),
            }
        )
    torch.save(runs, tmp_path / "before.pt")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, tmp_path / "before.pt", tmp_path / "after.pt"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = torch.load(tmp_path / "after.pt")
    assert len(after) == len(runs)
    for before, result in zip(runs, after, strict=True):
        values, momentum = expected(Rule(**before["rule"]), before["values"], before["grads"])
        assert_close(result["values"], values)
        assert_close(result["momentum"], momentum)


@pytest.mark.parametrize("rule", RULES)
def test_reference_equals_torch_sgd(rule: Rule) -> None:
    values, grads = start(257, seed=7)
    target, target_momentum = expected(rule, values, grads)
    current, momentum = values.double(), torch.full((257,), torch.nan, dtype=torch.float64)
    for step, grad in enumerate(grads):
        flat_optimizer.sgd_momentum_reference(current, grad.double(), momentum, **rule._asdict(), first_step=step == 0)
    torch.testing.assert_close(current, target, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(momentum, target_momentum, rtol=1e-14, atol=1e-14, equal_nan=True)


def native_sgd_momentum_(
    values: list[torch.Tensor],
    grads: list[torch.Tensor],
    momenta: list[torch.Tensor],
    *,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    dampening: float,
    nesterov: bool,
    first_step: bool,
) -> None:
    """The CUDA twin of `sgd_momentum_`, by way of the extension."""
    if not extension().built_with_cuda:
        pytest.skip("the extension was built without CUDA")
    status = extension().cuda_sgd_momentum(
        *([tensor.data_ptr() for tensor in each] for each in (values, grads, momenta)),
        [value.numel() for value in values],
        lr,
        momentum_factor,
        weight_decay,
        dampening,
        nesterov,
        first_step,
        torch.cuda.current_stream().cuda_stream,
    )
    assert status == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("step_", [flat_optimizer.sgd_momentum_, native_sgd_momentum_])
def test_steps_on_a_gpu_equal_torch_sgd(step_: Callable[..., None], rule: Rule, shift: int) -> None:
    for n in SIZES:
        values, grads = start(n, seed=n)
        target, target_momentum = expected(rule, values, grads)
        # slices of larger buffers: a shift of one float rules 16-byte accesses out; the rest must stay NaN
        buffers = [torch.full((n + 8,), torch.nan, device="cuda") for _ in range(3)]
        current, grad, momentum = (buffer[shift : shift + n] for buffer in buffers)
        current.copy_(values)
        for step, slope in enumerate(grads):
            grad.copy_(slope)
            step_([current], [grad], [momentum], **rule._asdict(), first_step=step == 0)
        assert_close(current, target)
        assert_close(momentum, target_momentum)
        for buffer in buffers:
            assert buffer[:shift].isnan().all()
            assert buffer[shift + n :].isnan().all()


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("nesterov", "first_step"), [(False, False), (True, False), (False, True)])
def test_compiles_ahead_of_time(
    capability: int, nesterov: bool, first_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = flat_optimizer._sgd_momentum_kernel
    constants = {
        "NESTEROV": nesterov,
        "HAS_MOMENTUM": True,
        "FIRST_STEP": first_step,
        "COUNT": 3,
        "BLOCK": flat_optimizer.BLOCK,
    }
    lists = ("all_values", "all_grads", "all_momenta", "sizes", "first")
    types: dict[str, Any] = dict.fromkeys(lists, ("i64",) * 3)
    signature = {name: "constexpr" if name in constants else types.get(name, "fp32") for name in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"enable_fp_fusion": flat_optimizer.FUSION},
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 0
    # values and grad are read, the buffer too after the first step; values and buffer are written
    loads = compiled.asm["ttir"].count("tt.load")
    assert (loads, compiled.asm["ttir"].count("tt.store")) == (2 if first_step else 3, 2)


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.zeros(4, dtype=torch.float64), "grad must be a contiguous float32 tensor"),
        (torch.zeros(2, 2), "grad must be a contiguous float32 tensor"),
        (torch.zeros(8)[::2], "grad must be a contiguous float32 tensor"),
        (torch.zeros(5), "grad has 5 entries on cpu, values has 4"),
    ],
)
def test_refuses_what_it_cannot_update(grad: torch.Tensor, message: str) -> None:
    values = torch.zeros(4)
    with pytest.raises(ValueError, match=message):
        flat_optimizer.sgd_momentum_([values], [grad], [torch.zeros(4)], **RULES[2]._asdict(), first_step=True)


def test_cost_counts_each_array_once() -> None:
    # values, grad, momentum read and values, momentum written: five floats a value
    assert flat_optimizer.cost(1000) == (7000, 5 * 4 * 1000)
