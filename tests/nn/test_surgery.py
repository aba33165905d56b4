"""Sparse layers in and out of models, their masks, and state in compact form."""

import copy

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse.errors import BackendError, ConfigError, InfeasibleDensityError, PatternError
from fedsparse.nn import SparseConv2d, SparseLinear, read_weights, sparse_layers, topology, write_weights
from fedsparse.pattern import Topology, Weights, parse

NAMES = ["conv.weight", "body.0.weight", "hidden.weight", "out.weight"]
SIZES = {"conv.weight": 108, "body.0.weight": 216, "hidden.weight": 512, "out.weight": 64}
DENSE = 12 + 8 + 16 + 4  # batch norm and biases
TOTAL = sum(SIZES.values()) + DENSE


@pytest.fixture
def x(generator):
    return torch.randn(5, 2, 6, 6, generator=generator)


def function(model, x):
    """Output in training mode, leaving the batch norm statistics as they are."""
    return copy.deepcopy(model).train()(x)


# ---- sparsify
@pytest.mark.parametrize("distribution", ["erk", "er", "uniform", "global"])
@pytest.mark.parametrize("score", ["magnitude", "random"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_density_is_met_exactly(density, score, distribution, net, generator):
    model = net()
    same = fs.sparsify(model, density, distribution=distribution, score=score, exclude="none", generator=generator)
    assert same is model
    assert list(sparse_layers(model)) == NAMES
    kept = sum(layer.nnz for layer in sparse_layers(model).values()) + DENSE
    assert kept == int(density * TOTAL)
    assert fs.density(model) == kept / TOTAL
    assert all(layer.nnz >= 1 for layer in sparse_layers(model).values())


def test_uniform_counts_by_hand(net):
    model = fs.sparsify(net(), 0.5, distribution="uniform", exclude="none")
    budget = TOTAL // 2 - DENSE
    for name, layer in sparse_layers(model).items():
        assert abs(layer.nnz - budget * SIZES[name] / sum(SIZES.values())) <= 1


def test_magnitude_keeps_the_largest(net):
    model, dense = net(), net()
    fs.sparsify(model, 0.3, exclude="none")
    for name, layer in sparse_layers(model).items():
        weight = dense.get_parameter(name)
        kept, pruned = weight[layer.mask].abs(), weight[~layer.mask].abs()
        assert kept.min() >= pruned.max()
        assert torch.equal(layer.weight, weight * layer.mask)


def test_global_keeps_the_largest_of_all(net):
    model, dense = net(), net()
    fs.sparsify(model, 0.3, distribution="global", exclude="none")
    weights = [(dense.get_parameter(name), layer.mask) for name, layer in sparse_layers(model).items()]
    kept = min(w[m].abs().min() for w, m in weights)
    assert kept >= max(w[~m].abs().max() for w, m in weights)


def test_scores_by_name(net, generator):
    model = net()
    scores = {name: torch.rand(model.get_parameter(name).shape, generator=generator) for name in NAMES}
    fs.sparsify(model, 0.4, score=scores, exclude="none")
    for name, layer in sparse_layers(model).items():
        best = scores[name].view(-1).topk(layer.nnz).indices
        assert torch.equal(layer.pattern.flat, best.sort().values)


def test_random_scores_follow_the_generator(net):
    def chosen(seed):
        generator = torch.Generator().manual_seed(seed)
        return topology(fs.sparsify(net(), 0.3, score="random", generator=generator))

    assert chosen(1) == chosen(1) != chosen(2)


@pytest.mark.parametrize(
    ("exclude", "sparse"),
    [
        ("output", NAMES[:3]),
        ("ends", NAMES[1:3]),
        ("none", NAMES),
        ("hidden", [*NAMES[:2], NAMES[3]]),
        ("hidden.weight", [*NAMES[:2], NAMES[3]]),
        (["conv", "body"], NAMES[2:]),
        ([], NAMES),
    ],
)
def test_exclude(exclude, sparse, net):
    model = fs.sparsify(net(), 0.7, exclude=exclude)
    assert list(sparse_layers(model)) == sparse
    assert 0.699 < fs.density(model) <= 0.7


def test_exclude_modules(net):
    model = net()
    fs.sparsify(model, 0.5, exclude=[model.body, model.out])
    assert list(sparse_layers(model)) == ["conv.weight", "hidden.weight"]
    assert type(model.body[0]) is nn.Conv2d


def test_layers_become_sparse_ones(net, x):
    model = fs.sparsify(net().eval(), 0.5)
    assert type(model.conv) is SparseConv2d
    assert type(model.hidden) is SparseLinear
    assert type(model.out) is nn.Linear
    assert not any(module.training for module in model.modules())
    dense = net()
    with torch.no_grad():
        for name, mask in fs.masks(model).items():
            dense.get_parameter(name).mul_(mask)
    torch.testing.assert_close(function(model, x), function(dense, x), rtol=1e-5, atol=1e-5)


def test_infeasible_density_names_the_smallest(net):
    with pytest.raises(InfeasibleDensityError, match="smallest feasible density") as caught:
        fs.sparsify(net(), 0.05)
    smallest = caught.value.smallest
    assert smallest == pytest.approx((DENSE + 64 + 3) / TOTAL)
    assert repr(smallest) in str(caught.value)
    model = fs.sparsify(net(), smallest)
    assert [layer.nnz for layer in sparse_layers(model).values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"density": 0.0}, ConfigError, r"density must be in \(0, 1\]"),
        ({"density": 1.5}, ConfigError, r"density must be in \(0, 1\]"),
        ({"distribution": "normal"}, ConfigError, "unknown distribution 'normal'"),
        ({"score": "size"}, ConfigError, "unknown score 'size'"),
        ({"granularity": "pixel"}, PatternError, "unknown granularity 'pixel'"),
        ({"exclude": "head"}, ConfigError, "exclude: 'head' is neither"),
        ({"score": {}}, PatternError, r"scores for 'conv\.weight' .* got nothing"),
        (
            {"score": {"conv.weight": torch.ones(3)}},
            PatternError,
            r"must have the weight's shape \(6, 2, 3, 3\), got shape \(3,\)",
        ),
    ],
)
def test_misused_sparsify_changes_nothing(options, error, words, net):
    model = net()
    with pytest.raises(error, match=words):
        fs.sparsify(model, options.pop("density", 0.5), **options)
    assert not sparse_layers(model)
    assert fs.density(model) == 1.0


