"""Every kernel once under address and undefined-behaviour sanitizers, and mistakes that these must find."""

import os
import pickle
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from fedsparse.pattern import Pattern
from fedsparse.testing import product_cases
from tests.cuda import selection
from tests.cuda import shim as shim_build
from tests.cuda.products import BFLOAT16, FLOAT16, FLOAT32, as_stored
from tests.cuda.sanitized import FUNCTIONS
from tests.cuda.test_block import CASES
from tests.cuda.test_block_rebuild import AWKWARD
from tests.cuda.test_csr16 import LARGE, SPECIAL, stored
from tests.cuda.test_rebuild import after, arrays, changes, weight
from tests.cuda.test_topk import planted, pruned_positions


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


def selection_calls() -> list[tuple[str, tuple[object, ...]]]:
    """Calls of every selection kernel: odd sizes, several runs of a sum, a bound that needs repair, split ties."""
    rng, calls = np.random.default_rng(5), []
    products = [*product_cases(rng, 6), LARGE["four pixels to a thread"], SPECIAL["a wide linear layer"]]
    for number, product in enumerate(products):
        held, pruned = stored(product, (FLOAT32, BFLOAT16, FLOAT16)[number % 3]), len(pruned_positions(product))
        calls += [("dense_gradient", (held,)), ("topk_pruned", (held, pruned // 2))]
        calls += [("tap_list", (held, backward)) for backward in (False, True)]
    calls += rebuilding_calls(rng, [product.pattern for product in products])
    for number, case in enumerate((*CASES.values(), *AWKWARD.values())):
        structured = case.stored((FLOAT32, BFLOAT16, FLOAT16)[number % 3])
        calls += [("widest_strips", (structured,))]
        calls += [("line_list", (structured, backward)) for backward in (False, True)]
    calls.append(("widest_strips", tuple(case.stored(FLOAT16) for case in CASES.values())))
    taps = [stored(case, kind) for case, kind in zip(SPECIAL.values(), cycle((FLOAT32, BFLOAT16, FLOAT16)))]
    calls.append(("make_lists", ([selection.ListOf(one, backward, 0) for one in taps for backward in (False, True)],)))
    held, _, _ = planted(np.ones(300), np.ones(300))
    calls.append(("topk_pruned", (held, 3)))
    coarse = [rng.integers(-3, 4, size).astype(np.float32) for size in (0, 5, 9000, 1)]
    calls.append(("smallest", (coarse, [0, 2, 4000, 1])))
    for dtype in (FLOAT32, BFLOAT16, FLOAT16):
        for size in (1, 700, 9001):
            x = as_stored(rng.integers(-3, 4, size), dtype)
            calls.append(("pack_largest", (x, dtype, size // 3)))
            calls.append(("pack_largest", (np.tile(x, 3), dtype, size // 3, FLOAT32, 3)))
            calls.append(("unpack", (selection.Packed(*packed_by_hand(x)), size, dtype)))
    return calls


def rebuilding_calls(rng: np.random.Generator, patterns: list[Pattern]) -> list[tuple[str, tuple[object, ...]]]:
    """All weights at once: changed, listed by input, moved with arrays of their own, and asked whether they may."""
    weights = [weight(pattern) for pattern in patterns]
    calls: list[tuple[str, tuple[object, ...]]] = [("list_by_input", (weights,))]
    for number, changed in enumerate(zip(*(changes(rng, pattern) for pattern in patterns), strict=True)):
        calls.append(("exchange", ([(old, *change) for old, change in zip(weights, changed, strict=True)],)))
        new = [weight(after(pattern, *change)) for pattern, change in zip(patterns, changed, strict=True)]
        moves = [(*pair, arrays(rng, pair[0], number), number % 2 == 0) for pair in zip(weights, new, strict=True)]
        calls.append(("carry", (moves,)))
        calls.append(("check_growth", ([(old, grown) for old, (_, grown) in zip(weights, changed, strict=True)],)))
    return calls


def packed_by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Everything marked: bits, starts and float32 values."""
    groups = -(-x.size // 512)
    flags = np.arange(512 * groups) < x.size
    starts = np.minimum(np.arange(groups + 1) * 512, x.size).astype(np.int32)
    return np.packbits(flags, bitorder="little").view(np.uint32), starts, np.arange(x.size, dtype=np.float32)


def test_selections_are_clean(sanitized, shim, tmp_path):
    """As above: workspaces, too, are exactly as large as asked for."""
    calls = selection_calls()
    (tmp_path / "in").write_bytes(pickle.dumps(calls))
    done = sanitized("selections", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for (name, arguments), found in zip(calls, pickle.loads((tmp_path / "out").read_bytes()), strict=True):
        ours = FUNCTIONS[name](shim, *arguments)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(flat(ours), flat(found), strict=True)), name


def flat(result: object) -> list[np.ndarray]:
    """All arrays of a result."""
    if isinstance(result, tuple | list):
        return [array for part in result for array in flat(part)]
    return [result] if isinstance(result, np.ndarray) else []
