"""Networks that lose their batch norms."""

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse.nn import NormalisedConv2d, without_batch_norm


def test_norms_go_and_convolutions_normalise(net):
    model, before = net(), net()
    assert without_batch_norm(model, gamma=1.5) is model
    assert type(model.norm) is nn.Identity
    convs = [model.conv, model.body[0]]
    assert {type(conv) for conv in convs} == {NormalisedConv2d}
    assert [conv.gamma for conv in convs] == [1.5, 1.5]
    assert torch.equal(model.body[0].bias, before.body[0].bias)
    assert (model.body[0].stride, model.body[0].groups) == ((2, 2), 2)
    assert torch.equal(model.out.weight, before.out.weight)
    model(torch.ones(1, 2, 6, 6)).sum().backward()  # one sample is enough


def test_weights_are_normal_by_outputs_and_follow_from_the_network_or_a_generator():
    def wide():
        return nn.Sequential(nn.Conv2d(8, 64, 3, bias=False), nn.BatchNorm2d(64))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other, same = wide(), wide(), wide()
    same.load_state_dict(one.state_dict())
    weights = [without_batch_norm(m)[0].weight.detach() for m in (one, same, other)]
    assert float(weights[0].std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    given = [without_batch_norm(m, generator=torch.Generator().manual_seed(3))[0].weight for m in (wide(), wide())]
    assert torch.equal(*given)


def test_resnet18_keeps_its_shape_and_can_be_pruned():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = without_batch_norm(fs.models.resnet18(width=8))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    fs.sparsify(model, 0.3)
    assert len(fs.nn.sparse_layers(model)) == 20
    assert model(torch.ones(2, 3, 16, 16)).shape == (2, 10)


def test_filters_of_one_weight_and_shared_modules_stay_themselves():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = without_batch_norm(nn.Sequential(nn.Conv2d(1, 3, 1), conv, nn.ReLU(), conv))
    assert type(model[0]) is nn.Conv2d
    assert model[1] is model[3]
    assert type(model[1]) is NormalisedConv2d


def test_without_memory():
    with torch.device("meta"):
        model = without_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert [p.is_meta for p in model.parameters()] == [True] * 3
