"""Randomness, threads and uninitialised memory, the same for every test."""

import zlib

import numpy as np
import pytest
import torch

from tests.devices import binding, where  # noqa: F401  fixtures


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A number that only the test's name and parameters decide."""
    return zlib.crc32(request.node.nodeid.encode())


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """Fresh torch generator."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Fresh numpy generator."""
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_memory(monkeypatch):
    """New memory holds NaN (255 in bytes), so that outputs never written and scratch read too early show."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill
