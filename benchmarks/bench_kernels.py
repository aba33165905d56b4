"""Layers against other engines.

python -m benchmarks.bench_kernels --out F     the same as `fedsparse bench kernels --out F`
make bench ARGS="-k kernels"                   each case under pytest-benchmark
"""

import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fedsparse.bench.cases import LINEAR, POINTWISE, STRIDED, SYMMETRIC, LayerCase, Operands, at_densities
from fedsparse.bench.kernels import measure_case
from fedsparse.bench.peers import WAYS
from fedsparse.cli.main import app

CASES = [
    *at_densities(SYMMETRIC, (0.5, 0.2, 0.1, 0.05, 0.02, 0.01), batch=64),
    *at_densities((*STRIDED, *POINTWISE), (0.1,), batch=64),
    *at_densities(LINEAR, (0.1, 0.01), batch=64),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case: LayerCase, benchmark: BenchmarkFixture) -> None:
    row = measure_case(case, rounds=15)
    way = WAYS[0]
    benchmark.extra_info["times faster"] = {peer: round(ratio, 2) for peer, ratio in row.ratios[way.name].items()}
    benchmark.extra_info["medians in ms"] = {name: round(1e3 * t.median, 3) for name, t in row.seconds.items()}
    benchmark.extra_info["skipped"] = dict(row.skipped)
    (trial,) = way.build(Operands(case)).values()
    benchmark.pedantic(trial, rounds=5, warmup_rounds=1)


if __name__ == "__main__":
    app(["bench", "kernels", *sys.argv[1:]], prog_name="fedsparse")
