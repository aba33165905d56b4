"""Messages with the weights of ResNet-18.

python -m benchmarks.bench_payload --out F     the same as `fedsparse bench payload --out F`
make bench ARGS="-k payload"                   under pytest-benchmark
"""

import sys
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import fedsparse as fs
from fedsparse.bench.payload import DENSITIES
from fedsparse.cli.main import app
from fedsparse.nn import read_weights


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("density", DENSITIES)
def test_payload(density: float, direction: str, benchmark: BenchmarkFixture) -> None:
    torch.manual_seed(0)
    weights = read_weights(fs.sparsify(fs.models.resnet18(), density, distribution="uniform"))
    message = fs.wire.Payload("train", 0, weights)
    blob = fs.wire.encode(message)
    benchmark.extra_info["bytes"] = len(blob)
    run = partial(fs.wire.encode, message) if direction == "encode" else partial(fs.wire.decode, blob)
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)


if __name__ == "__main__":
    app(["bench", "payload", *sys.argv[1:]], prog_name="fedsparse")
