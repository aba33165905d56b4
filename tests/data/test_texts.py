"""Readers of text sets, on files of a few lines and on the real ones."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsparse.data import Cutting, load
from fedsparse.errors import ConfigError, DataError, DataNotFoundError

STORIES = [f"Story {n}.\n\nIt ends." for n in range(20)]


def rng(seed=0):
    return np.random.default_rng(seed)


def texts(data):
    """The texts that blocks were cut from, without their first characters."""
    _, y = data.batch(torch.arange(len(data)))
    return [
        bytes(y[data.story == number][y[data.story == number] >= 0].tolist()).decode() for number in data.story.unique()
    ]


def stories(root, seed=0, **asked):
    return load("tinystories", root, generator=rng(seed), cutting=Cutting(context=8), **asked)


@pytest.fixture
def excerpt(tmp_path):
    (tmp_path / "tinystories").mkdir()
    (tmp_path / "tinystories/tiny_stories_excerpt.txt").write_text("\n".join(STORIES) + "\n")
    return tmp_path


def test_stories_of_the_excerpt_end_at_a_single_line_end(excerpt):
    train, test = stories(excerpt)
    assert (len(texts(train)), len(texts(test))) == (18, 2)
    assert sorted(texts(train) + texts(test)) == sorted(story[1:] for story in STORIES)
    assert texts(test) == texts(stories(excerpt)[1])
    assert texts(test) != texts(stories(excerpt, seed=1)[1])


def test_published_stories_come_with_their_test_set(tmp_path):
    (tmp_path / "TinyStories-train.txt").write_text("One.\nTwo.\n<|endoftext|>\nThree.\n<|endoftext|>\n")
    (tmp_path / "TinyStories-valid.txt").write_text("Four.")
    train, test = stories(tmp_path)
    assert texts(train) == ["ne.\nTwo.", "hree."]
    assert texts(test) == ["our."]
    (tmp_path / "TinyStories-valid.txt").unlink()
    with pytest.raises(DataNotFoundError, match=r"there is no .*TinyStories-valid.txt"):
        stories(tmp_path)


def test_limits_count_texts(excerpt):
    train, test = stories(excerpt, train_limit=5, test_limit=1)
    assert (len(texts(train)), len(texts(test))) == (5, 1)
    assert set(texts(train)) < {story[1:] for story in STORIES}
    with pytest.raises(ConfigError, match="limit of texts must be at least 1, got 0"):
        stories(excerpt, train_limit=0)


def test_the_last_tenth_of_the_speeches_is_for_testing(tmp_path):
    speeches = [f"Speaker {n}:\nLine {n}." for n in range(10)]
    (tmp_path / "input.txt").write_text("\n\n".join(speeches))
    train, test = load("tinyshakespeare", tmp_path, generator=rng())
    assert texts(train) == [speech[1:] for speech in speeches[:9]]
    assert texts(test) == [speeches[9][1:]]


def test_articles_begin_with_a_heading(tmp_path):
    article = " = {} = \n \n Text . \n = 1 and k = \n holds . \n \n = = Section = = \n \n More . \n"
    (tmp_path / "valid.txt").write_text(" \n" + article.format("A") + article.format("B , c"))
    (tmp_path / "test.txt").write_text(" \n" + article.format("D"))
    train, test = load("wikitext2", tmp_path, generator=rng())
    assert [text[:12] for text in texts(train)] == [" A = \n \n Tex", " B , c = \n \n"]
    assert [text[-6:] for text in texts(train) + texts(test)] == ["More ."] * 3
    (tmp_path / "train.txt").write_text(" \n" + article.format("E"))
    assert len(texts(load("wikitext2", tmp_path, generator=rng())[0])) == 1


def test_roles_are_cut_in_time(tmp_path):
    roles = [{"speeches": ["abcde", "fgh"]}, {"speeches": ["x"]}, {"speeches": ["0123456789"]}]
    (tmp_path / "roles.jsonl").write_text("\n".join(map(json.dumps, roles)) + "\n")
    train, test = load("federated_shakespeare", tmp_path, generator=rng(), cutting=Cutting(context=3))
    assert texts(train) == ["bcde\nf", "1234567"]  # 80 % of 9 and 10 characters
    assert texts(test) == ["h", "9"]
    assert train.story.unique().tolist() == test.story.unique().tolist() == [0, 2]


@pytest.mark.parametrize("line", ["{", "[]", '{"speeches": "a"}', '{"speeches": [1]}', "{}"])
def test_damaged_roles_are_named(tmp_path, line):
    (tmp_path / "roles.jsonl").write_text('{"speeches": ["abc"]}\n' + line)
    with pytest.raises(DataError, match=r"roles.jsonl, line 2: expected an object with a list 'speeches'"):
        load("federated_shakespeare", tmp_path, generator=rng())


def test_what_is_missing_or_does_not_fit(tmp_path, excerpt):
    with pytest.raises(DataNotFoundError, match=r"input.txt was not found in .*; set data.root to a folder above it"):
        load("tinyshakespeare", tmp_path, generator=rng())
    with pytest.raises(DataNotFoundError, match=r"'tinystories' is read from disk; set data\.root"):
        load("tinystories", None, generator=rng())
    with pytest.raises(ConfigError, match="image_size=8 needs pictures, tinystories is a text set"):
        stories(excerpt, image_size=8)
    (tmp_path / "input.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load("tinyshakespeare", tmp_path, generator=rng())
    (tmp_path / "input.txt").write_text("abc")
    with pytest.raises(DataError, match="gives 1 training and 0 test blocks; each needs one"):
        load("tinyshakespeare", tmp_path, generator=rng())


# ---- the real sets, where they are
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file", "counts"),
    [
        # texts with two bytes or more to train on and to test on
        ("tinystories", "text/tinystories/tiny_stories_excerpt.txt", (987, 110)),
        ("tinyshakespeare", "text/tinyshakespeare/input.txt", (6500, 722)),
        ("wikitext2", "text/wikitext-2/valid.txt", (60, 60)),
        ("federated_shakespeare", "federated_shakespeare/roles.jsonl", (1347, 1341)),
    ],
)
def test_real_sets(name, file, counts):
    root = Path(os.environ.get("FEDSPARSE_DATA") or Path(__file__).parents[3] / "shared/data")
    if not (root / file).is_file():
        pytest.skip(f"no {file} in {root}; FEDSPARSE_DATA names the folder")
    train, test = load(name, root, generator=rng())
    assert train.shape == test.shape == (256,)
    assert counts == tuple(len(data.story.unique()) for data in (train, test))
