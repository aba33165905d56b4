"""A Flower app with sparse messages against the same app with ordinary ones."""

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs flwr: pip install 'fedsparse[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsparse.flower import SparseStrategy, sparse_mod
from fedsparse.flower.messages import STYPE

pytestmark = pytest.mark.usefixtures("in_a_run")
SHAPES = {"fc1.weight": (40, 30), "fc1.bias": (40,), "fc2.weight": (10, 40), "fc2.bias": (10,)}
NODES = (11, 22, 33)


class Grid:
    """The nodes of the app, each with the state that Flower keeps for it; sends messages when it is asked to."""

    def __init__(self, mods):
        self._mods = mods
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in NODES}
        self.sent = self.arrays = self.returned = 0

    def get_node_ids(self):
        return list(NODES)

    def send_and_receive(self, messages, *, timeout):
        assert timeout is not None
        replies = []
        # Flower draws the nodes in any order, and sums depend on it.
        for number, message in enumerate(sorted(messages, key=lambda m: m.metadata.dst_node_id)):
            message.metadata.__dict__["_message_id"] = str(number)
            self.sent += size(message)
            self.arrays = max(self.arrays, max(len(r) for r in message.content.array_records.values()))
            try:
                replies.append(self._mods(message, self.contexts[message.metadata.dst_node_id]))
            except Exception as error:  # as Flower does
                replies.append(Message(Error(2, str(error)), reply_to=message))
            self.returned += 0 if replies[-1].has_error() else size(replies[-1])
        return replies


def size(message):
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())


@pytest.fixture
def masks(generator):
    return {name: torch.rand(SHAPES[name], generator=generator) < 0.2 for name in ("fc1.weight", "fc2.weight")}


@pytest.fixture
def initial(rng, masks):
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for name, mask in masks.items():
        arrays[name] *= mask.numpy()
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def app(masks):
    """A client that trains under masks: what it adds depends on the node and on what it was sent."""

    def train(message, context):
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        assert list(arrays) == list(SHAPES)
        new = {
            name: np.sin(array * context.node_id + context.node_id).astype(np.float32) for name, array in arrays.items()
        }
        for name, mask in masks.items():
            new[name] *= mask.numpy()
        metrics = MetricRecord({"num-examples": context.node_id, "sum": float(sum(a.sum() for a in arrays.values()))})
        content = {"metrics": metrics}
        if message.metadata.message_type == "train":
            content["arrays"] = ArrayRecord({name: Array(array) for name, array in new.items()})
        return Message(RecordDict(content), reply_to=message)

    return train


def fedavg():
    return FedAvg(min_train_nodes=3, min_evaluate_nodes=3, min_available_nodes=3)


def trained(grid, strategy, initial, rounds=3):
    result = strategy.start(grid, initial, num_rounds=rounds, timeout=5.0)
    arrays = {name: array.numpy() for name, array in result.arrays.items()}
    return arrays, result.evaluate_metrics_clientapp


def test_results_are_equal_to_the_bit_and_messages_smaller(masks, initial):
    client = app(masks)
    plain = Grid(client)
    sparse = Grid(lambda message, context: sparse_mod(message, context, client))
    expected, expected_metrics = trained(plain, fedavg(), initial)
    found, metrics = trained(sparse, SparseStrategy(fedavg(), masks), initial)
    assert metrics == expected_metrics
    assert list(found) == list(expected) == list(SHAPES)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert sparse.arrays == 1 < plain.arrays
    assert sparse.sent < 0.4 * plain.sent
    assert sparse.returned < 0.4 * plain.returned


def message_to(node, arrays, kind="train"):
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 0.1})})
    return Message(content, dst_node_id=node, message_type=kind)


def sizes(strategy, initial, grid):
    messages = list(strategy.configure_train(1, initial, ConfigRecord(), grid))
    return messages, {message.metadata.dst_node_id: size(message) for message in messages}


