"""The cost model against sums done by hand and published tables."""

import math

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse import models, pruning
from fedsparse.errors import ConfigError
from fedsparse.federated.costs import Layer, Sizes, Work, dense_bytes, forward_flops, round_costs, sizes, sparse_bytes
from fedsparse.federated.plan import ClientSettings
from fedsparse.methods.roles import CostRow
from fedsparse.nn import topology
from fedsparse.pattern import Pattern, Topology
from tests.federated.small_run import SmallNet, go, small_method, small_plan

MB = 1e6
SETTINGS = ClientSettings(epochs=5, batch_size=64, momentum=0.0)


def at_random(shapes, counts):
    """Masks with that many kept positions; which ones makes no difference to a cost."""
    flat = {name: torch.arange(counts[name]) for name in shapes}
    return Topology({name: Pattern.from_flat(tuple(shape), flat[name]) for name, shape in shapes.items()})


def network(stem):
    return sizes(models.resnet18(stem=stem), torch.zeros(3, 32, 32))


def masks(found, density, *, distribution, base):
    shapes = {name: layer.shape for name, layer in found.layers.items() if name != "fc.weight"}
    others = found.trainable - sum(math.prod(shape) for shape in shapes.values())
    return at_random(shapes, pruning.allocate(shapes, density, distribution=distribution, others=others, base=base))


@pytest.fixture(scope="module")
def imagenet():
    return network("7x7")


@pytest.fixture(scope="module")
def cifar():
    return network("3x3")


# ---- what the formulas know of a network
def test_sizes_of_resnet18(cifar, imagenet):
    assert (cifar.trainable, cifar.buffers) == (11_173_962, 9_600)
    assert imagenet.trainable == 11_181_642
    assert forward_flops(cifar, Topology()) == 2 * 555_422_720
    assert forward_flops(imagenet, Topology()) == 2 * 37_016_576
    assert sum(layer.inputs for layer in cifar.layers.values()) == 667_136
    assert len(cifar.layers) == 21


def test_dense_layers_cost_two_operations_a_weight_and_place():
    # 72 weights on 64 pixels, 1,728 on 16, 6,912 on 4, and 320 once
    found = sizes(SmallNet(), torch.zeros(1, 8, 8))
    assert forward_flops(found, Topology()) == 2 * (72 * 64 + 1728 * 16 + 6912 * 4 + 320)
    kept = at_random({"0.weight": (8, 1, 3, 3), "6.weight": (32, 24, 3, 3)}, {"0.weight": 10, "6.weight": 7})
    assert forward_flops(found, kept) == 2 * (10 * 64 + 1728 * 16 + 7 * 4 + 320)
    assert found.kept(kept) == 9170 - 62 - 6905


def test_groups_tokens_and_layers_used_twice():
    grouped = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    assert sizes(grouped, torch.zeros(4, 5, 5)).layers == {"0.weight": Layer((6, 2, 3, 3), 9, 100)}
    assert sizes(nn.Sequential(nn.Linear(12, 5)), torch.zeros(7, 12)).layers["0.weight"].places == 7
    merged = nn.Sequential(nn.Flatten(0, 1), nn.Linear(12, 5))
    assert sizes(merged, torch.zeros(7, 12)).layers["1.weight"] == Layer((5, 12), 7, 84)
    layer = nn.Linear(4, 4)
    assert sizes(nn.Sequential(layer, layer), torch.zeros(4)).layers["0.weight"] == Layer((4, 4), 2, 8)


def test_the_model_is_left_as_it_was():
    model = SmallNet().train()
    sizes(model, torch.ones(1, 8, 8))
    assert model.training
    assert model[1].num_batches_tracked.item() == 0
    assert not any(module._forward_hooks for module in model.modules())


# ---- bytes
def one_layer(shape):
    return Sizes({"w": Layer(shape, 1, 1)}, math.prod(shape), 0)


@pytest.mark.parametrize(
    ("shape", "kept", "paper", "auto"),
    [
        ((20, 50), 200, 925, 925),  # bitmap: 1000 + 6400 bits; coordinates need 2000 + 6400
        ((20, 50), 900, 4000, 3725),  # a density of 0.9 is dense in the paper
        ((20, 50), 899, 3721, 3721),  # 1000 + 28768 bits
        ((32, 32), 50, 328, 256),  # rows: 50 * 5 + 32 * 6 + 1600 = 2042 bits, coordinates 2100
        ((64, 16), 20, 208, 105),  # columns: 20 * 6 + 16 * 5 + 640 = 840 bits, coordinates as many
        ((64, 16), 3, 140, 16),  # coordinates: 3 * 10 + 96 = 126 bits
        ((20, 50), 0, 125, 0),
    ],
)
def test_bytes_of_one_weight_by_hand(shape, kept, paper, auto):
    found = at_random({"w": shape}, {"w": kept})
    assert sparse_bytes(one_layer(shape), found, codec="paper") == paper
    assert sparse_bytes(one_layer(shape), found, codec="auto") == auto


def test_an_unknown_codec_is_refused():
    with pytest.raises(ConfigError, match="unknown codec 'zip'; expected auto or paper"):
        sparse_bytes(one_layer((2, 2)), Topology(), codec="zip")


@pytest.mark.parametrize("codec", ["auto", "paper"])
@pytest.mark.parametrize(("density", "published"), [(0.5, 138.30), (0.3, 86.26), (0.2, 60.22)])
def test_published_exchange_of_gpt2(codec, density, published):
    """FedRTS, Table 1, rows of FedDST: all tensors named `weight`, token table and output layer counted apart."""
    shapes = {"wte": (50257, 256), "lm_head": (50257, 256), "wpe": (2048, 256)}
    for block in range(8):
        sides = {"attn": (768, 256), "proj": (256, 256), "fc": (1024, 256), "out": (256, 1024)}
        shapes |= {f"{block}.{name}": shape for name, shape in sides.items()}
    norms = 17 * 256
    found = Sizes({n: Layer(s, 1, 1) for n, s in shapes.items()}, sum(map(math.prod, shapes.values())) + norms, 0)
    assert found.trainable == 32_551_680
    assert 2 * dense_bytes(found) / MB == pytest.approx(260.41, rel=1e-4)
    counts = pruning.allocate(shapes, density, distribution="uniform", base="prunable")
    assert 2 * sparse_bytes(found, at_random(shapes, counts), codec=codec) / MB == pytest.approx(published, rel=3e-3)


@pytest.mark.parametrize("codec", ["auto", "paper"])
def test_published_exchange_and_memory_of_resnet18(imagenet, codec):
    """FedRTS, Table 4, CIFAR-10 at density 0.2: the 7x7 stem, one density for all layers, buffers counted."""
    assert 2 * dense_bytes(imagenet) / MB == pytest.approx(89.52, rel=2e-4)
    assert 3 * dense_bytes(imagenet) / MB == pytest.approx(134.29, rel=1e-4)
    found = masks(imagenet, 0.2, distribution="uniform", base="prunable")
    assert 2 * sparse_bytes(imagenet, found, codec=codec) / MB == pytest.approx(20.85, rel=3e-4)
    assert 3 * sparse_bytes(imagenet, found, codec=codec) / MB == pytest.approx(31.28, rel=3e-4)
    # FedPAQ: 8 bits down and up
    assert 2 * dense_bytes(imagenet, value_bits=8) / MB == pytest.approx(22.48, rel=3e-3)


@pytest.mark.parametrize(
    ("density", "bitmap", "auto", "flops"),
    [
        (0.5, 23.640, 23.640, 0.7962),
        (0.3, 14.793, 14.793, 0.6317),
        (0.2, 10.332, 10.332, 0.5069),
        (0.1, 5.898, 5.467, 0.2462),
        (0.05, 3.667, 2.814, 0.1230),
        (0.01, 1.880, 0.628, 0.0229),
    ],
)
def test_reference_sizes_of_resnet18_with_erk(cifar, density, bitmap, auto, flops):
    found = masks(cifar, density, distribution="erk", base="total")
    assert sparse_bytes(cifar, found, codec="paper") / MB == pytest.approx(bitmap, abs=6e-4)
    assert sparse_bytes(cifar, found, codec="auto") / MB == pytest.approx(auto, abs=6e-4)
    assert forward_flops(cifar, found) / forward_flops(cifar, Topology()) == pytest.approx(flops, abs=6e-5)


# ---- a round
PLAIN = CostRow()


def costs(found, kept, row=PLAIN, *, samples=500, settings=SETTINGS):
    return round_costs(found, [Work(kept, samples, row)], settings)


def test_published_ratio_of_arithmetic(imagenet):
    """FedRTS, Table 4: 3.8e12 / 1.78e13 for 5 epochs of 512 samples, 40 mini-batches, one of which probes."""
    sparse = costs(imagenet, masks(imagenet, 0.2, distribution="erk", base="total"), CostRow(probes=1), samples=512)
    dense = costs(imagenet, Topology(), samples=512)
    ratio = sparse["flops_paper_modelled"] / dense["flops_paper_modelled"]
    assert ratio == pytest.approx(0.2 + 1.6 / 120, rel=1e-5)
    assert ratio == pytest.approx(0.2135, rel=1e-3)
    assert dense["flops_paper_modelled"] == dense["flops_exact_modelled"] == 3 * 512 * 5 * 2 * 37_016_576


def test_columns_of_one_client_by_hand():
    # 10 inputs, 6 hidden, 4 outputs: 60 + 6 + 24 + 4 parameters, of which 15 of 60 are kept
    found = sizes(nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)), torch.zeros(10))
    assert (found.trainable, found.buffers) == (106, 12)
    kept = at_random({"0.weight": (6, 10)}, {"0.weight": 15})
    weights = 8 + 4 * 15 + 4 * (46 + 12)  # a bitmap of 60 bits, values, all others and the statistics
    row = CostRow(probes=1, numbers_up=6, models_down=1, buffer_bytes=24)
    settings = ClientSettings(epochs=3, batch_size=8, momentum=0.9)
    sparse, dense = 2 * (15 + 24), 2 * (60 + 24)
    paper = (15 + 46) * dense // 106
    assert costs(found, kept, row, samples=20, settings=settings) == {
        "flops_exact_modelled": 3 * sparse * 60 + (2 * sparse + dense) * 8,
        "flops_paper_modelled": 3 * paper * 52 + (paper + 2 * dense) * 8,
        "bytes_down_paper_modelled": 2 * weights,
        "bytes_up_paper_modelled": weights + 24,
        "memory_weights_modelled": weights,
        "memory_gradients_modelled": 4 * 61,
        "memory_optimizer_modelled": 4 * 61,
        "memory_activations_modelled": 4 * 8 * (10 + 6),
        "memory_adjustment_modelled": 24,
        "memory_total_modelled": weights + 8 * 61 + 512 + 24,
        "memory_paper_modelled": 3 * weights,
    }


def test_gradients_of_pruned_weights_in_every_mini_batch():
    found = one_layer((10, 10))
    got = costs(found, at_random({"w": (10, 10)}, {"w": 25}), CostRow(probes=None), samples=4)
    assert got["flops_exact_modelled"] == (2 * 50 + 200) * 20
    assert got["flops_paper_modelled"] == (50 + 2 * 200) * 20


