"""Times of packing are taken of what unpacks again."""

import pytest
import torch

from fedsparse.backends.activation import Pruning
from fedsparse.bench import activations
from fedsparse.errors import BackendError


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_way_is_timed(dtype):
    times = activations.packing_times((5, 3, 8, 8), Pruning(0.3, "global", dtype), rounds=2)
    assert list(times) == ["copy", "select", "pack", "unpack", "masked_select"]
    assert all(time.median > 0 for time in times.values())


def test_what_unpacks_wrongly_is_not_timed(monkeypatch):
    monkeypatch.setattr(activations, "unpack", lambda _packed, shape: torch.ones(shape))
    with pytest.raises(BackendError, match="not unpacked as they were packed"):
        activations.packing_times((5, 3, 8, 8), rounds=2)
