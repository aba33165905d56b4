"""The mean of proposed gradients against numbers worked out by hand; what grows from it is in test_fedtiny.py."""

import torch

from fedsparse.methods.regrow import SparseMean
from fedsparse.wire import SparseVector


def vector(size, entries):
    return SparseVector(
        size, torch.tensor(list(entries), dtype=torch.int64), torch.tensor(list(entries.values()), dtype=torch.float32)
    )


def mean_of(*shared):
    """Positions and means of (vector of 9, share) pairs."""
    mean = SparseMean(9)
    for entries, share in shared:
        mean.add(vector(9, entries), share)
    return mean.result()


def test_entries_that_a_client_did_not_send_count_as_zero():
    positions, means = mean_of(({5: 4.0}, 0.25), ({5: -4.0, 7: 1.0}, 0.75))
    assert positions.tolist() == [5, 7]
    assert means.tolist() == [-2.0, 0.75]


def test_what_cancels_out_or_is_zero_has_arrived():
    positions, means = mean_of(({2: 3.0, 8: 0.0}, 0.5), ({2: -3.0}, 0.5))
    assert (positions.tolist(), means.tolist()) == ([2, 8], [0.0, 0.0])


def test_clients_that_sent_nothing_still_count():
    positions, means = mean_of(({5: 4.0}, 0.25), ({}, 0.75))
    assert (positions.tolist(), means.tolist()) == ([5], [1.0])
    positions, means = mean_of()
    assert (positions.tolist(), means.tolist()) == ([], [])
    assert (positions.dtype, means.dtype) == (torch.int64, torch.float64)