def test_masks_travel_once_and_again_to_who_failed(masks, initial):
    client = app(masks)
    grid = Grid(lambda message, context: sparse_mod(message, context, client))
    strategy = SparseStrategy(fedavg(), masks)
    messages, first = sizes(strategy, initial, grid)
    replies = grid.send_and_receive(messages, timeout=5.0)
    strategy.aggregate_train(1, [replies[0], Message(Error(2, "gone"), reply_to=messages[1])])
    answered = NODES[0]
    _, second = sizes(strategy, initial, grid)
    assert {node for node in NODES if second[node] < first[node]} == {answered}
    strategy.set_masks({name: ~mask for name, mask in masks.items()})
    messages, third = sizes(strategy, initial, grid)
    assert third[answered] > second[answered]


def test_messages_are_a_list_which_a_deployment_needs(masks, initial):
    strategy, grid = SparseStrategy(fedavg(), masks), Grid(app(masks))
    assert type(strategy.configure_train(1, initial, ConfigRecord(), grid)) is list
    assert type(strategy.configure_evaluate(1, initial, ConfigRecord(), grid)) is list


def test_a_node_that_lost_the_masks_refuses_and_is_told_again(masks, initial):
    client = app(masks)
    grid = Grid(lambda message, context: sparse_mod(message, context, client))
    strategy = SparseStrategy(fedavg(), masks)
    for lost in (False, True, False):
        messages, _ = sizes(strategy, initial, grid)
        if lost:
            grid.contexts[NODES[0]].state.clear()
        replies = grid.send_and_receive(messages, timeout=5.0)
        failed = [reply for reply in replies if reply.has_error()]
        assert [r.metadata.src_node_id for r in failed] == ([NODES[0]] if lost else [])
        assert not failed or "is sent by reference but not held here" in failed[0].error.reason
        strategy.aggregate_train(1, replies)


def test_a_damaged_answer_is_left_out(masks, initial):
    client = app(masks)
    grid = Grid(lambda message, context: sparse_mod(message, context, client))
    strategy = SparseStrategy(fedavg(), masks)
    replies = grid.send_and_receive(sizes(strategy, initial, grid)[0], timeout=5.0)
    (name, array), *_ = replies[1].content["arrays"].items()
    blob = array.data[:-1] + bytes([array.data[-1] ^ 1])
    replies[1].content["arrays"] = ArrayRecord({name: Array("uint8", (len(blob),), STYPE, blob)})
    plain = Grid(client).send_and_receive(sizes(fedavg(), initial, grid)[0], timeout=5.0)
    expected, _ = FedAvg().aggregate_train(1, [plain[0], plain[2]])
    found, _ = strategy.aggregate_train(1, replies)
    assert list(found) == list(expected)
    for key, wanted in expected.items():
        np.testing.assert_array_equal(found[key].numpy(), wanted.numpy())


def test_an_answer_under_other_masks_is_left_out(masks, initial):
    """Masks are the server's to choose: those of a node take the place of none."""
    other = {name: ~mask for name, mask in masks.items()}
    strategy, stranger = SparseStrategy(fedavg(), masks), SparseStrategy(fedavg(), other)
    (message,) = strategy._packed([message_to(11, initial)])
    (odd,) = stranger._packed([message_to(11, initial)])
    message.metadata.__dict__["_message_id"] = "1"
    assert strategy._unpacked([Message(odd.content, reply_to=message)]) == []
    (whole,) = strategy._unpacked([Message(message.content, reply_to=message)])
    assert set(next(iter(whole.content.array_records.values()))) == set(SHAPES)


def test_messages_that_are_not_packed_pass_as_they_are(masks, initial):
    client = app(masks)
    context = Context(1, 11, {}, RecordDict(), {})
    message = message_to(11, initial)
    reply = sparse_mod(message, context, client)
    assert reply.content["arrays"]["fc1.weight"].stype == "numpy.ndarray"
    assert not context.state


def test_other_names_of_the_package_are_unknown():
    import fedsparse.flower

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = fedsparse.flower.nothing
