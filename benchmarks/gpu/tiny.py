"""Four tiny cases of every kind, for tools that slow a program down a hundredfold: `python -m benchmarks.gpu.tiny`.

A linear layer and convolutions of 3x3 with and without stride, and of 1x1; sizes that fill no tile. Products of torch
stay out of it, so that what a tool finds is of our kernels.
"""

import sys
from collections.abc import Sequence

import torch

from benchmarks.gpu.cases import PRECISIONS
from benchmarks.gpu.kinds import KINDS, of_device
from benchmarks.gpu.operands import Operands, told
from fedsparse.backends.choose import BACKENDS
from fedsparse.bench.cases import LayerCase

__all__ = ["CASES", "main"]

CASES = (
    LayerCase(64, 32, 9, batch=9, density=0.2),
    LayerCase(32, 64, 9, stride=2, batch=16, density=0.3),
    LayerCase(32, 64, 5, kernel=1, batch=8, density=0.3),
    LayerCase(96, 64, None, batch=17, density=0.2),
)


def main(names: Sequence[str]) -> None:
    """Runs forward and backward of every kind, or of those named."""
    kinds = [kind for kind in KINDS if kind.name in names] or of_device("cuda")
    for kind in kinds:
        precision, device = PRECISIONS[kind.precisions[0]], "cuda:0" if kind.device == "cuda" else "cpu"
        for case in CASES:
            pattern = kind.pattern(case, seed=2).to(device)
            operands = Operands.draw(case, precision.dtype, kind.device, seed=3)
            asked = told(case, pattern.nnz, precision.dtype, kind.device)
            values, backend = pattern.gather(operands.weight).contiguous(), BACKENDS[kind.backend]
            backend.forward(operands.x, values, pattern, None, asked)
            backend.backward(operands.grad, operands.x, values, pattern, (True, True), asked)
            print(f"{kind.name} {case}", flush=True)
    if any(kind.device == "cuda" for kind in kinds):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:])
