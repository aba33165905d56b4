"""What clients keep, as it travels for a checkpoint."""

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import WireError
from fedsparse.federated.store import Kept
from fedsparse.flower.kept import pack_kept, pack_topology, token, unpack_kept, unpack_topology
from fedsparse.pattern import Topology
from fedsparse.wire import Payload

TOPOLOGY = Topology.from_masks({"a.weight": torch.tensor([[True, False], [False, True]])})
MEMORY = wire.encode(Payload("memory", 0, extras={"b": torch.arange(3), "a": {"deep": 1.5}}))


@pytest.mark.parametrize("memory", [b"", MEMORY])
@pytest.mark.parametrize("topology", [None, TOPOLOGY, Topology()])
def test_what_was_packed_comes_back_to_the_bit(memory, topology):
    kept = Kept("" if topology is None else topology.digest, memory)
    assert unpack_kept(pack_kept(kept, topology)) == (kept, topology)


def test_a_topology_comes_back():
    assert unpack_topology(pack_topology(TOPOLOGY)) == TOPOLOGY


def test_damage_is_noticed():
    with pytest.raises(WireError):
        unpack_kept(pack_kept(Kept("", MEMORY), None)[:-1])


def test_tokens_tell_contents_apart_and_nothing_has_none():
    contents = [Kept(), Kept("ab"), Kept("ab", MEMORY), Kept("", MEMORY), Kept("a", b"b")]
    assert len({token(kept) for kept in contents}) == len(contents)
    assert token(Kept()) == ""
    assert token(Kept("ab")) == token(Kept("ab"))
