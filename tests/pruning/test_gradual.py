"""Pruning in steps: exact counts, nothing comes back, one step is pruning at a stroke."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse import pruning
from fedsparse.errors import ConfigError
from fedsparse.pruning import density_path, gradually, magnitude, prunable, synflow
from tests.federated.small_run import SmallNet


def watched(seen):
    """Magnitude of weights as they are, remembering what was zero at each call."""

    def score(model):
        weights = prunable(model, "none")
        seen.append({name: int((w == 0).sum()) for name, w in weights.items()})
        return magnitude(weights)

    return score


def counts(model, density, distribution):
    found = fs.masks(fs.sparsify(copy.deepcopy(model), density, distribution=distribution))
    return {name: int(mask.sum()) for name, mask in found.items()}


@pytest.mark.parametrize("distribution", ["erk", "uniform", "global"])
@pytest.mark.parametrize("course", ["exponential", "linear"])
def test_each_step_prunes_to_its_density(distribution, course):
    model, seen = SmallNet(), []
    path = density_path(0.2, 4, course)
    scores = gradually(model, watched(seen), path, distribution=distribution)
    assert len(seen) == 4
    assert sum(seen[0].values()) == 0
    for step, density in enumerate(path[:-1]):
        kept = {name: scores[name].numel() - seen[step + 1][name] for name in scores}
        wanted = counts(model, density, distribution)
        assert all(0 <= kept[name] - wanted[name] <= 1 for name in scores)
        assert distribution != "global" or kept == wanted
        assert seen[step + 1]["11.weight"] == 0  # the output layer stays dense
    last = {name: int((score > -math.inf).sum()) for name, score in scores.items()}
    assert last == {name: scores[name].numel() - seen[-1][name] for name in scores}


@pytest.mark.parametrize("distribution", ["erk", "global"])
def test_magnitudes_do_not_change_so_steps_make_no_difference(distribution):
    model = SmallNet()
    scores = gradually(model, lambda m: magnitude(prunable(m, "none")), density_path(0.1, 7), distribution=distribution)
    stepwise = fs.masks(fs.sparsify(copy.deepcopy(model), 0.1, distribution=distribution, score=scores))
    at_once = fs.masks(fs.sparsify(copy.deepcopy(model), 0.1, distribution=distribution))
    assert all(torch.equal(stepwise[name], mask) for name, mask in at_once.items())


def test_pruned_weights_rank_below_kept_ones_of_any_score():
    """GraSP's scores are negative for weights that are better gone, and 0 for those that are."""

    def negative(model):
        return {name: -1 - weight.abs() for name, weight in prunable(model, "none").items()}

    model = SmallNet()
    scores = gradually(model, negative, [0.5, 0.4], distribution="global")
    kept = fs.masks(fs.sparsify(copy.deepcopy(model), 0.4, distribution="global", score=scores))
    first = fs.masks(fs.sparsify(copy.deepcopy(model), 0.5, distribution="global", score=negative(model)))
    assert all(bool((first[name] | ~mask).all()) for name, mask in kept.items())


def test_counts_never_rise_from_step_to_step():
    """Remainders of rounding go to other layers at other densities; a layer's count must not follow them upwards."""
    shapes = {"0.weight": (6, 3), "1.weight": (8, 9), "2.weight": (4, 3), "3.weight": (3, 2)}
    model = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for outputs, inputs in shapes.values())
    path = density_path(0.3, 60)
    plain = [pruning.allocate(shapes, density) for density in path]
    assert any(later[name] > earlier[name] for earlier, later in pairwise(plain) for name in shapes)
    scores = gradually(model, lambda m: magnitude(prunable(m, "none")), path, exclude="none")
    fs.sparsify(model, 0.3, score=scores, exclude="none")
    masks = fs.masks(model)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == plain[-1]
    assert all(bool((scores[name][mask] > -math.inf).all()) for name, mask in masks.items())


def test_synflow_in_many_steps_empties_no_layer_where_one_step_does():
    """The paper's point: at high sparsity, global pruning at a stroke disconnects the network."""
    torch.manual_seed(1)
    sizes = [20, 400, 400, 4]
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)))

    def pruned(iterations):
        path = density_path(0.002, iterations)
        scores = gradually(model, lambda m: synflow(m, (20,)), path, distribution="global", exclude="none")
        return fs.sparsify(copy.deepcopy(model), 0.002, distribution="global", score=scores, exclude="none")

    at_once, stepwise = pruned(1), pruned(20)
    assert [layer.nnz for layer in at_once] == [1, 1, 337]
    assert min(layer.nnz for layer in stepwise) > 50
    flows = [float(synflow(fs.densify(found), (20,))["0.weight"].sum()) for found in (at_once, stepwise)]
    assert flows[0] == 0 < flows[1]


def test_the_model_is_left_as_it_was():
    model = SmallNet()
    before = copy.deepcopy(model.state_dict())
    gradually(model, lambda m: magnitude(prunable(m, "none")), [0.5, 0.2])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("densities", [[], [0.2, 0.5]])
def test_densities_must_not_rise(densities):
    with pytest.raises(ConfigError, match="must not rise"):
        gradually(SmallNet(), lambda m: magnitude(prunable(m, "none")), densities)
