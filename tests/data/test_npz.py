import os
import zipfile

import numpy as np
import pytest

from fedsparse.data.npz import read_npz
from fedsparse.errors import DataError, DataNotFoundError


def write(tmp_path, **arrays):
    file = tmp_path / "set.npz"
    np.savez(file, **arrays)
    return file


def test_a_given_test_part_is_taken(tmp_path, rng):
    arrays = {
        "x": np.arange(6, dtype=np.float64).reshape(3, 2),
        "y": np.array([0, 1, 1]),
        "x_test": np.ones((2, 2)),
        "y_test": np.array([1, 0], dtype=np.uint8),
    }
    found = read_npz(write(tmp_path, **arrays), rng)
    assert all(np.array_equal(a, b) for a, b in zip(found, arrays.values(), strict=True))


def test_else_a_fifth_of_each_class_is_split_off(tmp_path):
    y = np.repeat([0, 1, 2], [50, 20, 7])
    x = np.arange(77, dtype=np.float32)[:, None]
    file = write(tmp_path, x=x, y=y)
    train_x, train_y, test_x, test_y = read_npz(file, np.random.default_rng(1))
    assert np.bincount(test_y).tolist() == [10, 4, 1]
    assert sorted([*train_x[:, 0], *test_x[:, 0]]) == list(range(77))
    assert np.array_equal(y[train_x[:, 0].astype(int)], train_y)
    assert np.array_equal(y[test_x[:, 0].astype(int)], test_y)
    assert np.array_equal(read_npz(file, np.random.default_rng(1))[2], test_x)
    assert not np.array_equal(read_npz(file, np.random.default_rng(2))[2], test_x)


X, Y = np.zeros((5, 2), np.float32), np.array([0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": X, "y": Y}, "holds x_train, y; expected x and y, and x_test with y_test or neither"),
        ({}, "holds nothing; expected x and y"),
        ({"x": X, "y": Y, "x_test": X}, "holds x, y, x_test; expected"),
        ({"x": X[:4], "y": Y}, r"x must be .* a sample for each of the 5 labels of y, .* got shape \(4, 2\)"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y[:3]}, "x_test must be .* 3 labels of y_test"),
        ({"x": X[:0], "y": Y[:0]}, "at least one"),
        ({"x": X[:, 0], "y": Y}, r"got shape \(5,\)"),
        ({"x": X, "y": Y.astype(float)}, r"y must be one axis of integer labels, got float64 \(5,\)"),
        ({"x": X, "y": Y[:, None]}, r"got int64 \(5, 1\)"),
        ({"x": X.astype(np.int32), "y": Y}, "x must be uint8 or floating, got int32"),
        ({"x": X + np.nan, "y": Y}, "x holds NaN, infinite numbers or some beyond float32"),
        ({"x": X, "y": Y, "x_test": X - np.inf, "y_test": Y}, "x_test holds NaN, infinite numbers"),
        ({"x": X.astype(np.float64) + 1e39, "y": Y}, "x holds NaN, infinite numbers or some beyond float32"),
        ({"x": X, "y": Y, "x_test": X[:, :1], "y_test": Y}, r"x_test are float32 \(1,\), those of x float32 \(2,\)"),
        ({"x": X, "y": Y, "x_test": X.astype(np.uint8), "y_test": Y}, "x_test are uint8"),
        ({"x": X, "y": np.array([0, 0, 1, 1, 2])}, "no class of y has the 3 samples that a test split needs"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, rng, arrays, message):
    file = write(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as error:
        read_npz(file, rng)
    assert str(file) in str(error.value)


class Runs:
    """A pickle of this makes a folder when it is read without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_objects_are_refused_unread(tmp_path, rng):
    trace = tmp_path / "trace"
    with pytest.raises(DataError, match=r"set\.npz is not a readable \.npz file of plain arrays: .*allow_pickle"):
        read_npz(write(tmp_path, x=np.array([Runs(trace)], dtype=object), y=Y), rng)
    assert not trace.exists()


def test_damaged_files(tmp_path, rng):
    file = tmp_path / "set.npz"
    np.savez_compressed(file, x=np.arange(4000, dtype=np.float32).reshape(-1, 2), y=np.zeros(2000, int))
    blob = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("x.npy").header_offset + 60
    flipped = blob[:start] + bytes(byte ^ 0xFF for byte in blob[start : start + 200]) + blob[start + 200 :]
    for damaged in (b"", b"no archive", blob[: len(blob) // 2], flipped):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"set\.npz is not a readable \.npz file"):
            read_npz(file, rng)


def test_a_single_array_is_no_archive(tmp_path, rng):
    file = tmp_path / "set.npz"
    with file.open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(DataError, match=r"one array without a name; write it with numpy\.savez"):
        read_npz(file, rng)


@pytest.mark.parametrize("name", ["absent.npz", "."])
def test_no_file(tmp_path, rng, name):
    with pytest.raises(DataNotFoundError, match=r"there is no file .*; data\.root must name an \.npz file"):
        read_npz(tmp_path / name, rng)


def test_an_archive_of_other_files_is_refused(tmp_path):
    """numpy gives the bytes of what is no array; found by the fuzzer."""
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", b"no array")
        archive.writestr("y.npy", b"none either")
    with pytest.raises(DataError, match="it holds files that are no arrays"):
        read_npz(file, np.random.default_rng(0))
