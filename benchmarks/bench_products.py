"""Forward + backward of sparse layers against torch dense, interleaved in one process.

pytest benchmarks/bench_products.py            the table is printed at the end of each case
python benchmarks/bench_products.py --out F    the same as one JSON file with machine and versions
"""

import argparse
import json
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.peers import LayerCase, peers
from benchmarks.timing import Timing, interleave
from fedsparse.experiment.environment import environment

RESNET_CONVS = [(64, 32), (128, 16), (256, 8), (512, 4)]
CASES = [
    *(LayerCase(c, c, size, density=d) for d in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01) for c, size in RESNET_CONVS),
    *(LayerCase(c, 2 * c, size, stride=2) for c, size in RESNET_CONVS[:3]),
    *(LayerCase(c, 2 * c, size, kernel=1, stride=2) for c, size in RESNET_CONVS[:3]),
    *(LayerCase(c, c, size, batch=16) for c, size in RESNET_CONVS),
    *(LayerCase(i, o, None, density=d) for i, o in ((512, 512), (784, 256), (4096, 4096)) for d in (0.1, 0.01)),
]


def measure_case(case: LayerCase, rounds: int = 15) -> dict[str, Timing]:
    """Interleaved times of all peers of a case."""
    return interleave(peers(case, torch.Generator().manual_seed(0)), rounds=rounds)


def ratio(times: dict[str, Timing]) -> float:
    """How many times faster than the best dense peer."""
    return min(t.median for name, t in times.items() if name != "fedsparse") / times["fedsparse"].median


@pytest.mark.parametrize("case", CASES, ids=str)
def test_product(case: LayerCase, benchmark: BenchmarkFixture) -> None:
    times = measure_case(case)
    benchmark.extra_info["times faster than dense"] = round(ratio(times), 2)
    benchmark.extra_info["medians in ms"] = {name: round(1e3 * t.median, 3) for name, t in times.items()}
    benchmark.pedantic(peers(case, torch.Generator().manual_seed(0))["fedsparse"], rounds=5, warmup_rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        times = measure_case(case, arguments.rounds)
        rows.append({"case": str(case), "ratio": ratio(times), "seconds": {n: vars(t) for n, t in times.items()}})
        medians = "  ".join(f"{name} {1e3 * t.median:8.3f} ms" for name, t in times.items())
        print(f"{case!s:45} {rows[-1]['ratio']:6.2f}x   {medians}", flush=True)
    if arguments.out:
        provenance = environment() | {"measured": "wall clock, medians and quartiles of interleaved rounds"}
        arguments.out.write_text(json.dumps({"provenance": provenance, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
