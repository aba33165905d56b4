"""The kernels on the CPU, under each schedule."""

import pytest

from tests.cuda import shim as shim_build

SCHEDULES = (0, 1, 2, 3)  # in order, and three random ones


@pytest.fixture(scope="session")
def shim() -> shim_build.Shim:
    """Every CUDA kernel, compiled for the CPU."""
    if reason := shim_build.missing():
        pytest.skip(reason)
    return shim_build.Shim(shim_build.build())


@pytest.fixture(params=SCHEDULES, ids=lambda seed: f"schedule{seed}")
def scheduled(shim, request):
    """The kernels under one schedule."""
    shim.seed(request.param)
    yield shim
    shim.seed(0)
