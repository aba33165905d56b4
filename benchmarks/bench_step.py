"""A whole training step of ResNet-18.

python -m benchmarks.bench_step --out F     the same as `fedsparse bench step --out F`
make bench ARGS="-k step"                   under pytest-benchmark
"""

import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fedsparse.bench.step import DENSITIES, StepSettings, measure
from fedsparse.cli.main import app


@pytest.mark.parametrize("density", DENSITIES)
def test_step(density: float, benchmark: BenchmarkFixture) -> None:
    report = benchmark.pedantic(lambda: measure(StepSettings(densities=(density,))), rounds=1)
    for row in report.rows:
        benchmark.extra_info[row["name"]] = {"ms": round(1e3 * row["seconds"]["median"], 1), "bytes": row["peak_bytes"]}


if __name__ == "__main__":
    app(["bench", "step", *sys.argv[1:]], prog_name="fedsparse")