def test_clients_add_up_and_the_largest_needs_the_memory():
    found = one_layer((10, 10))
    small, large = (Work(at_random({"w": (10, 10)}, {"w": k}), n, CostRow()) for k, n in ((20, 8), (50, 4)))
    both, each = (round_costs(found, works, SETTINGS) for works in ([small, large], [large]))
    assert both["flops_exact_modelled"] == 3 * 5 * (40 * 8 + 100 * 4)
    assert both["bytes_up_paper_modelled"] == (13 + 80) + (13 + 200)
    assert both["memory_total_modelled"] == each["memory_total_modelled"] == 213 + 200 + 4 * 4
    adam = round_costs(found, [large], ClientSettings(optimizer="adam"))
    assert adam["memory_optimizer_modelled"] == 2 * 200


@pytest.mark.parametrize("name", ["static", "feddst", "fedust", "fedsgc", "fedtiny", "fedrts", "fedrandprune"])
def test_exchange_of_each_method_as_published(name):
    """FedRTS, App. F.4, in an adjusting round: 2 O_s; for FedSGC 3 O_s; a candidate has 8 bytes, in FedRTS 4."""
    method = small_method(name)
    found = sizes(SmallNet(), torch.zeros(1, 8, 8))
    kept = method.initial_topology(SmallNet(), "random", torch.Generator().manual_seed(0))
    weights = sparse_bytes(found, kept)
    quiet, adjusting = (costs(found, kept, method.costs(kept, round)) for round in (1, 2))
    total = {"fedsgc": 3 * weights}.get(name, 2 * weights)
    if name == "fedtiny":
        counts = method.swap_counts(kept, 2)
        total += 8 * sum(counts[layer] for layer in method.block(kept, 2))
    if name == "fedrts":
        total += 4 * sum(method.swap_counts(kept, 2).values())
    assert quiet["bytes_down_paper_modelled"] + quiet["bytes_up_paper_modelled"] == 2 * weights
    assert adjusting["bytes_down_paper_modelled"] + adjusting["bytes_up_paper_modelled"] == total
    probes = name not in ("static", "fedrandprune")
    assert (adjusting["flops_paper_modelled"] > quiet["flops_paper_modelled"]) is probes
    assert (adjusting["memory_adjustment_modelled"] > 0) is probes
    assert quiet["memory_adjustment_modelled"] == 0


def test_methods_that_swap_nothing_cost_what_static_pruning_does():
    method = small_method("feddst", swap_fraction=0.0)
    kept = method.initial_topology(SmallNet(), "random", torch.Generator().manual_seed(0))
    assert method.costs(kept, 2) == CostRow()


@pytest.mark.parametrize(("name", "exact"), [("fedavg", True), ("static", True), ("fedtiny", False)])
def test_records_of_a_run(name, exact):
    """Without probes, the arithmetic is that of the model that comes back."""
    plan = small_plan(small_method(name), rounds=3, sizes=(20, 30), per_round=2)
    outcome = go(plan)
    forward = forward_flops(sizes(SmallNet(), torch.zeros(1, 8, 8)), topology(outcome.model))
    last = outcome.metrics[-1]
    assert last["flops_modelled"] == last["flops_exact_modelled"]
    if exact:
        assert last["flops_modelled"] == 3 * forward * (20 + 30) * 2
        assert last["memory_adjustment_modelled"] == 0
        assert last["bytes_up_paper_modelled"] == last["bytes_down_paper_modelled"]
        return
    assert last["kind"] == "adjust"
    swaps = last["bytes_up_paper_modelled"] - last["bytes_down_paper_modelled"]
    assert swaps == 2 * last["memory_adjustment_modelled"]  # of two clients
    assert swaps > 0
    assert last["flops_modelled"] > 3 * forward * (20 + 30) * 2
    density = fs.density(outcome.model)
    paper = outcome.metrics[0]["flops_paper_modelled"]
    dense = 3 * forward_flops(sizes(SmallNet(), torch.zeros(1, 8, 8)), Topology()) * 50 * 2
    assert paper / dense == pytest.approx(density, rel=1e-3)