def test_nothing_to_prune():
    with pytest.raises(ConfigError, match="Sequential has no dense Linear or Conv2d to prune"):
        fs.sparsify(nn.Sequential(nn.ReLU()), 0.5)
    with pytest.raises(ConfigError, match="Sequential has no dense Linear or Conv2d to prune"):
        fs.sparsify(nn.Sequential(nn.Linear(3, 3)), 0.5)


def test_a_bare_layer_is_refused_in_words():
    with pytest.raises(ConfigError):
        fs.sparsify(nn.Linear(8, 8), 0.5, exclude="none")


def test_a_module_in_two_places_stays_one():
    layer = nn.Linear(8, 8)
    model = fs.sparsify(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(8, 2)), 0.6)
    assert model[0] is model[2]


def test_tied_weights_are_not_untied_silently():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    try:
        fs.sparsify(model, 0.6)
    except ConfigError:
        return
    assert getattr(model[0], "values", model[0].weight) is getattr(model[2], "values", model[2].weight)


# ---- densify
def test_densify_computes_the_same(net, x):
    model = fs.sparsify(net(), 0.4, exclude="none")
    expected = function(model, x)
    assert fs.densify(model) is model
    assert not sparse_layers(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]
    assert model.state_dict().keys() == net().state_dict().keys()
    torch.testing.assert_close(function(model, x), expected, rtol=1e-5, atol=1e-5)


def test_densify_a_bare_layer():
    layer = SparseLinear.from_dense(nn.Linear(3, 3), torch.eye(3, dtype=torch.bool))
    dense = fs.densify(layer)
    assert type(dense) is nn.Linear
    assert torch.equal(dense.weight, layer.weight)


# ---- density
def test_density_counts_trainable_parameters(net):
    assert fs.density(net()) == 1.0
    assert fs.density(nn.ReLU()) == 1.0
    model = fs.sparsify(net(), 0.5)
    layers = sparse_layers(model)
    kept = sum(layer.nnz for layer in layers.values()) + 64 + DENSE
    assert fs.density(model) == kept / TOTAL
    model.out.requires_grad_(False)
    assert fs.density(model) == (kept - 68) / (TOTAL - 68)
    model.hidden.values.requires_grad_(False)
    assert fs.density(model) == (kept - 68 - model.hidden.nnz) / (TOTAL - 68 - 512)


def test_set_backend(net):
    model = fs.sparsify(net(), 0.5)
    fs.set_backend(model, "reference")
    assert {layer.backend for layer in sparse_layers(model).values()} == {"reference"}
    with pytest.raises(BackendError, match="unknown backend"):
        fs.set_backend(model, "fast")


