"""Every kernel once under address and undefined-behaviour sanitizers, and mistakes that these must find."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsparse.testing import product_cases
from tests.cuda import shim as shim_build
from tests.cuda.products import BFLOAT16, FLOAT16, FLOAT32
from tests.cuda.test_block import CASES
from tests.cuda.test_csr16 import LARGE, SPECIAL, stored


def runtime(name: str) -> str:
    """A sanitizer's library, which has to be loaded before Python; empty where the compiler has none."""
    asked = [shim_build.compiler() or "c++", f"-print-file-name={name}"]
    path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() else ""


@pytest.fixture(scope="module")
def sanitized(shim):  # noqa: ARG001  a compiler is there
    """Runs tests.cuda.sanitized with these arguments."""
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if not all(libraries):
        pytest.skip("the compiler brings no libasan.so and libubsan.so of its own")
    library = shim_build.build(shim_build.SANITIZERS)
    # CPython keeps what it allocates until the end.
    environ = {"LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.cuda.sanitized", library, *map(str, arguments)],
            cwd=shim_build.ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("global", "AddressSanitizer: heap-buffer-overflow"),
        ("shared", "AddressSanitizer: heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_planted_mistakes_are_found(sanitized, name, report):
    done = sanitized("planted", name)
    assert done.stdout == "nothing wrong so far\n"
    assert done.returncode != 0
    assert report in done.stderr
    assert "planted.cu" in done.stderr


def test_abandoned_threads_are_no_mistake(sanitized):
    done = sanitized("planted", "deadlock")
    assert done.returncode == 0, done.stderr


def test_kernels_are_clean(sanitized, shim, tmp_path):
    """Arrays are exactly as large as the interface says; results are those of the build without sanitizers."""
    kinds = (FLOAT32, BFLOAT16, FLOAT32, FLOAT16)
    cases = [*LARGE.values(), *SPECIAL.values(), *product_cases(np.random.default_rng(5), 30)]
    products = [stored(case, kinds[number % 4]) for number, case in enumerate(cases)]
    products += [case.stored(kinds[n % 4], tf32=n % 4 == 2) for n, case in enumerate(CASES.values())]
    (tmp_path / "in").write_bytes(pickle.dumps(products))
    done = sanitized("products", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for product, found in zip(products, pickle.loads((tmp_path / "out").read_bytes()), strict=True):
        for ours, theirs in zip(product.run(shim), found, strict=True):
            assert ours.tobytes() == theirs.tobytes()
