import codecs
import os
import pickle

import numpy as np
import pytest

from fedsparse.data.batches import read_batch
from fedsparse.errors import DataError


def pixels(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)


def write(tmp_path, batch, protocol=2):
    file = tmp_path / "data_batch_1"
    file.write_bytes(batch if isinstance(batch, bytes) else pickle.dumps(batch, protocol))
    return file


def batch_of(count, **changes):
    return {b"data": pixels(count), b"labels": list(range(count)), b"filenames": [b"a.png"] * count} | {
        key.encode(): value for key, value in changes.items()
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pictures_and_labels(tmp_path, protocol, order):
    data = np.array(pixels(4), order=order)
    x, y = read_batch(write(tmp_path, batch_of(4, data=data), protocol), "labels")
    assert x.dtype == np.uint8
    assert np.array_equal(x, data.reshape(4, 3, 32, 32))
    assert y.dtype == np.int64
    assert y.tolist() == [0, 1, 2, 3]


def python2_batch():
    """As Python 2 with numpy 1 wrote it: names of numpy.core, text strings for bytes."""
    raw = pixels(1).tobytes()
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(raw).to_bytes(4, "little") + raw + b"tbU\x06labels]K\x06au."
    )


def test_a_batch_of_python_2(tmp_path):
    assert np.array_equal(pickle.loads(python2_batch(), encoding="bytes")[b"data"], pixels(1))
    x, y = read_batch(write(tmp_path, python2_batch()), "labels")
    assert np.array_equal(x, pixels(1).reshape(1, 3, 32, 32))
    assert y.tolist() == [6]


class Runs:
    """A pickle of this makes a folder when it is read without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path, protocol):
    trace = tmp_path / "trace"
    file = write(tmp_path, {b"labels": [1], b"data": Runs(trace)}, protocol)
    with pytest.raises(DataError, match=r"data_batch_1 is not a CIFAR batch .*: it asks for (posix|nt)\.mkdir, but"):
        read_batch(file, "labels")
    assert not trace.exists()
    pickle.loads(file.read_bytes())
    assert trace.exists()  # the pickle did hold what it should


@pytest.mark.parametrize(
    "named",
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("os", "system"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "scalar"),
        ("_codecs", "decode"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 4])
def test_every_other_name_is_refused(tmp_path, named, protocol):
    module, name = named
    asked = f"c{module}\n{name}\n.".encode()
    if protocol == 4:
        texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in named)
        asked = b"\x80\x04" + texts + b"\x93."
    with pytest.raises(DataError, match=rf"it asks for {module}\.{name}, but only numpy arrays of bytes"):
        read_batch(write(tmp_path, asked), "labels")


@pytest.mark.parametrize(
    "name", [b"_codecs\nencode", b"numpy\nndarray", b"numpy\ndtype", b"numpy._core.multiarray\n_reconstruct"]
)
def test_what_stands_in_for_a_name_cannot_be_written_to(tmp_path, name):
    """BUILD with the state (None, {"__defaults__": (1, 2)}) sets that attribute of an ordinary function."""
    written = b"\x80\x02c" + name + b"\nN}X\x0c\x00\x00\x00__defaults__K\x01K\x02\x86s\x86b."
    with pytest.raises(DataError, match=r"it writes to a function|missing 1 required positional argument"):
        read_batch(write(tmp_path, written), "labels")
    read_batch(write(tmp_path, batch_of(2)), "labels")


def test_only_arrays_of_bytes_are_built(tmp_path):
    for array, found in ((np.array([{}], dtype=object), "O8"), (np.zeros((1, 3072), np.float32), "f4")):
        with pytest.raises(DataError, match=f"array of type .*{found}.*, expected 'u1'"):
            read_batch(write(tmp_path, batch_of(1, data=array)), "labels")


def test_an_array_is_not_taken_at_its_word(tmp_path):
    # the shape of the state says more bytes than follow
    blob = python2_batch().replace(b"M\x00\x0c\x86", b"M\x00\x0d\x86")
    with pytest.raises(DataError, match="cannot reshape array of size 3072"):
        read_batch(write(tmp_path, blob), "labels")


@pytest.mark.parametrize("length", [0, 1, 40, 3000, -1])
def test_truncated(tmp_path, length):
    blob = pickle.dumps(batch_of(2), 2)[:length]
    with pytest.raises(DataError, match="data_batch_1 is not a CIFAR batch"):
        read_batch(write(tmp_path, blob), "labels")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "it holds list"),
        ({}, "it holds dict"),
        ({b"data": pixels(1), b"fine_labels": [1]}, "a list b'labels', it holds b'data', b'fine_labels'"),
        (batch_of(2, data=[1, 2]), "should hold a dictionary with an array b'data'"),
        (batch_of(2, labels="ab"), "a list b'labels'"),
        (batch_of(2, labels=[1]), r"pictures of shape \(1, 3072\), one for each label; it holds \(2, 3072\)"),
        (batch_of(2, data=pixels(2)[:, :3000]), r"it holds \(2, 3000\)"),
        (batch_of(2, labels=[1, 2.5]), "labels b'labels' must be whole numbers"),
        (batch_of(2, labels=[1, None]), "must be whole numbers"),
    ],
)
def test_other_contents(tmp_path, batch, message):
    with pytest.raises(DataError, match=message):
        read_batch(write(tmp_path, batch), "labels")


@pytest.mark.parametrize("memo", [b"r\x00\x00\x00\x10", b"p268435456\n"], ids=["binary", "text"])
def test_a_number_of_what_is_remembered_is_no_reason_for_memory(tmp_path, memo):
    """Python would make room for 268 million objects, 2 GiB."""
    blob = pickle.dumps(batch_of(1), 2)
    with pytest.raises(
        DataError, match=f"it numbers what it remembers up to 268435456 in {len(blob) + len(memo)} bytes"
    ):
        read_batch(write(tmp_path, blob[:3] + memo + blob[3:]), "labels")


def test_an_array_without_contents(tmp_path):
    blob = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87RU\x06labels]u."
    )
    with pytest.raises(DataError, match="it holds an empty array"):
        read_batch(write(tmp_path, blob), "labels")


def test_text_of_another_encoding_stays_text(tmp_path):
    # a call of _codecs.encode with another encoding cannot reach the machine's codecs
    call = b"\x80\x02c_codecs\nencode\nX\x02\x00\x00\x00abX\x05\x00\x00\x00rot13\x86R."
    assert codecs.encode("ab", "rot13") == "no"
    with pytest.raises(DataError, match="it holds bytes"):
        read_batch(write(tmp_path, call), "labels")