# ---- masks
def test_masks_and_set_masks(net, x, generator):
    model = fs.sparsify(net(), 0.5, exclude="none")
    old = fs.masks(model)
    assert list(old) == NAMES
    assert all(m.dtype == torch.bool and m.shape == net().get_parameter(n).shape for n, m in old.items())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(x).square().mean().backward()
    optimizer.step()
    weights = {name: layer.weight for name, layer in sparse_layers(model).items()}
    momenta = {
        name: layer.pattern.scatter(optimizer.state[layer.values]["exp_avg"])
        for name, layer in sparse_layers(model).items()
    }
    new = {name: torch.rand(m.shape, generator=generator) < 0.4 for name, m in old.items() if name != NAMES[1]}
    fs.set_masks(model, new, optimizer=optimizer, grown=0.125)
    for name, layer in sparse_layers(model).items():
        mask = new.get(name, old[name])
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.weight, torch.where(old[name], weights[name], 0.125) * mask)
        state = optimizer.state[layer.values]
        for key in ("exp_avg", "exp_avg_sq"):
            assert state[key].shape == (layer.nnz,)
        assert torch.equal(layer.pattern.scatter(state["exp_avg"]), momenta[name] * mask)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_set_masks_does_not_keep_the_mask(net):
    model = fs.sparsify(net(), 0.5)
    mask = torch.ones(16, 32, dtype=torch.bool)
    fs.set_masks(model, {"hidden.weight": mask})
    mask.zero_()
    assert model.hidden.mask.all()


@pytest.mark.parametrize(
    ("name", "mask", "words"),
    [
        ("head.weight", torch.ones(2, 2, dtype=torch.bool), r"no sparse layer for mask 'head\.weight'; .*: conv"),
        ("out.weight", torch.ones(4, 16, dtype=torch.bool), r"no sparse layer for mask 'out\.weight'"),
        ("hidden.weight", torch.ones(32, 16, dtype=torch.bool), r"has shape \(32, 16\), the weight has \(16, 32\)"),
        ("hidden.weight", torch.ones(16, 32), r"must be a bool tensor, got torch\.float32"),
    ],
)
def test_wrong_masks_change_nothing(name, mask, words, net):
    model = fs.sparsify(net(), 0.5)
    before = topology(model)
    good = {"conv.weight": torch.ones(6, 2, 3, 3, dtype=torch.bool)}
    with pytest.raises(PatternError, match=words):
        fs.set_masks(model, good | {name: mask})
    assert topology(model) == before


def test_a_copys_masks_are_its_own(net, x):
    model = fs.sparsify(net(), 0.5)
    before, y = topology(model), function(model, x)
    twin = copy.deepcopy(model)
    fs.set_masks(twin, {name: ~mask for name, mask in fs.masks(twin).items()}, grown=1.0)
    assert topology(model) == before != topology(twin)
    assert torch.equal(function(model, x), y)


# ---- weights
def test_read_and_write_weights(net, x):
    source = fs.sparsify(net(), 0.5)
    source(x)  # moves the batch norm statistics
    weights = read_weights(source)
    assert weights.topology == topology(source)
    dense = set(net().state_dict()) - set(weights.topology)
    assert set(weights.dense) == dense
    target = fs.sparsify(net(), 0.8, exclude="none", score="random", generator=torch.Generator().manual_seed(3))
    write_weights(target, weights)
    assert topology(target) == topology(source)
    assert type(target.out) is nn.Linear
    assert torch.equal(target.eval()(x), source.eval()(x))


def test_read_weights_is_a_copy(net, x):
    model = fs.sparsify(net(), 0.5)
    weights = read_weights(model)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())
    write_weights(model, weights)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())


