"""Small dense: the widest network within the budget, trained as FedAvg trains it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedsparse.errors import ConfigError, InfeasibleDensityError
from fedsparse.experiment.plan import SeededModel
from fedsparse.methods.fedavg import FedAvg
from fedsparse.methods.small_dense import SmallDense
from fedsparse.pattern import Topology
from tests.federated.small_run import SmallNet, bits, go, small_plan


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def squares(share):
    """A made-up network: round(100 share)^2 parameters."""
    return max(1, round(100 * share)) ** 2


@pytest.mark.parametrize(
    ("density", "channels"), [(0.5, 70), (0.49, 70), (0.4899, 69), (0.01, 10), (0.0099, 9), (0.0001, 1)]
)
def test_the_widest_network_within_the_budget(density, channels):
    share = SmallDense(density=density).width(squares)
    assert squares(share) == channels**2
    assert squares(share) <= density * 10_000 < (channels + 1) ** 2


def test_all_of_it_at_density_one():
    assert SmallDense(density=1.0).width(squares) == 1.0


def test_the_narrowest_network_may_be_too_large():
    with pytest.raises(
        InfeasibleDensityError, match=r"makes 16 parameters, density 0.001 of 9216 is 9; raise"
    ) as raised:
        SmallDense(density=0.001).width(lambda share: max(4, round(96 * share)) ** 2)
    assert raised.value.smallest == 16 / 9216
    assert SmallDense(density=raised.value.smallest).width(lambda share: max(4, round(96 * share)) ** 2) > 0


@pytest.mark.parametrize(
    ("name", "shape", "full"),
    [
        ("resnet18", (3, 32, 32), 11_173_962),
        ("resnet20", (3, 32, 32), 272_474),
        ("vgg11", (3, 32, 32), 9_228_362),
        ("lenet", (1, 28, 28), 61_706),
        ("mlp", (1, 28, 28), 266_610),
    ],
)
@pytest.mark.parametrize("density", [0.5, 0.1])
def test_every_model_with_a_width(name, shape, full, density):
    model = SeededModel(name=name, in_shape=shape, num_classes=10, seed=3)
    plan = replace(small_plan(SmallDense(density=density), build_model=model), narrowed=model.narrowed)
    network = plan.network()
    assert parameters(network) <= density * full
    # One more channel in the first layer would be too many: the next width is not far.
    assert parameters(network) > density * full * (0.9 if name != "resnet18" else 0.94)
    assert network(torch.zeros(2, *shape)).shape == (2, 10)
    again = dict(plan.network().named_parameters())
    assert all(torch.equal(parameter, again[key]) for key, parameter in network.named_parameters())


@pytest.mark.parametrize(("density", "hidden"), [(0.5, 52), (0.25, 36), (0.05, 12)])
def test_gpt2_has_fewer_channels_a_head(density, hidden):
    """Of 100 tokens, 32 places and 2 blocks; all of it by hand: tables, blocks, last norm."""

    def count(width):
        return 132 * width + 2 * (12 * width**2 + 13 * width) + 2 * width

    options = {"hidden": 80, "layers": 2, "heads": 4, "context": 32, "dropout": 0.0}
    model = SeededModel(name="gpt2", in_shape=(32,), num_classes=100, seed=3, options=options, tokens=True)
    plan = replace(small_plan(SmallDense(density=density), build_model=model), narrowed=model.narrowed)
    network = plan.network()
    assert (network.hidden, network.h[0].attn.heads) == (hidden, 4)
    assert parameters(network) == count(hidden) <= density * count(80) < count(hidden + 4)
    assert network(torch.zeros(2, 32, dtype=torch.int64)).shape == (2, 32, 100)


def test_the_width_of_resnet_is_near_the_square_root_of_the_density():
    model = SeededModel(name="resnet18", in_shape=(3, 32, 32), num_classes=10, seed=3)
    plan = replace(small_plan(SmallDense(density=0.25), build_model=model), narrowed=model.narrowed)
    network = plan.network()
    assert network.conv1.out_channels in (31, 32)
    assert network.conv1.in_channels == 3
    assert network.fc.out_features == 10


def test_it_is_fedavg_on_the_narrow_network():
    outcome = go(small_plan(SmallDense(density=0.2), rounds=2))
    share = SmallDense(density=0.2).width(lambda s: parameters(SmallNet(share=s)))
    wanted = go(small_plan(FedAvg(), rounds=2, build_model=lambda: SmallNet(share=share)))
    theirs = bits(wanted)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in bits(outcome).items())
    assert outcome.weights.topology == Topology()
    assert parameters(outcome.model) <= math.floor(0.2 * 9170)


def test_it_is_compared_with_the_traffic_of_the_full_network():
    small, full = (go(small_plan(method, rounds=1)).metrics[0] for method in (SmallDense(density=0.2), FedAvg()))
    assert small["bytes_up_dense"] == full["bytes_up_dense"] == full["bytes_up"]
    assert small["bytes_up"] < 0.35 * small["bytes_up_dense"]
    assert small["density"] == 1.0


def test_a_model_without_width_is_refused():
    plan = replace(small_plan(SmallDense(density=0.5), build_model=lambda: nn.Linear(4, 4)), narrowed=None)
    with pytest.raises(ConfigError, match="method 'small_dense' makes narrow networks, this model has no width"):
        plan.network()


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_the_density_is_checked(density):
    with pytest.raises(ConfigError, match=r"small_dense: density = .*; expected a share in \(0, 1\]"):
        SmallDense(density=density)
