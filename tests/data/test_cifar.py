import pickle

import numpy as np
import pytest

from fedsparse.data.cifar import CIFAR10, CIFAR100
from fedsparse.errors import DataNotFoundError


def write_batch(file, number, key, count=2):
    file.parent.mkdir(parents=True, exist_ok=True)
    data = np.full((count, 3072), number, dtype=np.uint8)
    file.write_bytes(pickle.dumps({b"data": data, key: [number] * count, b"coarse_labels": [7] * count}, 2))


def write_cifar10(folder):
    for number in range(1, 6):
        write_batch(folder / f"data_batch_{number}", number, b"labels")
    write_batch(folder / "test_batch", 9, b"labels", 3)


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "."])
def test_cifar10_joins_its_batches_in_order(tmp_path, place):
    write_cifar10(tmp_path / place)
    x, y, x_test, y_test = CIFAR10.read(tmp_path)
    assert x.shape == (10, 3, 32, 32)
    assert y.tolist() == x[:, 0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert y_test.tolist() == x_test[:, 2, 31, 31].tolist() == [9, 9, 9]


def test_cifar100_reads_fine_labels(tmp_path):
    write_batch(tmp_path / "cifar-100-python/train", 42, b"fine_labels", 4)
    write_batch(tmp_path / "cifar-100-python/test", 99, b"fine_labels", 1)
    _, y, x_test, y_test = CIFAR100.read(tmp_path)
    assert y.tolist() == [42] * 4
    assert y_test.tolist() == [99]
    assert x_test.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("cifar", "folder", "files"),
    [(CIFAR10, "cifar-10-batches-py", "data_batch_1, data_batch_2"), (CIFAR100, "cifar-100-python", "train, test")],
)
def test_nothing_there(tmp_path, cifar, folder, files):
    with pytest.raises(DataNotFoundError) as error:
        cifar.read(tmp_path / "absent")
    for part in (files, str(tmp_path / "absent" / folder), str(tmp_path / "absent" / cifar.parquet), "data.root"):
        assert part in str(error.value)


def test_an_incomplete_set_is_not_taken(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(DataNotFoundError, match="data_batch_3"):
        CIFAR10.read(tmp_path)
