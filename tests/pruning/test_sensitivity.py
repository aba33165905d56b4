"""SNIP and GraSP against arithmetic and float64 derivatives."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsparse.errors import ConfigError
from fedsparse.pruning import grasp, magnitude, prunable, snip, top


def half_square(outputs, targets):
    return 0.5 * (outputs.squeeze(1) - targets).square().mean()


def line(*weights):
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data = torch.tensor([weights])
    return nn.Sequential(layer)


def network(seed=0):
    torch.manual_seed(seed)
    parts = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)]
    return nn.Sequential(*parts).double()


def samples(count=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3


def parts(x, y, *sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def test_snip_keeps_what_the_loss_depends_on():
    # f = w x = 5, gradient 5 x = (5, 5, 20), times w: (5, 10, 10); magnitude would keep 0 and 1
    model, batch = line(1.0, 2.0, 0.5), (torch.tensor([[1.0, 1.0, 4.0]]), torch.zeros(1))
    scores = snip(model, [batch], loss=half_square)["0.weight"]
    assert scores.tolist() == [[5.0, 10.0, 10.0]]
    assert top(scores, 2).tolist() == [1, 2]
    assert top(magnitude(prunable(model, "none"))["0.weight"], 2).tolist() == [0, 1]


def test_snip_takes_the_magnitude_of_the_mean_over_all_samples():
    model = line(2.0)
    x, y = torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([0.0, 0.0, 8.0])  # gradients 2, 2 and -6
    for batches in ([(x, y)], parts(x, y, 2, 1), parts(x, y, 1, 1, 1)):
        assert snip(model, batches, loss=half_square)["0.weight"].item() == pytest.approx(2 * 2 / 3)


def test_snip_is_the_derivative_by_a_mask():
    """|dL/dc| at c = 1 for weights c w, by central differences."""
    model, (x, y) = network(), samples()
    probe = copy.deepcopy(model).train()
    probe[4].eval()
    scores = snip(model, [(x, y)])
    for name, index in (("0.weight", 5), ("0.weight", 40), ("5.weight", 7), ("5.weight", 100)):
        weight = probe.get_parameter(name).data.view(-1)
        full, losses = float(weight[index]), []
        for c in (1 + 1e-6, 1 - 1e-6):
            weight[index] = c * full
            losses.append(cross_entropy(probe(x), y).item())
        weight[index] = full
        assert scores[name].view(-1)[index].item() == pytest.approx(abs(losses[0] - losses[1]) / 2e-6, rel=1e-4)


class Quadratic(nn.Module):
    """Outputs w1 and w2 as they are, whatever comes in."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1, bias=False)
        self.fc.weight.data = torch.ones(1, 2)

    def forward(self, x):
        return self.fc.weight.expand(len(x), 2)


def test_the_sign_of_grasp():
    # L = 0.5 (2 w1^2 + w2^2), w = (1, 1): g = (2, 1), H g = (4, 1). |g|^2 = 5; without w1 it is 1, without w2 it is 4,
    # so w2 must go.
    def loss(outputs, _):
        return 0.5 * (outputs.square() * torch.tensor([2.0, 1.0])).sum(1).mean()

    scores = grasp(Quadratic(), [(torch.ones(3, 2), torch.zeros(3))], loss=loss, temperature=1.0)["fc.weight"]
    assert scores.tolist() == [[4.0, 1.0]]
    assert top(scores, 1).tolist() == [0]
    # Outputs at temperature T: the loss is L / T^2, and H g has it twice.
    cooled = grasp(Quadratic(), [(torch.ones(3, 2), torch.zeros(3))], loss=loss, temperature=2.0)["fc.weight"]
    assert cooled.tolist() == [[4 / 16, 1 / 16]]


def test_grasp_is_the_change_of_gradient_flow():
    """-2 w (H g) is the derivative of |g|^2 as w shrinks, by central differences; scores have both signs."""
    model, (x, y) = network(), samples()
    probe = copy.deepcopy(model).train()
    probe[4].eval()
    weights = prunable(probe, "none")
    scores = grasp(model, [(x, y)], temperature=4.0)

    def flow():
        found = torch.autograd.grad(cross_entropy(probe(x) / 4, y), list(weights.values()))
        return sum(float(g.square().sum()) for g in found)

    for name, index in (("0.weight", 5), ("0.weight", 40), ("5.weight", 7), ("5.weight", 100)):
        weight = weights[name].data.view(-1)
        full, flows = float(weight[index]), []
        for c in (1 - 1e-5, 1 + 1e-5):
            weight[index] = c * full
            flows.append(flow())
        weight[index] = full
        wanted = -2 * scores[name].view(-1)[index].item()
        assert (flows[0] - flows[1]) / 2e-5 == pytest.approx(wanted, rel=1e-3, abs=1e-12)
    assert min(float(s.min()) for s in scores.values()) < 0 < max(float(s.max()) for s in scores.values())


@pytest.mark.parametrize("score", [snip, grasp])
def test_batches_weigh_by_their_samples(score):
    model, (x, y) = network(), samples()
    model[1] = nn.Identity()  # without statistics of the batch, the split makes no difference
    whole, split = score(model, [(x, y)]), score(model, parts(x, y, 7, 1, 4))
    for name, scores in whole.items():
        assert torch.allclose(split[name], scores, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("score", [snip, grasp])
def test_the_model_is_left_as_it_was(score):
    model, batch = network().train(), samples()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    first, again = score(model, [batch]), score(model.eval(), [batch])
    assert torch.equal(torch.get_rng_state(), state)  # dropout is off
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert list(first) == ["0.weight", "5.weight"]
    assert not any(s.requires_grad for s in first.values())


@pytest.mark.parametrize("score", [snip, grasp])
def test_layers_that_are_not_used_score_zero(score):
    model = network()
    model[2].spare = nn.Linear(3, 3)
    assert score(model, [samples()])["2.spare.weight"].abs().sum() == 0


@pytest.mark.parametrize("score", [snip, grasp])
def test_samples_are_needed(score):
    with pytest.raises(ConfigError, match="need samples, got none"):
        score(network(), [])
