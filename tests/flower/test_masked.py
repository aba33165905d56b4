"""Arrays under masks as one message."""

import numpy as np
import pytest
import torch

from fedsparse import wire
from fedsparse.errors import PatternError, WireError
from fedsparse.flower.masked import pack_arrays, unpack_arrays
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import Payload

MASK = torch.tensor([[True, False, True], [False, False, True]])
TOPOLOGY = Topology.from_masks({"fc.weight": MASK})


@pytest.fixture
def arrays(rng):
    weight = rng.normal(size=(2, 3)).astype(np.float32)
    weight[0, 2] = 0.0  # kept all the same
    return {
        "fc.bias": rng.normal(size=2).astype(np.float32),
        "fc.weight": weight,
        "bn.num_batches_tracked": np.array(7),
        "bn.double": rng.normal(size=(2, 2)),
    }


def test_arrays_come_back_in_their_order_with_zeros_where_they_are_masked(arrays):
    found, topology = unpack_arrays(pack_arrays(arrays, TOPOLOGY))
    assert list(found) == list(arrays)
    assert topology == TOPOLOGY
    for name, array in arrays.items():
        expected = array * MASK.numpy() if name == "fc.weight" else array
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_masks_are_those_that_were_sent_not_where_zeros_are(arrays):
    arrays["fc.weight"][:] = 0.0
    _, topology = unpack_arrays(pack_arrays(arrays, TOPOLOGY))
    assert topology["fc.weight"].nnz == 3


def test_an_id_stands_for_masks_that_are_known(arrays):
    full, short = pack_arrays(arrays, TOPOLOGY), pack_arrays(arrays, TOPOLOGY, known={TOPOLOGY.digest})
    assert len(short) < len(full)
    found, topology = unpack_arrays(short, {TOPOLOGY.digest: TOPOLOGY})
    assert topology == TOPOLOGY
    np.testing.assert_array_equal(found["fc.weight"], unpack_arrays(full)[0]["fc.weight"])


def test_an_unknown_id_is_refused(arrays):
    with pytest.raises(WireError, match=f"topology {TOPOLOGY.digest} is sent by reference but not held here"):
        unpack_arrays(pack_arrays(arrays, TOPOLOGY, known={TOPOLOGY.digest}))


def test_a_mask_without_its_array_is_refused(arrays):
    del arrays["fc.weight"]
    with pytest.raises(PatternError, match=r"mask for 'fc\.weight', but the arrays are fc\.bias, bn\."):
        pack_arrays(arrays, TOPOLOGY)


def test_a_mask_of_another_shape_is_refused(arrays):
    arrays["fc.weight"] = np.zeros((3, 2), np.float32)
    with pytest.raises(PatternError, match=r"'fc\.weight' has shape \(3, 2\), its mask \(2, 3\)"):
        pack_arrays(arrays, TOPOLOGY)


def test_texts_are_refused():
    with pytest.raises(WireError, match="'names': an array of <U1 cannot be sent"):
        pack_arrays({"names": np.array(["a"])}, Topology())


def test_every_truncation_is_refused(arrays):
    blob = pack_arrays(arrays, TOPOLOGY)
    for length in range(len(blob)):
        with pytest.raises(WireError):
            unpack_arrays(blob[:length])


@pytest.mark.parametrize("order", [torch.tensor(0), torch.tensor([0.0]), torch.tensor([[0]], dtype=torch.int32), True])
def test_an_order_that_is_no_list_is_refused(order):
    """Each of them ended with an error of Python's."""
    topology = Topology.from_masks({"w": torch.ones(2, 2, dtype=torch.bool)})
    weights = Weights(topology, {"w": torch.ones(4)}, {})
    with pytest.raises(WireError, match="expected the arrays of a model"):
        unpack_arrays(wire.encode(Payload("arrays", 0, weights, {"order": order})))


def test_a_dtype_that_numpy_lacks_is_refused():
    weights = Weights(Topology(), {}, {"b": torch.ones(2, dtype=torch.bfloat16)})
    order = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(WireError, match=r"'b': a tensor of torch\.bfloat16 is no array"):
        unpack_arrays(wire.encode(Payload("arrays", 0, weights, {"order": order})))
