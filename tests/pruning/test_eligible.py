import pytest
import torch
from torch import nn

from fedsparse.errors import ConfigError
from fedsparse.pruning import prunable


def small():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(4, 8)),
        nn.Linear(8, 2),
    )


@pytest.mark.parametrize(
    ("exclude", "names"),
    [
        ("output", ["0.weight", "2.0.weight", "2.1.weight"]),
        ("ends", ["2.0.weight", "2.1.weight"]),
        ("none", ["0.weight", "2.0.weight", "2.1.weight", "3.weight"]),
        ("2.0", ["0.weight", "2.1.weight", "3.weight"]),
        (["2.0.weight", "0"], ["2.1.weight", "3.weight"]),
        (["2"], ["0.weight", "3.weight"]),
        ([], ["0.weight", "2.0.weight", "2.1.weight", "3.weight"]),
    ],
)
def test_presets_and_names(exclude, names):
    model = small()
    weights = prunable(model, exclude)
    assert list(weights) == names
    assert all(weights[name] is dict(model.named_parameters())[name] for name in names)


def test_modules_may_be_given_themselves():
    model = small()
    assert list(prunable(model, [model[0], model[2]])) == ["3.weight"]


def test_a_name_that_is_a_prefix_of_another_is_not_that_one():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})
    assert list(prunable(model, "a")) == ["ab.weight"]


def test_a_bare_layer_is_its_own_output():
    layer = nn.Linear(2, 2)
    assert prunable(layer) == {}
    assert list(prunable(layer, "none")) == ["weight"]
    assert prunable(layer, [layer]) == {}


@pytest.mark.parametrize("exclude", ["outputs", ["0", "7"], ["1"], [nn.Linear(2, 2)]])
def test_unknown_names_are_refused_with_the_known_ones(exclude):
    with pytest.raises(ConfigError, match=r"output, ends, none.*0, 2\.0, 2\.1, 3"):
        prunable(small(), exclude)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(5, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 5)
        self.head.weight = self.tokens.weight


def test_shared_weights_appear_once_under_the_first_name():
    assert list(prunable(Tied(), "output")) == ["first.weight"]
    assert list(prunable(Tied(), "none")) == ["first.weight", "head.weight"]


def test_a_shared_weight_is_dense_when_any_of_its_modules_is_excluded():
    assert list(prunable(Tied(), ["second"])) == ["head.weight"]


def test_projection_that_attention_reads_directly_is_left_out():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 2))
    assert list(prunable(model)) == ["0.linear1.weight", "0.linear2.weight"]


def test_other_parameters_are_never_prunable():
    weights = prunable(small(), "none")
    assert all(isinstance(w, torch.nn.Parameter) and w.ndim >= 2 for w in weights.values())
