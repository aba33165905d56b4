"""What nvcc makes of the kernels: no spills, no stack, and registers that leave room for a second block."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cuda import shim

# The most a thread may have: 65,536 registers hold two blocks of 256 threads with 128 each, eight with 32. Of weight
# gradients in float32 shared memory holds one block only.
REGISTERS = {
    "gather_kernel": 128,
    "correlation_kernel": 128,
    "block_gather_kernel": 128,
    "block_correlation_kernel": 128,
    "block_correlation_kernel of float32": 192,
    "block_pack_kernel": 32,
    "add_kernel": 32,
    "lines_kernel": 32,
    "transpose_kernel": 32,
    "sgd_kernel": 40,
    "count_steps_kernel": 32,
    "adamw_kernel": 48,
    "dense_gradient_kernel": 128,
    "dense_gradient_kernel of float32": 192,
    "join_kernel": 40,
    "begin_kernel": 32,
    "bound_kernel": 32,
    "rank_kernel": 32,
    "narrow_kernel": 32,
    "write_kernel": 32,
    "count_tiles_kernel": 32,
    "scatter_kernel": 32,
    "begin_cuts_kernel": 32,
    "count_keys_kernel": 40,
    "find_digit_kernel": 32,
    "count_cut_kernel": 40,
    "sum_counts_kernel": 40,
    "list_smallest_kernel": 40,
    "mark_kernel": 40,
    "cut_rows_kernel": 40,
    "mark_rows_kernel": 40,
    "sum_tiles_kernel": 32,
    "add_tiles_kernel": 32,
    "pack_kernel": 40,
    "unpack_kernel": 40,
    "exchange_kernel": 32,
    "check_growth_kernel": 32,
    "list_by_input_kernel": 40,
    "carry_kernel": 40,
    "count_taps_kernel": 40,
    "list_taps_kernel": 40,
    "count_lines_kernel": 40,
    "add_counts_kernel": 32,
    "list_lines_kernel": 64,
    "find_strips_kernel": 40,
}
GRADIENTS = ("block_correlation_kernel", "dense_gradient_kernel")
ENTRY = re.compile(
    r"Compiling entry function '(?P<entry>\w+)' for 'sm_90'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
COMMAND = ("-std=c++17", "-O3", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "-Icsrc/include", "-Icsrc/cuda")


class Entry(NamedTuple):
    """One compiled kernel."""

    kernel: str
    stack: int
    spilled: int
    registers: int


def name(entry: str) -> str:
    kernel = re.search(r"[a-z]+(?:_tf32|_[a-z]+)*_kernel", entry)[0]
    return f"{kernel} of float32" if kernel in GRADIENTS and "Tf32" in entry else kernel


def entries(source: Path, folder: Path) -> list[Entry]:
    done = subprocess.run(
        ["nvcc", *COMMAND, str(source), "-o", str(folder / "out.cubin")],
        cwd=shim.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [
        Entry(
            name(found["entry"]),
            int(found["stack"]),
            int(found["stores"]) + int(found["loads"]),
            int(found["registers"]),
        )
        for found in ENTRY.finditer(done.stderr)
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
def test_kernels_stay_in_registers(tmp_path):
    found = [entry for source in sorted(shim.ROOT.glob("csrc/cuda/*.cu")) for entry in entries(source, tmp_path)]
    assert {entry.kernel for entry in found} == set(REGISTERS)
    for entry in found:
        assert (entry.stack, entry.spilled) == (0, 0), entry
        assert entry.registers <= REGISTERS[entry.kernel], entry


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
def test_instructions_assemble(tmp_path):
    """The kernels of the shim's own tests use every wrapper of ptx.cuh."""
    assert len(entries(shim.ROOT / "tests" / "cuda" / "planted.cu", tmp_path)) > 15


def cuobjdump() -> str | None:
    """CUDA's disassembler, or the one that Triton's wheel brings."""
    triton = importlib.util.find_spec("triton")
    homes = (triton and triton.submodule_search_locations) or []
    inside = os.pathsep.join(str(Path(home) / "backends" / "nvidia" / "bin") for home in homes)
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=inside)


# What tensor cores execute in each arithmetic.
TENSOR = {
    "nv_bfloat16": "HMMA.16816.F32.BF16",
    "half": "HMMA.16816.F32 ",
    "4Tf32": "HMMA.1688.F32.TF32",
    "9ThreeTf32": "HMMA.1688.F32.TF32",
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
@pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump on PATH or in Triton")
@pytest.mark.parametrize(
    ("source", "kernel", "count"),
    [
        ("block_gather", "gather_kernel", 12),  # four arithmetics, three widths
        ("block_weight_gradient", "correlation_kernel", 12),
        ("topk", "dense_gradient_kernel", 8),  # to count and to list
    ],
)
def test_products_run_on_tensor_cores(source, kernel, count, tmp_path):
    entries(shim.ROOT / f"csrc/cuda/{source}.cu", tmp_path)
    text = subprocess.run(
        [str(cuobjdump()), "-sass", str(tmp_path / "out.cubin")], capture_output=True, text=True, check=True
    ).stdout
    kernels = re.findall(r"Function : (\w+)\n(.*?)(?=Function :|$)", text, re.DOTALL)
    products = [(entry, code) for entry, code in kernels if kernel in entry]
    assert len(products) == count
    for entry, code in products:
        (instruction,) = (sass for kind, sass in TENSOR.items() if f"{kind}E" in entry)
        width = re.search(r"Li(\d)EE", entry)
        tiles = int(width[1]) if width else 4
        assert code.count(instruction) >= 4 * tiles, entry
        assert ("LDSM" in code) == ("Tf32" not in entry), entry
