"""Every kernel in Triton's interpreter.

Triton reads TRITON_INTERPRET when it decorates a kernel, so the interpreter needs a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")

# The interpreter of Triton 3.6 converts arrays in a way that numpy is about to drop, and from 2.4 on has dropped.
NUMPYS = "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
FOLDER = Path(__file__).parent / "interpreted"


def release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


@pytest.mark.slow
@pytest.mark.skipif(
    release(triton.__version__) < (3, 7) and release(np.__version__) >= (2, 4),
    reason=f"the interpreter of Triton {triton.__version__} needs numpy<2.4, here is {np.__version__}",
)
def test_kernels_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", NUMPYS, str(FOLDER)],
        cwd=FOLDER.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout
