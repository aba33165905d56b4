"""Up to which density the cpu kernels beat a dense product: what the rule of fedsparse.backends.choose is read off.

python -m benchmarks.bench_break_even
"""

import torch

import fedsparse as fs
from benchmarks.peers import LayerCase, step
from benchmarks.timing import interleave
from fedsparse.backends import Case, Geometry
from fedsparse.backends.choose import break_even

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
CASES = [
    LayerCase(64, 64, 32),
    LayerCase(128, 128, 16),
    LayerCase(256, 256, 8),
    LayerCase(512, 512, 4),
    LayerCase(256, 256, 8, kernel=1),
    LayerCase(16, 16, 16, batch=32),
    LayerCase(64, 64, 16, batch=8),
    LayerCase(64, 64, 16, batch=1),
    LayerCase(512, 512, None),
    LayerCase(4096, 4096, None),
    LayerCase(512, 512, None, batch=8),
]


def ratio(case: LayerCase, density: float, generator: torch.Generator) -> float:
    """Dense time over sparse time, forward and backward."""
    dense, x = case.layer(), case.example(generator)
    kept = torch.rand(dense.weight.shape, generator=generator) < density
    kind = fs.nn.SparseLinear if isinstance(dense, torch.nn.Linear) else fs.nn.SparseConv2d
    sparse = kind.from_dense(dense, kept)
    sparse.set_backend("cpu")
    times = interleave({"sparse": step(sparse, x), "dense": step(dense, x)}, rounds=7)
    return times["dense"].median / times["sparse"].median


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    print(f"{'dense time / sparse time at density':44} {'  '.join(f'{d:5}' for d in DENSITIES)}   rule")
    for case in CASES:
        x, weight = case.example(generator), case.layer().weight
        geometry = None if case.size is None else Geometry()
        rule = break_even(Case(tuple(weight.shape), tuple(x.shape), 0, geometry))
        ratios = "  ".join(f"{ratio(case, d, generator):5.2f}" for d in DENSITIES)
        print(f"{str(case).rpartition(' ')[0]:44} {ratios}   {rule:.2f}", flush=True)


if __name__ == "__main__":
    main()
