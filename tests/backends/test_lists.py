"""Lists that backends derive from patterns."""

import gc
from typing import NamedTuple

import torch

from fedsparse.backends.lists import Change, PatternLists
from fedsparse.pattern import Pattern


class Columns(NamedTuple):
    """A list whose size follows from the first row's count, and a number that goes with it."""

    rows: torch.Tensor
    first: int


def columns(pattern):
    count = int(pattern.row_start[1])
    return Columns(pattern.column[:count].to(torch.int64), count)


def pattern(*rows):
    return Pattern.from_mask(torch.tensor(rows).bool())


def test_lists_are_built_once_for_a_pattern_and_a_key():
    lists, one = PatternLists(), pattern([1, 0, 1], [0, 1, 0])
    found = lists.get(one, ("a",), columns)
    assert found.rows.tolist() == [0, 2]
    assert lists.get(one, ("a",), columns) is found
    assert lists.get(one, ("b",), columns) is not found
    assert len(lists) == 1


def test_lists_go_with_their_pattern():
    lists, one = PatternLists(), pattern([1, 0], [0, 1])
    lists.get(one, (), columns)
    del one
    gc.collect()
    assert len(lists) == 0


def test_lists_of_equal_size_are_written_in_place():
    lists, one = PatternLists(), pattern([1, 0, 1], [0, 1, 0])
    kept = lists.get(one, (), columns)
    place = kept.rows.data_ptr()
    assert lists.rewrite([Change(one.column, pattern([0, 1, 1], [1, 0, 0]))]) == [True]
    assert kept.rows.tolist() == [1, 2]
    assert [tensor.data_ptr() for tensor in lists.tensors(one.column)] == [place]


def test_nothing_is_written_where_a_list_would_need_another_size():
    lists, one = PatternLists(), pattern([1, 0, 1], [0, 1, 0])
    kept = lists.get(one, (), columns)
    assert lists.rewrite([Change(one.column, pattern([0, 1, 0], [1, 0, 1]))]) == [False]
    assert kept.rows.tolist() == [0, 2]


def test_there_is_nothing_to_write_where_nothing_was_built():
    lists, one = PatternLists(), pattern([1, 0], [0, 1])
    assert lists.rewrite([Change(one.column, one)]) == [True]
    assert len(lists) == 0
