import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedsparse.data.idx import read_idx, read_idx_folder
from fedsparse.errors import DataError, DataNotFoundError

STEMS = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder: Path, *, zipped=True, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "train_images": idx(np.arange(24).reshape(3, 2, 4)),
        "train_labels": idx([2, 0, 1]),
        "test_images": idx(np.full((1, 2, 4), 9)),
        "test_labels": idx([1]),
    } | changes
    for stem, blob in zip(STEMS, contents.values(), strict=True):
        if zipped:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(blob))
        else:
            (folder / stem).write_bytes(blob)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", "."])
def test_the_four_files(tmp_path, place, zipped):
    write(tmp_path / place, zipped=zipped)
    x, y, x_test, y_test = read_idx_folder(tmp_path, "MNIST")
    assert np.array_equal(x, np.arange(24).reshape(3, 1, 2, 4))
    assert y.tolist() == [2, 0, 1]
    assert x_test.shape == (1, 1, 2, 4)
    assert (x_test == 9).all()
    assert y_test.tolist() == [1]


def test_the_folder_of_the_set_comes_first(tmp_path):
    write(tmp_path / "raw", train_labels=idx([0, 0, 0]))
    write(tmp_path / "FashionMNIST/raw")
    assert read_idx_folder(tmp_path, "FashionMNIST")[1].tolist() == [2, 0, 1]
    assert read_idx_folder(tmp_path, "MNIST")[1].tolist() == [0, 0, 0]


def test_a_missing_file_names_the_places_and_the_files(tmp_path):
    write(tmp_path / "MNIST/raw")
    (tmp_path / "MNIST/raw" / f"{STEMS[3]}.gz").unlink()
    with pytest.raises(DataNotFoundError) as error:
        read_idx_folder(tmp_path, "MNIST")
    for part in (*STEMS, str(tmp_path / "MNIST/raw"), str(tmp_path / "raw"), "set data.root"):
        assert part in str(error.value)


def test_numbers_of_pictures_and_labels_must_agree(tmp_path):
    write(tmp_path, test_labels=idx([1, 1]))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz has 1 pictures but .* has 2 labels"):
        read_idx_folder(tmp_path, "MNIST")


GOOD = idx(np.arange(24).reshape(3, 2, 4))


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "found nothing in 0 bytes"),
        (GOOD[:10], "expected at least 16 bytes starting with 00000803, found 00000803 in 10 bytes"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "found 00000d03$"),  # floats
        (idx([1, 2, 3, 4, 5, 6, 7, 8, 9]), "found 00000801$"),  # labels in place of pictures
        (GOOD[:-1], r"announces 24 bytes of shape \(3, 2, 4\) but holds 23"),
        (GOOD + b"\x00", "announces 24 bytes .* but holds more;"),
        # 2**64 bytes: a product in 64 bits would wrap to the 0 bytes that follow
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 1 << 31, 1 << 31, 4), "announces 18446744073709551616 bytes"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_contents(tmp_path, blob, message, suffix):
    file = tmp_path / f"images{suffix}"
    file.write_bytes(gzip.compress(blob) if suffix else blob)
    with pytest.raises(DataError, match=message) as error:
        read_idx(file, 3)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "bad checksum", "bad stream", "empty"])
def test_damaged_gzip(tmp_path, damage):
    blob = gzip.compress(GOOD)
    broken = {
        "truncated": blob[:-12],
        "no gzip": GOOD,
        "bad checksum": blob[:-8] + bytes(4) + blob[-4:],
        "bad stream": blob[:10] + b"\xff" * 8 + blob[18:],
        "empty": b"\x1f",
    }[damage]
    file = tmp_path / "images.gz"
    file.write_bytes(broken)
    with pytest.raises(DataError, match=r"images\.gz is damaged or not gzip .*fetch it again"):
        read_idx(file, 3)


def test_a_header_is_no_reason_for_memory(tmp_path):
    file = tmp_path / "pictures"
    file.write_bytes(struct.pack(">IIII", 0x0803, 1 << 10, 1 << 11, 1 << 11) + bytes(8))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"announces 4294967296 bytes of shape .* but holds 8; fetch it again"):
        read_idx(file, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_what_follows_the_announced_bytes_is_not_unpacked(tmp_path):
    """256 MiB of zeros in a second gzip member of 255 KB; found by the fuzzer."""
    file = tmp_path / "images.gz"
    file.write_bytes(gzip.compress(GOOD) + gzip.compress(bytes(1 << 28), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"announces 24 bytes of shape \(3, 2, 4\) but holds more"):
            read_idx(file, 3)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
