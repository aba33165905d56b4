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

from tests.cuda import rebuilding, selection
from tests.cuda.products import Results
from tests.cuda.shim import LaunchError, Shim

NUMBERS = np.arange(32, dtype=np.float32)
FUNCTIONS = {**vars(selection), **vars(rebuilding)}


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
    for shift in (0, 1):
        optimizers(shim, shift)
    target.write_bytes(pickle.dumps([tuple(result) for result in results]))


def optimizers(shim: Shim, shift: int) -> None:
    """Steps over parameters of odd sizes, each an allocation of its own or, shifted, a slice that ends it."""
    sizes = np.array([0, 1, 1023, 2049], np.int64)
    arrays = [[np.ones(n + shift, np.float32)[shift:] for n in sizes] for _ in range(4)]
    tables = [np.array([array.ctypes.data for array in field], np.uint64) for field in arrays]
    shim("fedsparse_cuda_sgd_momentum", 4, *tables[:3], sizes, 0.1, 0.9, 0.0, 0.0, False, False, None)
    assert all(np.allclose(array, 1 - 0.1 * 1.9) for array in arrays[0])
    for array in (*arrays[2], *arrays[3]):
        array[:] = 0
    counters = [np.zeros(1, np.float32) for _ in sizes]
    counts = np.array([counter.ctypes.data for counter in counters], np.uint64), None
    settings = [c_double(x) for x in (0.1, 0.9, 0.99, 0.0, 0.0)]
    shim("fedsparse_cuda_adamw", 4, *tables, sizes, *counts, np.float32([-3.0]), *settings, None)
    assert all(np.allclose(array, 1 - 0.1 * 1.9 + 0.1) for array in arrays[0])
    assert all(counter == 1 for counter in counters)


def selections(shim: Shim, source: Path, target: Path) -> None:
    """Results of pickled calls, (name of a function of `FUNCTIONS`, arguments), under a random schedule."""
    shim.seed(1)
    calls = pickle.loads(source.read_bytes())
    target.write_bytes(pickle.dumps([FUNCTIONS[name](shim, *arguments) for name, arguments in calls]))


if __name__ == "__main__":
    library, what, *arguments = sys.argv[1:]
    if what == "planted":
        planted(Shim(Path(library)), arguments[0])
    else:
        run = {"products": products, "selections": selections}[what]
        run(Shim(Path(library)), Path(arguments[0]), Path(arguments[1]))
