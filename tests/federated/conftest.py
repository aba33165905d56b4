"""What all tests of the runtime need."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Results are equal to the bit for equal numbers of threads; networks this small gain nothing from more."""
    torch.set_num_threads(1)
