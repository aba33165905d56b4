"""Kernels compiled for GPUs that are not there: what ptxas makes of them, read off the binary."""

import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.autotuner import Autotuner

from fedsparse.kernels.tuning import FUSION

# As a launch specialises a pointer that torch allocated.
DIVISIBLE = [["tt.divisibility", 16]]


class Binary(NamedTuple):
    """One compiled kernel.

    Attributes:
        registers: of a thread.
        local: bytes of local memory a thread has, where spilled registers go; stack frame included.
        sass: its machine code, as text.
    """

    registers: int
    local: int
    sass: str

    def count(self, opcode: str) -> int:
        """Instructions of that name, whatever their modifiers."""
        return len(re.findall(rf"\s{opcode}[.\s]", self.sass))


def cuobjdump() -> str | None:
    """The tool of Triton's wheel, else of a CUDA toolkit."""
    carried = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(carried) if carried.exists() else shutil.which("cuobjdump")


def compile_kernel(
    kernel: Any,
    arguments: Mapping[str, str | tuple[str, ...]],
    constants: Mapping[str, Any],
    capability: int,
    folder: Path,
    divisible: Collection[str] = (),
    **options: int,
) -> Binary:
    """Compiles for compute capability `capability`.

    Args:
        kernel: a `triton.jit` function, autotuned or not.
        arguments: types of the arguments that are not int32, such as `*fp32`, or of all in a tuple; pointers are taken
            as aligned.
        constants: values of constexpr arguments, and of others a launch would specialise.
        divisible: integers that are multiples of 16, as a launch specialises them.
    """
    function = kernel.fn if isinstance(kernel, Autotuner) else kernel
    signature = {name: "constexpr" if name in constants else arguments.get(name, "i32") for name in function.arg_names}
    known = {name for name in function.arg_names if signature[name][0] == "*"} | {*divisible}
    aligned = {(i,): DIVISIBLE for i, name in enumerate(function.arg_names) if name in known}
    compiled = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=dict(constants), attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={**options, "enable_fp_fusion": FUSION},
    )
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    usage = _dump("-res-usage", binary)
    return Binary(
        int(re.search(r"REG:(\d+)", usage)[1]),
        int(re.search(r"LOCAL:(\d+)", usage)[1]) + int(re.search(r"STACK:(\d+)", usage)[1]),
        _dump("-sass", binary),
    )


def _dump(what: str, binary: Path) -> str:
    done = subprocess.run([cuobjdump(), what, str(binary)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
