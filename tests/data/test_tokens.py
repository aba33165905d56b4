"""Texts as tokens and blocks."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.data.task import IGNORED
from fedsparse.data.tokens import blocks, tokenizer
from fedsparse.errors import DataError, DataNotFoundError

encode, VOCABULARY = tokenizer("bytes")


def cut(*texts, context=4, truncate=False):
    return blocks(texts, encode, VOCABULARY, context=context, truncate=truncate)


def test_bytes_are_those_of_utf8():
    assert encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert encode("").tolist() == []
    assert VOCABULARY == 256


def test_blocks_by_hand():
    data = cut("abcdefg", "", "x", "yz")
    x, y = data.batch(torch.arange(3))
    a, end = ord("a"), IGNORED
    assert x.tolist() == [[a, a + 1, a + 2, a + 3], [a + 4, a + 5, a + 6, 0], [ord("y"), ord("z"), 0, 0]]
    assert y.tolist() == [[a + 1, a + 2, a + 3, a + 4], [a + 5, a + 6, end, end], [ord("z"), end, end, end]]
    assert (x.dtype, y.dtype) == (torch.int64, torch.int64)
    assert data.story.tolist() == [0, 0, 3]
    assert data.shape == (4,)
    assert data.num_classes == 256
    assert data.is_text


def test_truncated_texts_keep_their_first_block():
    data = cut("abcdefg", "uvwxyz", truncate=True)
    assert data.story.tolist() == [0, 1]
    assert data.batch(torch.tensor([1]))[1].tolist() == [list(b"vwxy")]


def test_no_text_gives_no_blocks():
    data = cut("", "q")
    assert len(data) == 0
    assert data.shape == (4,)


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=5), context=st.integers(1, 9))
def test_every_token_but_the_first_is_predicted_once(texts, context):
    data = cut(*texts, context=context)
    for number, text in enumerate(texts):
        own = data.subset((data.story == number).nonzero()[:, 0])
        x, y = own.batch(torch.arange(len(own)))
        tokens = list(text.encode())
        assert y[y != IGNORED].tolist() == tokens[1:]
        assert x[y != IGNORED].tolist() == tokens[:-1]


# ---- byte-level BPE
def byte_pair_files(folder):
    """Three letters and two merges."""
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    return str(folder)


def test_byte_pairs_are_merged(tmp_path):
    pytest.importorskip("tokenizers", reason="GPT-2's tokens come with tokenizers")
    pairs, size = tokenizer(byte_pair_files(tmp_path))
    assert size == 5
    assert pairs("abcabba").tolist() == [4, 3, 1, 0]
    assert pairs("abc").dtype == np.int32
    (tmp_path / "merges.txt").write_text("a\n")
    with pytest.raises(DataError, match="are not a vocabulary and its merges"):
        tokenizer(str(tmp_path))


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"come with the tokenizers package: pip install 'fedsparse\[text\]'"):
        tokenizer(byte_pair_files(tmp_path))


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_folder_without_the_files(tmp_path, missing):
    folder = byte_pair_files(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DataNotFoundError, match=r"should be 'bytes' or a folder with vocab.json and merges.txt"):
        tokenizer(folder)
