"""A whole training step of ResNet-18 (forward, loss, backward, SGD with momentum), sparse against dense.

python -m benchmarks.bench_step --out F
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsparse as fs
from benchmarks.timing import interleave
from fedsparse.experiment.environment import environment

DENSITIES = (0.2, 0.1, 0.05, 0.01)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """One optimiser step on a fixed batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run() -> object:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return optimizer.step()

    return run


def peak_bytes(model: nn.Module, x: Tensor, y: Tensor) -> float | None:
    """Most memory of two steps of a fresh copy: network, gradients, momentum, activations, workspaces."""
    with fs.measure() as m:
        run = step(copy.deepcopy(model), x, y)
        run()
        run()
        del run
    return m.peak_bytes.value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    x, y = torch.randn(arguments.batch, 3, 32, 32), torch.randint(10, (arguments.batch,))
    plain = fs.models.resnet18()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    models = {"dense": (plain, x), "dense channels_last": (last, x.contiguous(memory_format=torch.channels_last))}
    for density in DENSITIES:
        models[f"uniform {density}"] = fs.sparsify(copy.deepcopy(plain), density, distribution="uniform"), x
    models["erk 0.1"] = fs.sparsify(copy.deepcopy(plain), 0.1), x
    times = interleave({name: step(model, x, y) for name, (model, x) in models.items()}, rounds=arguments.rounds)
    best = min(t.median for name, t in times.items() if name.startswith("dense"))
    rows = []
    for name, (model, x) in models.items():
        peak = peak_bytes(model, x, y)
        rows.append(
            {"case": name, "ratio": best / times[name].median, "seconds": vars(times[name]), "peak_bytes": peak}
        )
        print(
            f"{name:22} {1e3 * times[name].median:8.1f} ms  {rows[-1]['ratio']:5.2f}x  peak {(peak or 0) / 1e6:7.1f} MB"
        )
    if arguments.out:
        provenance = environment() | {"measured": "wall clock, medians and quartiles of interleaved rounds; allocator"}
        arguments.out.write_text(json.dumps({"provenance": provenance, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
