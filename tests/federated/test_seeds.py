"""Generators by name: stable for ever, and independent of each other."""

import hashlib
import subprocess
import sys
from itertools import product

import pytest
import torch

from fedsparse.federated import seeds


def test_a_seed_is_the_hash_of_its_names():
    # Every result on record depends on these numbers; they must never change.
    digest = hashlib.blake2b(b"(0, 1, 2, 'batches')", digest_size=8).digest()
    assert seeds.generator(0, 1, 2, "batches").initial_seed() == int.from_bytes(digest, "little") >> 1
    assert seeds.generator(0, 1, 2, "batches").initial_seed() == 1210487007306984941
    assert seeds.cohort(3, 0, clients=10, size=4) == [0, 2, 7, 9]
    assert seeds.cohort(3, 1, clients=10, size=4) == [2, 3, 4, 8]


def test_another_process_draws_the_same():
    program = "from fedsparse.federated import seeds; print(seeds.generator(5, 'mask').initial_seed())"
    answers = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": salt}
        ).stdout.strip()
        for salt in ("1", "2")
    }
    assert answers == {str(seeds.generator(5, "mask").initial_seed())}


def test_every_name_counts():
    names = list(product((0, 1), (0, 1), (0, 1), "ab"))
    assert len({seeds.generator(*name).initial_seed() for name in names}) == len(names)
    assert seeds.generator(1, 23).initial_seed() != seeds.generator(12, 3).initial_seed()
    assert seeds.generator("1").initial_seed() != seeds.generator(1).initial_seed()


def test_a_generator_is_fresh_and_leaves_the_others_alone():
    first = seeds.generator(0, "a")
    before = torch.rand(4, generator=seeds.generator(0, "b"))
    drawn = torch.rand(1000, generator=first)
    assert torch.equal(before, torch.rand(4, generator=seeds.generator(0, "b")))
    assert torch.equal(drawn, torch.rand(1000, generator=seeds.generator(0, "a")))
    other = torch.rand(1000, generator=seeds.generator(0, "b"))
    assert abs(float(torch.corrcoef(torch.stack([drawn, other]))[0, 1])) < 0.15


def test_the_global_generator_is_not_touched():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    seeds.generator(0, "a")
    seeds.cohort(0, 0, clients=5, size=2)
    assert torch.equal(torch.rand(3), expected)


def test_what_a_network_draws_follows_its_generator_and_the_rest_goes_on():
    def drawn(*names):
        with seeds.network_randomness(seeds.generator(*names), "cpu"):
            return torch.rand(3).tolist()

    torch.manual_seed(1)
    undisturbed = torch.rand(6)
    torch.manual_seed(1)
    first = torch.rand(3)
    one, again, other = drawn(7, 0), drawn(7, 0), drawn(7, 1)
    assert one == again != other
    with pytest.raises(RuntimeError), seeds.network_randomness(seeds.generator(7, 2), "cpu"):
        torch.rand(2) @ torch.rand(3)  # an error in the block restores as well
    assert torch.equal(torch.cat([first, torch.rand(3)]), undisturbed)


def test_cohorts_are_ascending_without_repetition():
    for round in range(50):
        cohort = seeds.cohort(1, round, clients=9, size=4)
        assert len(set(cohort)) == 4
        assert cohort == sorted(cohort)
        assert 0 <= cohort[0] <= cohort[-1] < 9


def test_every_client_is_drawn_equally_often():
    drawn = [client for round in range(900) for client in seeds.cohort(2, round, clients=9, size=3)]
    counts = torch.bincount(torch.tensor(drawn), minlength=9)
    # 300 expected, standard deviation 14
    assert counts.min() > 240
    assert counts.max() < 360


def test_a_cohort_is_at_most_everyone():
    assert seeds.cohort(0, 3, clients=4, size=4) == seeds.cohort(0, 3, clients=4, size=9) == [0, 1, 2, 3]
    assert seeds.cohort(0, 0, clients=20, size=5) != seeds.cohort(0, 1, clients=20, size=5)
    assert seeds.cohort(0, 0, clients=20, size=5) != seeds.cohort(1, 0, clients=20, size=5)
