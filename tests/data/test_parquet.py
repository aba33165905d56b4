import io
import sys

import numpy as np
import pytest

from fedsparse.data.cifar import CIFAR10, CIFAR100
from fedsparse.data.parquet import find_shards, read_parquet
from fedsparse.errors import DataError, DataNotFoundError

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
Image = pytest.importorskip("PIL.Image", reason="needs pillow")


def pixels(count, side=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def encode(picture, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


def write(file, pictures, *, column="img", **labels):
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [p if p is None else {"bytes": p, "path": None} for p in pictures]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    parquet.write_table(pyarrow.table({column: pyarrow.array(rows, kind), **labels}), file)
    return file


@pytest.mark.parametrize("column", ["img", "image"])
def test_pictures_and_labels(tmp_path, column):
    expected = pixels(3)
    file = write(tmp_path / "a.parquet", [encode(p) for p in expected], column=column, label=[4, 0, 9])
    x, y = read_parquet(file, ("fine_label", "label"), 4)
    assert x.dtype == np.uint8
    assert x.flags.c_contiguous
    assert np.array_equal(x, expected.transpose(0, 3, 1, 2))
    assert y.dtype == np.int64
    assert y.tolist() == [4, 0, 9]


def test_the_first_label_column_present_is_read(tmp_path):
    file = write(tmp_path / "a.parquet", [encode(pixels(1)[0])], label=[1], fine_label=[55])
    assert read_parquet(file, ("fine_label", "label"), 4)[1].tolist() == [55]
    assert read_parquet(file, ("label",), 4)[1].tolist() == [1]


def test_a_grey_picture_gets_three_equal_channels(tmp_path):
    grey = pixels(1)[0, :, :, 0]
    x, _ = read_parquet(write(tmp_path / "a.parquet", [encode(grey)], label=[0]), ("label",), 4)
    assert np.array_equal(x[0], np.stack([grey] * 3))


def test_shards_are_read_in_order(tmp_path):
    for split, numbers in (("train", (0, 1, 2)), ("test", (0,))):
        for number in numbers:
            file = tmp_path / f"cifar10/{split}-{number:05d}-of-{len(numbers):05d}.parquet"
            write(file, [encode(p) for p in pixels(2, 32, number)], label=[number, number + 1])
    x, y, x_test, y_test = CIFAR10.read(tmp_path)
    assert y.tolist() == [0, 1, 1, 2, 2, 3]
    assert np.array_equal(x[2:4], pixels(2, 32, 1).transpose(0, 3, 1, 2))
    assert np.array_equal(x_test, x[:2])
    assert y_test.tolist() == [0, 1]
    assert np.array_equal(CIFAR10.read(tmp_path / "cifar10")[0], x)
    with pytest.raises(DataNotFoundError):
        CIFAR100.read(tmp_path)


def test_a_missing_shard_is_noticed(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [], label=pyarrow.array([], pyarrow.int64()))
    with pytest.raises(
        DataError, match=r"holds 1 files train-\*.parquet, but train-00000-of-00002.parquet is one of 2"
    ):
        find_shards(tmp_path, "train")
    assert find_shards(tmp_path, "test") == []


def test_files_without_numbers_are_all_taken(tmp_path):
    for name in ("train-b.parquet", "train-a.parquet", "training.parquet"):
        (tmp_path / name).touch()
    assert [file.name for file in find_shards(tmp_path, "train")] == ["train-a.parquet", "train-b.parquet"]


def test_columns_must_be_there(tmp_path):
    file = write(tmp_path / "a.parquet", [], column="photo", label=pyarrow.array([], pyarrow.int64()))
    with pytest.raises(DataError, match="has columns photo, label; expected img or image, and label"):
        read_parquet(file, ("label",), 4)
    file = write(tmp_path / "b.parquet", [], kind=pyarrow.array([], pyarrow.int64()))
    with pytest.raises(DataError, match="has columns img, kind; expected img or image, and fine_label or label"):
        read_parquet(file, ("fine_label", "label"), 4)


@pytest.mark.parametrize(
    ("labels", "message"), [(["cat"], "it holds string with 0 gaps"), ([None], "gaps"), ([1.0], "it holds double")]
)
def test_labels_must_be_whole_numbers(tmp_path, labels, message):
    file = write(tmp_path / "a.parquet", [encode(pixels(1)[0])], label=labels)
    with pytest.raises(DataError, match=f"column label must hold a whole number in every row, .*{message}"):
        read_parquet(file, ("label",), 4)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_truncated_picture_names_its_row(tmp_path, kind):
    good, cut = encode(pixels(1)[0]), encode(pixels(1)[0], kind)[:-30]
    file = write(tmp_path / "a.parquet", [good, cut], label=[0, 1])
    with pytest.raises(DataError, match=r"a\.parquet: the picture of row 1 cannot be used"):
        read_parquet(file, ("label",), 4)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"no picture", "picture of row 0 cannot be used: cannot identify image file"),
        (b"", "picture of row 0 cannot be used"),
        (None, "row 0 holds no encoded picture; expected a struct with bytes"),
        (encode(pixels(1, 5)[0]), "it is 5 x 5 pixels, expected 4 x 4"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, picture, message):
    with pytest.raises(DataError, match=message):
        read_parquet(write(tmp_path / "a.parquet", [picture], label=[0]), ("label",), 4)


def test_a_column_of_other_things_is_no_picture(tmp_path):
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"img": ["a.png"], "label": [0]}), file)
    with pytest.raises(DataError, match="row 0 holds no encoded picture"):
        read_parquet(file, ("label",), 4)


def test_a_damaged_file(tmp_path):
    file = write(tmp_path / "a.parquet", [encode(p) for p in pixels(3)], label=[0, 1, 2])
    blob = file.read_bytes()
    for damaged in (b"", b"PAR1", blob[:-5], blob[: len(blob) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet is not a readable parquet file"):
            read_parquet(file, ("label",), 4)


def test_a_column_whose_name_is_no_text(tmp_path):
    file = write(tmp_path / "a.parquet", [encode(pixels(1)[0])], label=[1], extra=[0])
    file.write_bytes(file.read_bytes().replace(b"extra", b"\xffxtra"))
    with pytest.raises(DataError, match=r"not a readable parquet file: .*utf-8"):
        read_parquet(file, ("label",), 4)


@pytest.mark.parametrize(("module", "named"), [("pyarrow", "pyarrow"), ("PIL", "pillow")])
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, module, named):
    file = write(tmp_path / "a.parquet", [encode(pixels(1)[0])], label=[0])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"a.parquet needs {named}: pip install 'fedsparse\[data\]'"):
        read_parquet(file, ("label",), 4)
