"""What Triton and ptxas make of the kernels for sm_80 and sm_90: no spills, tensor cores in use, few registers."""

from dataclasses import dataclass, field
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")

from fedsparse.kernels import (  # noqa: E402
    activation_rows,
    batch_norm,
    batch_norm_backward,
    channels,
    element_product,
    element_sampled,
    flat_optimizer,
    relu_bitmask,
    tile_product,
    tile_sampled,
)
from fedsparse.kernels.tuning import keeps_sums_in_lanes  # noqa: E402
from tests.kernels.ahead_of_time import compile_kernel, cuobjdump  # noqa: E402

WINDOW = {"KH": 3, "KW": 3, "SH": 1, "SW": 1, "DH": 1, "DW": 1, "TRANSPOSED": False, "BOUNDS": True, "FLAT": False}
POINT = WINDOW | {"KH": 1, "KW": 1, "BOUNDS": False, "FLAT": True}
STRIDED_BACK = WINDOW | {"SH": 2, "SW": 2, "TRANSPOSED": True}
NARROW, FULL = ("bf16", "tf32"), ("fp32", "tf32x3")
NUMBERS = (
    "values", "source", "result", "bias", "gradient", "slope", "x", "y", "weight", "partial", "means", "rstds",
    "running_mean", "running_var", "held", "rounded", "other", "gated", "grad", "grad_weight", "grad_bias",
    "average", "square",
)  # fmt: skip
SCALARS = ("eps", "momentum", "unbiased", "shrink", "beta1", "beta2", "fresh1", "fresh2", "log1", "log2", "lr")


@dataclass(frozen=True)
class Build:
    """One kernel, compiled as a launch would compile it.

    Attributes:
        kernel: what is compiled.
        constants: its constexpr arguments, and strides of 1.
        registers: the most a thread may have with Triton 3.7 and 3.9; 3.6 takes up to 230 for products, unspilled.
        instructions: opcodes that must be there.
        absent: opcodes that must not, from Triton 3.7 on.
        dtype: of the numbers.
        others: types of further arguments.
        warps: of a program.
        divisible: integers that are multiples of 16.
    """

    kernel: Any
    constants: dict[str, Any]
    registers: int
    instructions: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    dtype: str = "fp32"
    others: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    warps: int = 4
    divisible: tuple[str, ...] = ()


def product(rows: int, block: int, kind: tuple[str, str], registers: int, *instructions: str, window=WINDOW) -> Build:
    dtype, precision = kind
    own = {"HAS_BIAS": True, "SPLITS": 1, "PRECISION": precision, "ROWS": rows, "BLOCK_P": block}
    lanes = {"source_pixel": 1, "target_channel" if window["FLAT"] else "target_pixel": 1}
    constants = window | own | lanes | {"BLOCK_K": tile_product.BLOCK_K}
    return Build(tile_product._tile_product_kernel, constants, registers, instructions, dtype=dtype)


def sampled(rows: int, block: int, kind: tuple[str, str], registers: int, *instructions: str, warps: int = 4) -> Build:
    dtype, precision = kind
    own = {"SPLITS": 4, "PRECISION": precision, "ROWS": rows, "BLOCK_K": block, "BLOCK_P": tile_sampled.BLOCK_P}
    constants = WINDOW | own | {"source_pixel": 1, "slope_pixel": 1}
    return Build(tile_sampled._tile_sampled_kernel, constants, registers, instructions, dtype=dtype, warps=warps)


def norm(kernel: Any, registers: int, dtype: str = "fp32", *, odd: bool = False, **constants: Any) -> Build:
    """Of a channel in parts; sizes are odd or, as of most pictures, multiples of 16, so that reads run ahead."""
    warps = channels.MOST // (32 * channels.THREAD)
    constants, sizes = {"PARTS": 4, "BLOCK": channels.MOST, **constants}, () if odd else ("channels", "size", "count")
    instructions = ("FFMA",) if odd else ("FFMA", "LDGSTS")
    return Build(
        kernel,
        constants,
        registers,
        instructions,
        dtype=dtype,
        others={"bits": "*i32", "batches": "*i64"},
        warps=warps,
        divisible=sizes,
    )


