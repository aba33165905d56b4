"""The plan names every layer, who computes it and why."""

import copy

import pytest
import torch

import fedsparse as fs
from fedsparse.errors import ConfigError
from fedsparse.nn import sparse_layers


def test_plan_of_a_model(net, generator):
    model = fs.sparsify(net(), 0.3, exclude="none")
    fs.set_masks(model, {"hidden.weight": torch.ones(16, 32, dtype=torch.bool)})
    model.out.set_backend("reference")
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(16, 2, 6, 6, generator=generator)
    table = fs.plan(model.eval(), x, repeats=1)
    layers = sparse_layers(model)
    assert [row.name for row in table.layers] == list(layers)
    for row in table.layers:
        layer = layers[row.name]
        assert (row.shape, row.density) == (layer.pattern.shape, layer.density)
        assert row.bytes_sparse == 4 * layer.nnz + layer.pattern.nbytes
        assert row.bytes_dense == 4 * layer.pattern.size
        assert row.ms_sparse > 0
        assert row.ms_dense > 0
    by_name = {row.name: row for row in table.layers}
    assert by_name["hidden.weight"].backend == "masked"
    assert "density 1.00 is above break-even" in by_name["hidden.weight"].reasons["cpu"]
    assert by_name["body.0.weight"].backend == "cpu"
    assert by_name["body.0.weight"].reasons == {"cpu": "chosen", "masked": "not needed"}
    assert by_name["out.weight"].backend == "reference"
    lines = str(table).splitlines()
    assert len(lines) == 1 + len(layers)
    assert lines[0].startswith("layer")
    assert "6x2x3x3" in lines[1]
    # Looking changed nothing.
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(layer.watcher is None for layer in layers.values())


def test_nothing_to_plan(net):
    with pytest.raises(ConfigError, match="no sparse layer ran on the example"):
        fs.plan(net(), torch.ones(1, 2, 6, 6))


def test_watchers_go_when_the_model_fails(net):
    model = fs.sparsify(net(), 0.5)
    with pytest.raises(ValueError, match="does not fit a weight"):
        fs.plan(model, torch.ones(1, 3, 6, 6))
    assert all(layer.watcher is None for layer in sparse_layers(model).values())
