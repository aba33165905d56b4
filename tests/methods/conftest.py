"""What all tests of methods need."""

import pytest
import torch

from fedsparse.methods import base


@pytest.fixture(autouse=True)
def _one_thread():
    """Results are equal to the bit for equal numbers of threads; networks this small gain nothing from more."""
    torch.set_num_threads(1)


@pytest.fixture
def registry(monkeypatch):
    """The registered methods, restored afterwards."""
    base.methods()
    monkeypatch.setattr(base, "_registered", dict(base._registered))
    return base._registered
