"""GPT-2: its arithmetic, what it may look at, and its one table of tokens."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import fedsparse as fs
from fedsparse import pruning
from fedsparse.errors import ConfigError, InfeasibleDensityError, ShapeError
from fedsparse.models import gpt2
from fedsparse.nn import read_weights, sparse_layers, write_weights

VOCABULARY, HIDDEN, LAYERS, CONTEXT = 11, 12, 2, 9
TABLE = "lm_head.weight"


@pytest.fixture
def model():
    torch.manual_seed(3)
    made = gpt2(vocabulary=VOCABULARY, hidden=HIDDEN, layers=LAYERS, heads=3, context=CONTEXT, dropout=0.0)
    for parameter in made.parameters():  # the small initial weights would hide mistakes
        torch.nn.init.normal_(parameter, std=0.4)
    return made


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (4, CONTEXT), generator=torch.Generator().manual_seed(1))


def test_the_setting_of_the_paper_has_19708672_parameters():
    with torch.device("meta"):
        model = gpt2()
    # table, positions, 8 blocks of 12 h^2 weights, 9 h biases and 4 h of norms, and the last norm
    blocks = 8 * (12 * 256**2 + 13 * 256)
    assert sum(p.numel() for p in model.parameters()) == 50257 * 256 + 2048 * 256 + blocks + 2 * 256 == 19_708_672
    assert "19,708,672" in gpt2.__doc__
    assert sum(w.numel() for w in pruning.prunable(model).values()) == 6_291_456
    with pytest.raises(InfeasibleDensityError, match=r"density 0.5 cannot be reached"):
        fs.sparsify(model, 0.5)


def test_logits_by_hand(model, tokens):
    """In float64, head by head, with the mask written out."""
    w = {name: p.detach().double() for name, p in model.named_parameters()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w[TABLE][tokens] + w["wpe.weight"]
    for layer in range(LAYERS):
        query, key, value = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").split(HIDDEN, -1)
        heads = []
        for columns in torch.arange(HIDDEN).split(HIDDEN // 3):
            scores = query[..., columns] @ key[..., columns].transpose(1, 2) / math.sqrt(HIDDEN // 3)
            scores = scores.masked_fill(torch.ones(CONTEXT, CONTEXT).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ value[..., columns])
        x = x + linear(torch.cat(heads, -1), f"h.{layer}.attn.c_proj")
        inner = linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(inner, f"h.{layer}.mlp.c_proj")
    expected = norm(x, "ln_f") @ w[TABLE].T
    torch.testing.assert_close(model(tokens).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", [0, 4, CONTEXT - 1])
def test_a_token_changes_no_logits_before_it(model, tokens, place):
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert (before[:, place:] != after[:, place:]).any(-1).all()


def test_shorter_texts_give_the_same_logits(model, tokens):
    torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5])
    with pytest.raises(ShapeError, match=r"length up to 9, got \(1, 10\)"):
        model(torch.zeros(1, 10, dtype=torch.int64))


def test_initial_weights():
    torch.manual_seed(0)
    model = gpt2(vocabulary=1000, hidden=64, layers=2, heads=4, context=128)
    for name, parameter in model.named_parameters():
        if "ln_" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            expected = 0.01 if "c_proj" in name else 0.02  # 0.02 / sqrt(2 * 2 layers)
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_dropout_acts_in_training_alone(tokens):
    model = gpt2(vocabulary=VOCABULARY, hidden=HIDDEN, layers=1, heads=3, context=CONTEXT, dropout=0.5)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 5}, "hidden = 12 is no multiple of heads = 5"), ({"layers": 0}, "must be at least 1"),
     ({"dropout": 1.0}, r"share in \[0, 1\), got 1.0")],
)  # fmt: skip
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        gpt2(**{"hidden": 12, "heads": 3, "layers": 1, **changes})


# ---- the tied table
def test_the_table_is_one_parameter(model):
    assert [name for name, p in model.named_parameters() if p.shape[0] == VOCABULARY] == [TABLE]
    assert TABLE not in pruning.prunable(model, "output")
    assert list(pruning.prunable(model, "none")).count(TABLE) == 1
    assert list(read_weights(model).dense).count(TABLE) == 1


def test_output_keeps_the_table_dense_and_none_prunes_it(model):
    trainable = sum(p.numel() for p in model.parameters())
    kept = fs.sparsify(copy.deepcopy(model), 0.5)
    assert TABLE not in fs.masks(kept)
    assert torch.equal(kept.lm_head.weight, model.lm_head.weight)
    pruned = fs.sparsify(copy.deepcopy(model), 0.3, exclude="none")
    masks = fs.masks(pruned)
    assert masks[TABLE].shape == (VOCABULARY, HIDDEN)
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    assert fs.density(pruned) == pytest.approx(1 - zeros / trainable)
    assert 0.29 < fs.density(pruned) <= 0.3


@pytest.mark.parametrize("backend", ["auto", "cpu", "masked", "reference"])
@pytest.mark.parametrize("exclude", ["output", "none"])
def test_sparse_equals_dense(model, tokens, exclude, backend):
    """Logits and gradients, those of the table from both its uses."""
    sparse = fs.sparsify(model, 0.4, exclude=exclude)
    fs.set_backend(sparse, backend)
    dense = fs.densify(copy.deepcopy(sparse))
    outputs = [network(tokens) for network in (sparse, dense)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for logits in outputs:
        F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
    layers, plain = sparse_layers(sparse), dict(sparse.named_parameters())
    assert (TABLE in layers) == (exclude == "none")
    for name, parameter in dense.named_parameters():
        layer = layers.get(name)
        grad = plain[name].grad if layer is None else layer.values.grad
        expected = parameter.grad if layer is None else layer.pattern.gather(parameter.grad)
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-5)


def test_growth_of_the_table_sees_both_uses(model, tokens):
    sparse = fs.sparsify(model, 0.4, exclude="none")
    layer = sparse_layers(sparse)[TABLE]
    dense = fs.densify(copy.deepcopy(sparse))
    with fs.topk_pruned_gradient(layer, 5) as top:
        sparse(tokens).square().mean().backward()
    dense(tokens).square().mean().backward()
    gradient = dense.lm_head.weight.grad.masked_fill(layer.mask, 0).flatten()
    assert set(top.indices.tolist()) == set(gradient.abs().topk(5).indices.tolist())
    torch.testing.assert_close(top.gradients, gradient[top.indices], rtol=1e-3, atol=1e-6)


def test_weights_move_between_dense_and_sparse(model, tokens):
    sparse = fs.sparsify(copy.deepcopy(model), 0.3, exclude="none")
    write_weights(model, read_weights(sparse))
    assert torch.equal(model(tokens), sparse(tokens))
