"""What all tests of the Flower side need."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Results are equal to the bit for equal numbers of threads; networks this small gain nothing from more."""
    torch.set_num_threads(1)


@pytest.fixture
def in_a_run(monkeypatch):
    """Messages can be made in this process, as in one that Flower started."""
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(identity, f"_{name}", 1)
