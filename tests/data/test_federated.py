import pytest
import torch

from fedsparse.data import Dataset, FederatedDataset
from fedsparse.data.task import CLASSES, NEXT_TOKEN
from fedsparse.errors import DataError


def pictures(**changes):
    x = torch.tensor([[0, 255], [51, 102], [255, 0]], dtype=torch.uint8).reshape(3, 2, 1, 1)
    given = {"x": x, "y": torch.tensor([0, 1, 2]), "num_classes": 3} | changes
    return Dataset(**given)


def test_batch_normalises_each_channel():
    data = pictures(mean=torch.tensor([0.2, 0.4]), std=torch.tensor([0.1, 0.5]))
    x, y = data.batch(torch.tensor([2, 1]))
    # (1 - 0.2) / 0.1, (0 - 0.4) / 0.5; (0.2 - 0.2) / 0.1, (0.4 - 0.4) / 0.5
    torch.testing.assert_close(x.reshape(2, 2), torch.tensor([[8.0, -0.8], [0.0, 0.0]]))
    assert x.dtype == torch.float32
    assert x.shape == (2, 2, 1, 1)
    assert y.tolist() == [2, 1]
    assert y.dtype == torch.int64


def test_without_moments_numbers_pass_unchanged():
    features = torch.tensor([[1.5, -2.0], [0.25, 7.0]])
    x, y = Dataset(features, torch.tensor([1, 0]), 2).batch(torch.tensor([1]))
    assert x.tolist() == [[0.25, 7.0]]
    assert y.tolist() == [0]
    assert pictures().batch(torch.tensor([1]))[0].flatten().tolist() == [51.0, 102.0]


def test_batch_leaves_the_data_alone():
    data = Dataset(torch.ones(2, 3), torch.tensor([0, 0]), 1)
    data.batch(torch.tensor([0, 1]))[0].zero_()
    assert data.x.sum() == 6


def test_subset_keeps_order_and_moments():
    mean, std = torch.zeros(2), torch.ones(2)
    part = pictures(mean=mean, std=std).subset(torch.tensor([2, 0]))
    assert part.y.tolist() == [2, 0]
    assert part.x.dtype == torch.uint8
    assert part.x[:, 0].flatten().tolist() == [255, 0]
    assert part.num_classes == 3
    assert part.mean is mean
    assert part.std is std
    assert len(part) == 2
    assert part.shape == (2, 1, 1)
    assert len(part.subset(torch.tensor([], dtype=torch.int64))) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.tensor([0, 1])}, "there are 3 samples but 2 labels"),
        ({"y": torch.tensor([0, 1, 3])}, r"labels must lie in \[0, 3\), found 0 to 3"),
        ({"y": torch.tensor([0, -1, 2])}, r"found -1 to 2"),
        ({"y": torch.tensor([0.0, 1.0, 2.0])}, r"got torch.uint8 and torch.float32 \(3,\)"),
        ({"y": torch.tensor([[0], [1], [2]])}, r"torch.int64 \(3, 1\)"),
        ({"x": torch.zeros(3, 2, dtype=torch.float64)}, "got torch.float64"),
        ({"mean": torch.zeros(2)}, "give both or neither"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        pictures(**changes)


def tokens(**changes):
    given = {
        "x": torch.tensor([[5, 1], [2, -1]], dtype=torch.int32),
        "y": torch.tensor([[1, 4], [3, -1]], dtype=torch.int32),
        "num_classes": 6,
        "story": torch.tensor([8, 8]),
    }
    return Dataset(**{**given, **changes})


def test_tokens_are_samples():
    data = tokens()
    x, y = data.batch(torch.tensor([1, 0]))
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
    assert x.tolist() == [[2, 0], [5, 1]]
    assert y.tolist() == [[3, -1], [1, 4]]
    assert data.subset(torch.tensor([1])).story.tolist() == [8]
    assert data.task is NEXT_TOKEN
    assert pictures().task is CLASSES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.tensor([1, 2], dtype=torch.int32)}, r"got torch.int32 and torch.int32 \(2,\)"),
        ({"y": torch.tensor([[1, 4], [3, -1]])}, "got torch.int32 and torch.int64"),
        ({"num_classes": 4}, r"labels must lie in \[0, 4\), found -1 to 4"),
        ({"story": torch.tensor([1])}, r"2 samples but stories of shape \(1,\)"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        tokens(**changes)


@pytest.mark.parametrize(
    ("classes", "length", "chunk"), [(10, None, 256), (256, 256, 256), (50257, 256, 5), (2**20, 256, 1)]
)
def test_as_many_samples_are_evaluated_together_as_logits_fit(classes, length, chunk):
    if length is None:
        assert pictures(num_classes=classes).chunk == chunk
    else:
        none = torch.empty(0, length, dtype=torch.int32)
        assert Dataset(none, none, classes).chunk == chunk


def federated(*clients):
    data = pictures()
    return FederatedDataset(data, data, tuple(torch.tensor(c, dtype=torch.int64) for c in clients), "three")


def test_clients_hold_their_samples():
    data = federated([2], [], [0, 1])
    assert data.sizes == (1, 0, 2)
    assert data.client(0).y.tolist() == [2]
    assert len(data.client(1)) == 0
    assert data.client(2).x[:, 1].flatten().tolist() == [255, 102]


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (([0, 1], [1]), "clients of 'three' share samples"),
        (([0, 0],), "share samples"),
        (([0], [3]), "hold sample indices 0 to 3, the training set has 0 to 2"),
        (([-1],), "hold sample indices -1 to -1"),
    ],
)
def test_clients_that_do_not_fit_are_refused(clients, message):
    with pytest.raises(DataError, match=message):
        federated(*clients)
