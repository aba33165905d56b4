"""The arithmetic model against sums done by hand."""

import torch
from torch import nn

import fedsparse as fs
from fedsparse.federated.flops import forward_flops
from tests.federated.small_run import SmallNet


def test_dense_layers_cost_two_operations_a_weight_and_pixel():
    # 72 weights on 64 pixels, 1,728 on 16, 6,912 on 4, and 320 once
    assert forward_flops(SmallNet(), torch.zeros(1, 8, 8)) == 2 * (72 * 64 + 1728 * 16 + 6912 * 4 + 320)
    assert forward_flops(nn.Linear(5, 3), torch.zeros(5)) == 2 * 15


def test_groups_and_rows():
    assert forward_flops(nn.Conv2d(4, 6, 3, groups=2), torch.zeros(4, 5, 5)) == 2 * (6 * 2 * 9) * 9


def test_every_token_of_a_text_costs_the_same():
    # 7 tokens of 12 features -> 5 features, kept as they are or merged with the batch on the way
    layer = nn.Linear(12, 5)
    assert forward_flops(layer, torch.zeros(7, 12)) == 2 * 60 * 7
    merged = nn.Sequential(nn.Flatten(0, 1), layer)
    assert forward_flops(merged, torch.zeros(7, 12)) == 2 * 60 * 7
    sparse = fs.sparsify(nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 5)), 0.6)
    assert forward_flops(sparse, torch.zeros(2, 3, 12)) == 2 * (sparse[0].nnz + 30) * 6


def test_sparse_layers_cost_what_they_keep():
    model = fs.sparsify(SmallNet(), 0.2)
    kept = [module.nnz for module in (model[0], model[3], model[6])]
    wanted = 2 * (kept[0] * 64 + kept[1] * 16 + kept[2] * 4 + 320)
    assert forward_flops(model, torch.zeros(1, 8, 8)) == wanted
    assert wanted < forward_flops(SmallNet(), torch.zeros(1, 8, 8))


def test_the_model_is_left_as_it_was():
    model = SmallNet().train()
    forward_flops(model, torch.ones(1, 8, 8))
    assert model.training
    assert model[1].num_batches_tracked.item() == 0
    assert not any(module._forward_hooks for module in model.modules())
