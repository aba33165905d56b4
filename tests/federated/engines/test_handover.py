"""A plan on disk: the same samples to the bit, and not in the pickle."""

from dataclasses import replace

import pytest
import torch

from fedsparse.errors import ConfigError
from fedsparse.federated.engines.handover import read_plan, write_plan
from tests.federated.small_run import SmallNet, go, same_bits, small_data, small_method, small_plan


@pytest.fixture
def plan():
    return small_plan(small_method("fedtiny"), rounds=2, sizes=(20, 0, 30), per_round=3, public=small_data((12,)).train)


@pytest.fixture
def copy(plan, tmp_path):
    write_plan(plan, tmp_path)
    return read_plan(tmp_path)


def test_every_sample_comes_over(plan, copy):
    for mine, theirs in (
        (plan.data.train, copy.data.train),
        (plan.data.test, copy.data.test),
        (plan.public, copy.public),
    ):
        assert torch.equal(mine.x, theirs.x)
        assert torch.equal(mine.y, theirs.y)
        assert (mine.x.dtype, mine.y.dtype, mine.num_classes) == (theirs.x.dtype, theirs.y.dtype, theirs.num_classes)
    assert [c.tolist() for c in copy.data.clients] == [c.tolist() for c in plan.data.clients]
    assert (copy.method, copy.client, copy.seed, copy.rounds) == (plan.method, plan.client, plan.seed, plan.rounds)


def test_a_run_of_the_copy_has_the_same_bits(plan, copy):
    assert same_bits(go(plan), go(copy))


def test_samples_are_mapped_not_pickled(plan, tmp_path):
    write_plan(plan, tmp_path)
    samples = sum(t.numel() * t.element_size() for d in (plan.data.train, plan.data.test) for t in (d.x, d.y))
    assert (tmp_path / "plan.tensors").stat().st_size >= samples
    assert (tmp_path / "plan.pickle").stat().st_size < 5000


def test_a_tensor_used_twice_is_one_tensor(plan, tmp_path):
    write_plan(replace(plan, public=plan.data.train), tmp_path)
    copy = read_plan(tmp_path)
    assert copy.public is copy.data.train


def test_writing_to_a_sample_stays_in_the_process(plan, copy, tmp_path):
    copy.data.train.x[0] = 7.0
    assert torch.equal(read_plan(tmp_path).data.train.x, plan.data.train.x)


def test_what_cannot_be_pickled_is_refused_by_name(tmp_path):
    plan = small_plan(small_method("static"), build_model=lambda: SmallNet())
    with pytest.raises(ConfigError, match=r"lambda.*; define its method and model at the top of a module, or use"):
        write_plan(plan, tmp_path)
