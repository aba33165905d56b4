"""Threads, instruction sets and the peak."""

import pytest
import torch

from fedsparse import _native
from fedsparse.backends.choose import BACKENDS
from fedsparse.bench.machine import computing_with, multiply_add_peak
from fedsparse.errors import ConfigError


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_every_instruction_set_has_a_peak(isa):
    assert multiply_add_peak(isa) > 1e8


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_operations_are_counted(isa):
    multiply_add = _native.extension().multiply_add
    once = multiply_add(isa, 1, 1)
    assert once % (2 * 4) == 0
    assert multiply_add(isa, 1000, 2) == 2000 * once


def test_threads_and_instruction_set_hold_for_the_block():
    torch.set_num_threads(2)
    before = BACKENDS["cpu"]
    last = list(_native.instruction_sets())[-1]
    with computing_with(threads=1, isa=last) as isa:
        assert (isa, torch.get_num_threads(), BACKENDS["cpu"].isa) == (last, 1, last)
    assert torch.get_num_threads() == 2
    assert BACKENDS["cpu"] is before
    with computing_with() as isa:
        assert isa == next(iter(_native.instruction_sets()))


@pytest.mark.parametrize(("settings", "message"), [({"threads": 0}, "threads = 0"), ({"isa": "mmx"}, "isa = 'mmx'")])
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message), computing_with(**settings):
        pass