def test_write_turns_dense_layers_sparse_and_back(net, x):
    model, dense = fs.sparsify(net(), 0.5), net()
    write_weights(dense, read_weights(model))
    assert torch.equal(dense.eval()(x), model.eval()(x))
    plain = read_weights(model).moved_to(Topology())
    write_weights(dense, plain)
    assert not sparse_layers(dense)
    torch.testing.assert_close(dense.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_write_keeps_parameters_of_the_same_topology(net):
    model = fs.sparsify(net(), 0.5)
    before = dict(model.named_parameters())
    write_weights(model, read_weights(model))
    assert all(model.get_parameter(name) is p for name, p in before.items())


def test_write_refuses_what_does_not_fit(net):
    model = fs.sparsify(net(), 0.5)
    weights = read_weights(model)
    fewer = {name: tensor for name, tensor in weights.dense.items() if name != "out.bias"}
    more = dict(weights.dense) | {"extra": torch.zeros(1)}
    elsewhere = Topology.from_masks({"head.weight": torch.ones(2, 2, dtype=torch.bool)})
    for wrong, words in (
        (Weights(weights.topology, weights.values, fewer), r"'out\.bias' is in the model only"),
        (Weights(weights.topology, weights.values, more), "'extra' is in the weights only"),
        (weights.with_dense({"out.bias": torch.zeros(5)}), r"'out\.bias' has shape \(4,\) in the model, but \(5,\) in"),
        (Weights(elsewhere, {"head.weight": torch.ones(4)}, {}), "no layer 'head' for weight 'head.weight'"),
    ):
        with pytest.raises(PatternError, match=words):
            write_weights(model, wrong)


def test_a_refused_write_changes_nothing(net):
    model = fs.sparsify(net(), 0.5)
    weights = read_weights(fs.sparsify(net(), 0.3, distribution="global"))
    before = read_weights(model)
    with pytest.raises(PatternError):
        write_weights(model, weights.with_dense({"out.bias": torch.zeros(5)}))
    assert topology(model) == before.topology
    assert all(torch.equal(t, dict(before.items())[name]) for name, t in read_weights(model).items())


@pytest.mark.parametrize("name", ["running_mean", "num_batches_tracked"])
def test_buffers_travel(name, net, x):
    model = fs.sparsify(net(), 0.5)
    model(x)
    weights = read_weights(model)
    assert torch.equal(weights.dense[f"norm.{name}"], model.norm.get_buffer(name))
    fresh = fs.sparsify(net(), 0.5)
    write_weights(fresh, weights)
    assert torch.equal(fresh.norm.get_buffer(name), model.norm.get_buffer(name))


# ---- granularities
UNITS = {"vector:4": 0.4, "block:4": 0.4, "nm:2:4": 0.5, "channel": 0.5}


@pytest.mark.parametrize("distribution", ["erk", "er", "uniform", "global"])
@pytest.mark.parametrize("granularity", UNITS)
def test_whole_units_are_kept_close_to_the_density(granularity, distribution, net):
    model, unit = net(), parse(granularity)
    fs.sparsify(model, UNITS[granularity], distribution=distribution, granularity=granularity, exclude="none")
    for layer in sparse_layers(model).values():
        unit.check(layer.pattern.shape, layer.pattern.flat)
        assert layer.granularity == unit
        assert layer.nnz >= 1
    if unit.share is None:
        largest = max(unit.tiling(layer.pattern.shape).size for layer in sparse_layers(model).values())
        assert UNITS[granularity] - 4 * largest / TOTAL < fs.density(model) <= UNITS[granularity]
    else:
        for layer in sparse_layers(model).values():
            inputs = layer.pattern.shape[1]
            assert layer.nnz == layer.pattern.size // inputs * (inputs // 4 * 2 + (inputs % 4 + 1) // 2)


def test_magnitude_ranks_units_by_their_root_mean_square():
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    model[0].weight.data = torch.tensor([[3.0, 2.2, 0.0], [0.0, 2.2, 1.0]])  # squares 9, 9.68, 1; means 1.5, 2.2, 0.5
    fs.sparsify(model, 0.34, granularity="vector:2", exclude="none")
    assert model[0].mask.int().tolist() == [[0, 1, 0], [0, 1, 0]]
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    model[0].weight.data = torch.tensor([[3.2, 2.2, 0.0], [0.0, 2.2, 1.0]])  # squares 10.24, 9.68, 1
    fs.sparsify(model, 0.34, granularity="vector:2", exclude="none")
    assert model[0].mask.int().tolist() == [[1, 0, 0], [1, 0, 0]]


def test_nm_says_which_density_it_has(net):
    with pytest.raises(ConfigError, match=r"density 0.1 cannot be had with granularity 'nm:2:4'.* use density=0.5"):
        fs.sparsify(net(), 0.1, granularity="nm:2:4")


@pytest.mark.parametrize("granularity", UNITS)
def test_the_granularity_goes_where_the_layer_goes(granularity, net, x, tmp_path):
    model = fs.sparsify(net(), UNITS[granularity], granularity=granularity, exclude="none")
    other = fs.sparsify(net(), UNITS[granularity], granularity=granularity, score="random", exclude="none")
    other.load_state_dict(model.state_dict())
    torch.save(model, tmp_path / "model.pt")
    unpickled = torch.load(tmp_path / "model.pt", weights_only=False)
    sent = fs.wire.decode(fs.wire.encode(fs.wire.Payload("train", 0, read_weights(model)))).weights
    written = net()
    write_weights(written, sent)
    for copied in (other, unpickled, written, copy.deepcopy(model)):
        assert topology(copied) == topology(model)
        assert [str(layer.granularity) for layer in sparse_layers(copied).values()] == [granularity] * 4
        assert torch.equal(function(copied, x), function(model, x))
    assert {row.granularity for row in fs.plan(model.eval(), x, repeats=1).layers} == {granularity}
    write_weights(model, read_weights(net()))
    assert not sparse_layers(model)


def test_masks_that_break_a_unit_change_nothing(net):
    model = fs.sparsify(net(), 0.4, granularity="vector:4", exclude="none")
    before, masks = topology(model), fs.masks(model)
    masks["hidden.weight"][0, 0] ^= True
    with pytest.raises(PatternError, match=r"mask 'hidden.weight': granularity 'vector:4' keeps or prunes whole units"):
        fs.set_masks(model, masks)
    assert topology(model) == before
