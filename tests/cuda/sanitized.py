"""Runs kernels in a process of its own, with address and undefined-behaviour sanitizers.

    LD_PRELOAD=libasan.so:libubsan.so python -m tests.cuda.sanitized LIBRARY planted NAME
    LD_PRELOAD=libasan.so:libubsan.so python -m tests.cuda.sanitized LIBRARY products IN OUT
    LD_PRELOAD=libasan.so:libubsan.so python -m tests.cuda.sanitized LIBRARY selections IN OUT

The sanitizers end the process with their report at the first mistake.
"""

import pickle
import sys
from ctypes import c_double
from pathlib import Path

import numpy as np

from tests.cuda import selection
from tests.cuda.products import Results
from tests.cuda.shim import LaunchError, Shim

NUMBERS = np.arange(32, dtype=np.float32)


def planted(shim: Shim, name: str) -> None:
    """What is planted under a name; right before it, the same kernel without the mistake."""
    out = np.zeros(128, np.float32)
    shim("planted_out_of_bounds", NUMBERS, 32, 0, False, out)
    shim("planted_out_of_bounds", NUMBERS, 32, 0, True, out)
    print("nothing wrong so far", flush=True)
    if name == "global":
        shim("planted_out_of_bounds", NUMBERS, 32, 1, False, out)
    elif name == "shared":
        shim("planted_out_of_bounds", NUMBERS, 32, 1, True, out)
    elif name == "misaligned":
        shim("planted_misaligned", NUMBERS, out)
    elif name == "deadlock":
        try:
            shim("planted_some_never_arrive", out)
        except LaunchError:
            shim("planted_mirror", True, np.arange(128, dtype=np.int32), out)


def products(shim: Shim, source: Path, target: Path) -> None:
    """Results of pickled products under a random schedule, and optimizer steps of odd sizes."""
    shim.seed(1)
    results: list[Results] = [product.run(shim) for product in pickle.loads(source.read_bytes())]
    for n in (0, 1, 1023, 1025):
        arrays = [np.ones(n, np.float32) for _ in range(3)]
        shim("fedsparse_cuda_sgd_momentum", *arrays, n, 0.1, 0.9, 0.0, 0.0, False, False, None)
        assert np.allclose(arrays[0], 1 - 0.1 * 1.9)
        arrays = [np.ones(n, np.float32) for _ in range(4)]
        settings = [c_double(x) for x in (0.1, 0.9, 0.99, 0.0, 0.0)]
        shim("fedsparse_cuda_adamw", *arrays, n, np.float32([-3.0]), *settings, 1, None)
        assert np.allclose(arrays[0], 1 + 0.1)
    target.write_bytes(pickle.dumps([tuple(result) for result in results]))


def selections(shim: Shim, source: Path, target: Path) -> None:
    """Results of pickled calls, (name of a function of `selection`, arguments), under a random schedule."""
    shim.seed(1)
    calls = pickle.loads(source.read_bytes())
    target.write_bytes(pickle.dumps([getattr(selection, name)(shim, *arguments) for name, arguments in calls]))


if __name__ == "__main__":
    library, what, *arguments = sys.argv[1:]
    if what == "planted":
        planted(Shim(Path(library)), arguments[0])
    else:
        run = {"products": products, "selections": selections}[what]
        run(Shim(Path(library)), Path(arguments[0]), Path(arguments[1]))
