"""The mean of proposed gradients against numbers worked out by hand; what grows from it is in test_fedtiny.py."""

import torch

from fedsparse.methods.regrow import sparse_mean
from fedsparse.wire import SparseVector


def vector(size, entries):
    return SparseVector(size, torch.tensor(list(entries)), torch.tensor(list(entries.values()), dtype=torch.float32))


def test_entries_that_a_client_did_not_send_count_as_zero():
    positions, means = sparse_mean([(vector(9, {5: 4.0}), 1), (vector(9, {5: -4.0, 7: 1.0}), 3)], 4)
    assert positions.tolist() == [5, 7]
    assert means.tolist() == [-2.0, 0.75]


def test_clients_that_sent_nothing_still_count():
    positions, means = sparse_mean([(vector(9, {5: 4.0}), 1)], 4)
    assert (positions.tolist(), means.tolist()) == ([5], [1.0])
    positions, means = sparse_mean([], 4)
    assert (positions.tolist(), means.tolist()) == ([], [])
    assert (positions.dtype, means.dtype) == (torch.int64, torch.float64)
