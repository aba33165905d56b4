"""What the profiler looks at: forward and backward of one layer, every kind, three times."""

from dataclasses import replace

import torch

from benchmarks.gpu.cases import PRECISIONS
from benchmarks.gpu.kinds import of_device
from benchmarks.gpu.operands import Operands, told
from fedsparse.backends.choose import BACKENDS
from fedsparse.bench.cases import SYMMETRIC

__all__ = ["main"]


def main() -> None:
    """128 channels of 16x16, batch 128, density 0.1."""
    case = replace(SYMMETRIC[1], batch=128, density=0.1)
    for kind in of_device("cuda"):
        precision = PRECISIONS[kind.precisions[0]]
        pattern = kind.pattern(case, seed=2).to("cuda:0")
        operands = Operands.draw(case, precision.dtype, "cuda", seed=3)
        asked = told(case, pattern.nnz, precision.dtype, "cuda")
        values, backend = pattern.gather(operands.weight).contiguous(), BACKENDS[kind.backend]
        for _ in range(3):
            backend.forward(operands.x, values, pattern, None, asked)
            backend.backward(operands.grad, operands.x, values, pattern, (True, True), asked)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
