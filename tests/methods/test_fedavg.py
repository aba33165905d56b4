"""FedAvg against arithmetic."""

import torch
from torch import nn

from fedsparse.federated.plan import ClientSettings
from fedsparse.methods.fedavg import FedAvg
from fedsparse.methods.roles import Update
from fedsparse.pattern import Topology, Weights
from tests.federated.small_run import go, norm_free, small_data, small_plan


def test_the_global_weights_are_the_sample_weighted_mean():
    updates = [
        Update(client, n, Weights(Topology(), {}, {"w": torch.tensor([w])}), {})
        for client, n, w in ((0, 1, 2.0), (1, 3, 6.0))
    ]
    assert FedAvg().aggregate(None, updates).dense["w"].tolist() == [5.0]


def test_one_full_batch_step_a_client_is_one_step_on_all_data():
    """The mean of local gradients weighted by samples is the gradient of the loss on all samples."""
    sizes = (12, 20, 8)
    client = ClientSettings(epochs=1, batch_size=32, lr=0.5, momentum=0.0)
    plan = small_plan(FedAvg(), rounds=1, sizes=sizes, per_round=3, client=client, build_model=norm_free)
    got = go(plan).weights.dense

    model = norm_free().double()
    train = small_data(sizes).train
    nn.functional.cross_entropy(model(train.x.double()), train.y).backward()
    for name, parameter in model.named_parameters():
        wanted = parameter.detach() - 0.5 * parameter.grad
        assert torch.allclose(got[name].double(), wanted, rtol=0, atol=1e-6), name
        assert not torch.allclose(got[name].double(), parameter.detach(), rtol=0, atol=1e-4), name


def test_it_has_no_masks_and_no_settings():
    method = FedAvg()
    assert not any(method.adjusts(round) for round in range(50))
    assert method.adjust(None, []) is None
    outcome = go(small_plan(method, rounds=2))
    assert outcome.weights.topology == Topology()
    assert [record["kind"] for record in outcome.metrics] == ["train", "train"]
    assert [record["density"] for record in outcome.metrics] == [1.0, 1.0]
    assert outcome.metrics[0]["bytes_up"] == outcome.metrics[0]["bytes_up_dense"]
