import gzip
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsparse.data import datasets, load
from fedsparse.data.parquet import read_parquet
from fedsparse.data.pictures import moments
from fedsparse.errors import ConfigError, DataError, DataNotFoundError

STEMS = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def write_idx(folder, *arrays):
    for stem, array in zip(STEMS, arrays, strict=True):
        shape = struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{stem}.gz").write_bytes(
            gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes())
        )


def rng(seed=0):
    return np.random.default_rng(seed)


def test_names():
    pictures = ["cifar10", "cifar100", "digits", "fashion-mnist", "mnist", "npz"]
    assert datasets() == sorted([*pictures, "federated_shakespeare", "tinyshakespeare", "tinystories", "wikitext2"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-10", r"unknown data set 'cifar-10'; did you mean 'cifar10'\? \(known: cifar10, cifar100, digits, "),
        ("zzz", r"unknown data set 'zzz' \(known: cifar10"),
    ],
)
def test_an_unknown_name(name, message):
    with pytest.raises(ConfigError, match=message):
        load(name, None, generator=rng())


@pytest.mark.parametrize("name", sorted(set(datasets()) - {"digits"}))
def test_files_must_be_there(tmp_path, name):
    with pytest.raises(DataNotFoundError, match=f"data set '{name}' is read from disk; set data.root"):
        load(name, None, generator=rng())
    with pytest.raises(DataNotFoundError, match="absent"):
        load(name, tmp_path / "absent", generator=rng())


def test_training_and_test_pictures_share_the_training_moments(tmp_path):
    x, y = np.zeros((10, 2, 2)), np.arange(10)
    x[:5] = 255
    write_idx(tmp_path, x, y, np.full((3, 2, 2), 51), np.array([0, 1, 2]))
    train, test = load("mnist", tmp_path, generator=rng())
    assert train.x.dtype == torch.uint8
    assert train.shape == test.shape == (1, 2, 2)
    assert train.num_classes == test.num_classes == 10
    # half 0, half 1: mean and deviation 0.5
    assert train.batch(torch.tensor([0, 9]))[0].flatten().tolist() == [1.0] * 4 + [-1.0] * 4
    torch.testing.assert_close(test.batch(torch.tensor([1]))[0], torch.full((1, 1, 2, 2), -0.6))


def test_a_set_has_its_number_of_classes_whatever_the_labels(tmp_path):
    write_idx(tmp_path, np.zeros((2, 2, 2)), np.array([0, 1]), np.zeros((1, 2, 2)), np.array([1]))
    assert load("fashion-mnist", tmp_path, generator=rng())[0].num_classes == 10
    write_idx(tmp_path, np.zeros((2, 2, 2)), np.array([0, 1]), np.zeros((1, 2, 2)), np.array([10]))
    with pytest.raises(DataError, match=r"fashion-mnist in .* has labels from 10 to 10, expected 0 to 9"):
        load("fashion-mnist", tmp_path, generator=rng())


def test_an_empty_set(tmp_path):
    write_idx(tmp_path, np.zeros((2, 2, 2)), np.array([0, 1]), np.zeros((0, 2, 2)), np.array([]))
    with pytest.raises(DataError, match="has 2 training and 0 test samples; each needs at least one"):
        load("mnist", tmp_path, generator=rng())


def test_npz_numbers_pass_unchanged(tmp_path):
    x = rng().normal(size=(6, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 4, 1, 0, 0, 0]), x_test=x[:1], y_test=np.array([2]))
    train, test = load("npz", tmp_path / "a.npz", generator=rng())
    assert train.num_classes == test.num_classes == 5  # the largest label of both parts is 4
    assert torch.equal(train.batch(torch.arange(6))[0], torch.from_numpy(x.astype(np.float32)))
    with pytest.raises(ConfigError, match="image_size=4 needs pictures"):
        load("npz", tmp_path / "a.npz", image_size=4, generator=rng())


def test_npz_labels_count_from_0(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 1)), y=np.repeat([-1, 0, 1], 3))
    with pytest.raises(DataError, match="labels from -1 to 1, expected 0 to 1"):
        load("npz", tmp_path / "a.npz", generator=rng())


@pytest.mark.parametrize("image_size", [None, 12])
def test_digits(image_size):
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")
    train, test = load("digits", None, image_size=image_size, generator=rng())
    side = image_size or 8
    assert train.shape == test.shape == (1, side, side)
    assert len(train) + len(test) == 1797
    shares = torch.bincount(test.y) / torch.bincount(torch.cat([train.y, test.y]))
    assert shares.numel() == 10
    assert ((shares - 0.2).abs() < 0.005).all()
    x, _ = train.batch(torch.arange(len(train)))
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    again, other = (load("digits", None, image_size=image_size, generator=rng(s))[1] for s in (0, 1))
    assert torch.equal(test.x, again.x)
    assert len(other) != len(test) or not torch.equal(test.x, other.x)


def test_limits_are_balanced_and_seeded():
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")

    def limited(seed):
        return load("digits", None, train_limit=200, test_limit=45, generator=rng(seed))

    train, test = limited(3)
    assert torch.bincount(train.y).tolist() == [20] * 10
    assert sorted(torch.bincount(test.y).tolist()) == [4] * 5 + [5] * 5
    assert torch.equal(train.x, limited(3)[0].x)
    assert not torch.equal(train.x, limited(4)[0].x)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        load("digits", None, train_limit=0, generator=rng())


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"come with scikit-learn: pip install 'fedsparse\[data\]'"):
        load("digits", None, generator=rng())


# ---- the real sets, where they are


def real_root(needed: str) -> Path:
    root = Path(os.environ.get("FEDSPARSE_DATA") or Path(__file__).parents[3] / "shared/data")
    if not list(root.glob(needed)):
        pytest.skip(f"no {needed} in {root}; FEDSPARSE_DATA names the folder")
    return root


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folder", "mean", "std"),
    [("mnist", "MNIST", 0.1307, 0.3081), ("fashion-mnist", "FashionMNIST", 0.2860, 0.3530)],
)
def test_real_idx_sets(name, folder, mean, std):
    train, test = load(name, real_root(f"{folder}/raw/train-images*"), generator=rng())
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.shape == (1, 28, 28)
    assert train.mean.item() == pytest.approx(mean, abs=5e-5)
    assert train.std.item() == pytest.approx(std, abs=5e-5)
    counts = torch.bincount(train.y)
    assert len(counts) == 10
    if name == "fashion-mnist":
        assert counts.tolist() == [6000] * 10
        assert torch.bincount(test.y).tolist() == [1000] * 10
    else:
        assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.data
def test_real_cifar10_shard():
    """The test shard alone: decoding all six takes many seconds and passes through the same code."""
    pytest.importorskip("PIL", reason="parquet pictures need pillow")
    pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    x, y = read_parquet(real_root("cifar10/test-*.parquet") / "cifar10/test-00000-of-00001.parquet", ("label",), 32)
    assert x.shape == (10_000, 3, 32, 32)
    assert np.bincount(y).tolist() == [1000] * 10
    mean, std = moments(torch.from_numpy(x))
    torch.testing.assert_close(mean, torch.tensor([0.4942, 0.4851, 0.4504]), rtol=0, atol=5e-5)
    torch.testing.assert_close(std, torch.tensor([0.2467, 0.2429, 0.2616]), rtol=0, atol=5e-5)