ELEMENT = WINDOW | {"HAS_BIAS": True, "BLOCK_K": element_product.BLOCK_K, "BLOCK_P": 128}
ELEMENT_SAMPLED = WINDOW | {"SPLITS": 4, "BLOCK_K": 8, "BLOCK_P": element_sampled.BLOCK_P}
ADAMW = {"COUNT": flat_optimizer.MOST, "BLOCK": flat_optimizer.BLOCK}
LISTS = ("all_values", "all_grads", "all_averages", "all_squares", "sizes", "first", "steps")
ADDRESSES = dict.fromkeys(LISTS, ("i64",) * flat_optimizer.MOST)
NUMBERED = ADDRESSES | {"steps": ("fp32",) * flat_optimizer.MOST}
NORM = {"WEIGHT": True, "BIAS": True, "RELU": True, "SUM": False, "NORMAL": False}
SUM = NORM | {"SUM": True}
ALONE = {"PARTS": 1, "WIDTH": 1, "partial": None}  # one program for a channel
RELU = {"BLOCK": relu_bitmask.BLOCK}
BITS = {"bits": "*i32", "starts": "*i32"}
ROWS = {"thresholds": "*i32", "lasts": "*i32", "counts": "*i32"}
# By name and compute capability.
BUILDS = {
    ("product bf16 16", 90): product(16, 128, NARROW, 96, "HMMA"),
    ("product bf16 32", 80): product(32, 128, NARROW, 128, "HMMA"),
    ("product bf16 64", 90): product(64, 64, NARROW, 128, "HGMMA"),
    ("product bf16 linear", 80): product(32, 128, NARROW, 128, "HMMA", window=POINT),
    ("product fp32 16", 90): product(16, 128, FULL, 144, "HMMA", "LDGSTS"),
    ("product fp32 64", 80): product(64, 64, FULL, 192, "HMMA", "LDGSTS"),
    ("product fp32 64", 90): product(64, 64, FULL, 168, "HGMMA", "LDGSTS"),
    ("product fp32 strided back", 80): product(16, 128, FULL, 144, "HMMA", "LDGSTS", window=STRIDED_BACK),
    ("sampled bf16 16", 80): sampled(16, 32, NARROW, 96, "HMMA"),
    ("sampled bf16 64", 90): sampled(64, 64, NARROW, 128, "HGMMA", warps=8),
    ("sampled fp32 16", 90): sampled(16, 32, FULL, 112, "HMMA", "LDGSTS"),
    ("sampled fp32 64", 80): sampled(64, 32, FULL, 224, "HMMA", "LDGSTS"),
    ("element product", 90): Build(element_product._element_product_kernel, ELEMENT, 64, ("FFMA",), ("SHFL", "BAR")),
    ("element sampled", 80): Build(element_sampled._element_sampled_kernel, ELEMENT_SAMPLED, 64, ("FFMA",)),
    ("short row cuts", 80): Build(
        activation_rows._short_cut_kernel, {"WIDTH": activation_rows.SHORT}, 128, others=ROWS, warps=8
    ),
    ("row cuts", 90): Build(activation_rows._cut_kernel, {"CHUNK": activation_rows.CHUNK}, 128, others=ROWS),
    ("row marks", 80): Build(
        activation_rows._mark_kernel,
        {"EVERYTHING": False, "GROUP": activation_rows.GROUP},
        64,
        others=ROWS | BITS,
        warps=2,
    ),
    ("row values", 90): Build(
        activation_rows._pack_kernel, {"GROUP": activation_rows.GROUP}, 64, others=BITS | {"values": "*bf16"}, warps=2
    ),
    ("rows", 80): Build(
        activation_rows._unpack_kernel, {"GROUP": activation_rows.GROUP}, 64, others=BITS | {"values": "*bf16"}, warps=2
    ),
    ("relu", 80): Build(relu_bitmask._relu_kernel, RELU, 80, others=BITS),
    ("gate", 90): Build(relu_bitmask._gate_kernel, RELU, 80, others=BITS),
    ("moments", 90): norm(batch_norm._moments_kernel, 64),
    ("moments, odd", 90): norm(batch_norm._moments_kernel, 96, odd=True),
    ("merged statistics", 90): norm(batch_norm._statistics_kernel, 64, odd=True, TRACKS=True, COUNTS=True, WIDTH=4),
    ("statistics", 80): norm(batch_norm._statistics_kernel, 64, **ALONE, TRACKS=True, COUNTS=True),
    ("norm", 80): norm(batch_norm._norm_kernel, 64, **NORM, ROUND=True),
    ("norm of a sum", 90): norm(batch_norm._norm_kernel, 64, **SUM, ROUND=False, rounded=None),
    ("slopes", 80): norm(batch_norm_backward._slopes_kernel, 64, **NORM),
    ("gradients of parts", 90): norm(batch_norm_backward._grad_kernel, 64, **NORM, WIDTH=4),
    ("gradients", 80): norm(batch_norm_backward._grad_kernel, 64, "bf16", **NORM, **ALONE),
    ("gradients", 90): norm(batch_norm_backward._grad_kernel, 64, **NORM, **ALONE),
    ("gradients of a sum", 90): norm(batch_norm_backward._grad_kernel, 96, "bf16", **SUM, **ALONE),
    ("gradients, odd", 90): norm(batch_norm_backward._grad_kernel, 128, odd=True, **NORM, **ALONE),  # all there are
    ("adamw", 80): Build(flat_optimizer._adamw_kernel, ADAMW | {"COUNTED_THERE": False}, 80, others=NUMBERED),
    ("adamw", 90): Build(flat_optimizer._adamw_kernel, ADAMW | {"COUNTED_THERE": True}, 80, others=ADDRESSES),
}


@pytest.mark.slow
@pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump, neither in Triton's wheel nor on PATH")
@pytest.mark.parametrize(("name", "capability"), BUILDS)
def test_kernels_stay_in_registers(name, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    build = BUILDS[name, capability]
    types = dict.fromkeys(NUMBERS, f"*{build.dtype}") | dict.fromkeys(SCALARS, "fp32")
    lists = {"start": "*i32", "entry": "*i32", "split_stride": "i64"}
    binary = compile_kernel(
        build.kernel,
        types | lists | build.others,
        build.constants,
        capability,
        tmp_path,
        build.divisible,
        num_warps=build.warps,
    )
    assert binary.local == 0
    assert [opcode for opcode in build.instructions if binary.count(opcode) == 0] == []
    if keeps_sums_in_lanes():
        assert binary.registers <= build.registers
        assert [opcode for opcode in build.absent if binary.count(opcode) > 0] == []
