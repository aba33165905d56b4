"""Sparse layers in and out of any model, and a model's state in compact form."""

from collections.abc import Collection, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedsparse import pruning
from fedsparse.blocked import hold_whole, keep_blocked, leave_blocked
from fedsparse.errors import ConfigError, PatternError
from fedsparse.nn.conv2d import SparseConv2d
from fedsparse.nn.layer import SparseLayer, repattern
from fedsparse.nn.linear import SparseLinear
from fedsparse.nn.normalised import NormalisedConv2d, SparseNormalisedConv2d
from fedsparse.pattern import Granularity, Pattern, Topology, Weights, parse

__all__ = [
    "densify",
    "density",
    "masks",
    "read_weights",
    "set_backend",
    "set_masks",
    "sparse_layers",
    "sparsify",
    "topology",
    "write_weights",
]

_Model = TypeVar("_Model", bound=nn.Module)


# ---- into and out of sparse form
def sparsify(
    model: _Model,
    density: float,
    *,
    distribution: str = "erk",
    score: str | Mapping[str, Tensor] = "magnitude",
    granularity: str = "element",
    exclude: str | Collection[str | nn.Module] = "output",
    generator: torch.Generator | None = None,
) -> _Model:
    """Replaces the eligible Linear and Conv2d layers of `model` by sparse ones, in place.

    Args:
        model: any module.
        density: kept share of all trainable parameters, in (0, 1]; biases, norms and excluded layers count as kept.
        distribution: `erk`, `er`, `uniform` or `global`.
        score: `magnitude`, `random`, or a score per weight name, higher is kept.
        granularity: unit of pruning, kept or pruned as a whole: `element`; `vector:G`, G consecutive output channels
            at one input channel and kernel position; `block:B`, B x B output and input channels at one kernel
            position; `channel`, an output channel; or `nm:N:M`, which keeps N of every M consecutive input channels.
            Where a layer's channels are no multiple of G, B or M, its last units are smaller. Units are ranked by the
            mean of their scores, by magnitude by the root mean square of their weights, and densities are met as
            closely from below as whole units allow. `nm` fixes the density: of pruned layers it is N / M.
        exclude: `output`, `ends`, `none`, or names or modules that stay dense.
        generator: for random scores; torch's default generator otherwise.

    Returns:
        The same model.

    Raises:
        ConfigError: an unknown option, a density outside (0, 1] or another one than `nm` fixes.
        InfeasibleDensityError: what stays dense, with one unit a layer, alone exceeds the density.
        PatternError: an unknown granularity.
    """
    unit = parse(granularity)
    if isinstance(model, nn.Linear | nn.Conv2d):
        raise ConfigError(
            f"a bare {type(model).__name__} cannot be replaced in place; wrap it in nn.Sequential, or use from_dense"
        )
    weights = pruning.prunable(model, exclude)
    if not weights:
        raise ConfigError(f"{type(model).__name__} has no dense Linear or Conv2d to prune with exclude={exclude!r}")
    others = sum(p.numel() for p in model.parameters() if p.requires_grad) - sum(w.numel() for w in weights.values())
    scores = _scores(weights, score, unit, generator)
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    if distribution == "global":
        total = pruning.budget(shapes, density, others=others, granularity=unit)
        chosen = pruning.globally(scores, total, granularity=unit)
    else:
        counts = pruning.allocate(shapes, density, distribution=distribution, others=others, granularity=unit)
        chosen = pruning.layerwise(scores, counts, unit)
    _refuse_tied(model, weights)
    for name, mask in chosen.items():
        _replace(model, name, _sparse(_module(model, name), mask, granularity))
    return keep_blocked(model)


def _refuse_tied(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """A weight that several modules share would fall apart when one of them becomes sparse."""
    for name, weight in weights.items():
        owners = [path for path, m in model.named_modules() if any(p is weight for p in m._parameters.values())]
        if len(owners) > 1:
            raise ConfigError(f"{name!r} is shared by {' and '.join(owners)}; exclude {owners[0]!r} to keep it dense")


def _scores(
    weights: Mapping[str, Tensor],
    score: str | Mapping[str, Tensor],
    unit: Granularity,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    if score == "magnitude":
        return pruning.magnitude(weights, unit)
    if score == "random":
        return pruning.random(weights, generator or torch.default_generator)
    if isinstance(score, str):
        raise ConfigError(f"unknown score {score!r}; expected 'magnitude', 'random' or a tensor per weight")
    for name, weight in weights.items():
        if name not in score or score[name].shape != weight.shape:
            given = f"shape {tuple(score[name].shape)}" if name in score else "nothing"
            raise PatternError(f"scores for {name!r} must have the weight's shape {tuple(weight.shape)}, got {given}")
    return {name: score[name] for name in weights}


def densify(model: nn.Module) -> nn.Module:
    """Replaces every sparse layer by the dense layer of the same function, in place; returns the same model.

    A model that is itself a sparse layer is returned as a new dense layer.
    """
    if isinstance(model, SparseLayer):
        return model.to_dense()
    for name, layer in sparse_layers(model).items():
        _replace(model, name, layer.to_dense())
    return leave_blocked(hold_whole(model))


def _sparse(module: nn.Module, mask: Tensor, granularity: str) -> SparseLayer:
    if isinstance(module, NormalisedConv2d):
        return SparseNormalisedConv2d.from_dense(module, mask, granularity=granularity)
    if isinstance(module, nn.Conv2d):
        return SparseConv2d.from_dense(module, mask, granularity=granularity)
    if isinstance(module, nn.Linear):
        return SparseLinear.from_dense(module, mask, granularity=granularity)
    raise PatternError(f"only Linear and Conv2d can be sparse, got {type(module).__name__}")


def _module(model: nn.Module, name: str) -> nn.Module:
    path = name.removesuffix(".weight")
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise PatternError(f"the model has no layer {path!r} for weight {name!r}") from error


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    old = _module(model, name)
    # A module that stands in several places is replaced in all of them.
    for path in [path for path, module in model.named_modules(remove_duplicate=False) if module is old]:
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)


# ---- looking and changing
def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Sparse layers by weight name, `"<module path>.weight"`, in module order."""
    return {f"{path}.weight": m for path, m in model.named_modules() if isinstance(m, SparseLayer)}


def topology(model: nn.Module) -> Topology:
    """Patterns of all sparse layers."""
    return Topology({name: layer.pattern for name, layer in sparse_layers(model).items()})


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Bool mask of dense shape of every sparse layer, by weight name."""
    return topology(model).masks()


def set_masks(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    grown: float = 0.0,
) -> None:
    """Gives sparse layers new masks in place; kept weights keep value and optimiser state.

    All masks are checked before the first layer changes.

    Args:
        model: with sparse layers.
        masks: new bool masks of dense shape, by weight name; layers not named stay as they are.
        optimizer: whose state follows; cleared for grown weights.
        grown: value of grown weights.

    Raises:
        PatternError: a name without a sparse layer, or a mask of another shape or type or that breaks a unit.
    """
    layers = sparse_layers(model)
    new: dict[str, Pattern] = {}
    for name, mask in masks.items():
        if name not in layers:
            raise PatternError(f"no sparse layer for mask {name!r}; sparse weights are: {', '.join(layers) or 'none'}")
        pattern = layers[name].pattern
        if tuple(mask.shape) != pattern.shape:
            raise PatternError(f"mask {name!r} has shape {tuple(mask.shape)}, the weight has {pattern.shape}")
        try:
            new[name] = Pattern.from_mask(mask, pattern.granularity, device=pattern.column.device)
        except PatternError as error:
            raise PatternError(f"mask {name!r}: {error}") from error
    repattern([(layers[name], pattern) for name, pattern in new.items()], optimizer=optimizer, grown=grown)


def density(model: nn.Module) -> float:
    """Kept share of all trainable parameters; 1 for a dense model."""
    trainable = {id(p): p for p in model.parameters() if p.requires_grad}
    kept = sum(p.numel() for p in trainable.values())
    pruned = sum(m.pattern.size - m.nnz for m in sparse_layers(model).values() if id(m.values) in trainable)
    return kept / (kept + pruned) if kept else 1.0


def set_backend(model: nn.Module, name: str) -> None:
    """Lets the backend `name` compute every sparse layer of `model`.

    Raises:
        BackendError: there is no backend of that name.
    """
    for layer in sparse_layers(model).values():
        layer.set_backend(name)


# ---- state in compact form
def read_weights(model: nn.Module) -> Weights:
    """Copy of a model's state: values of sparse layers, everything else dense under its dense model's name."""
    seen = _seen(model)
    values = {name: tensor.detach().clone() for name, tensor in seen.values.items()}
    dense = {name: tensor.detach().clone() for name, tensor in seen.dense.items()}
    return Weights(seen.topology, values, dense)


def _seen(model: nn.Module) -> Weights:
    """A model's own tensors as `Weights`."""
    values = {name: layer.values for name, layer in sparse_layers(model).items()}
    return Weights(topology(model), values, _dense_tensors(model))


def write_weights(model: nn.Module, weights: Weights) -> None:
    """Puts `weights` into `model`, changing layers and patterns where their topology asks for it.

    Everything is checked before the first layer changes.

    Raises:
        PatternError: the model lacks a layer or tensor of `weights`, has others, or shapes differ.
    """
    _check_fit(model, weights)
    layers = sparse_layers(model)
    for name in layers.keys() - weights.topology.keys():
        # Nothing is pruned any more, which a dense layer could not tell from zeros.
        everything = torch.ones(layers[name].pattern.shape, dtype=torch.bool)
        layers[name].repattern(Pattern.from_mask(everything))
        _replace(model, name, layers[name].to_dense())
    changed = [
        (layers[name], pattern)
        for name, pattern in weights.topology.items()
        if name in layers and pattern != layers[name].pattern
    ]
    repattern(changed)
    for name, pattern in weights.topology.items():
        if name not in layers:
            _replace(model, name, _sparse(_module(model, name), pattern.mask(), str(pattern.granularity)))
    if len(weights.topology):
        keep_blocked(model)
    with torch.no_grad():
        for name, layer in sparse_layers(model).items():
            layer.values.copy_(weights.values[name])
        for name, tensor in _dense_tensors(model).items():
            tensor.copy_(weights.dense[name])


def _check_fit(model: nn.Module, weights: Weights) -> None:
    for name in weights.topology:
        if not isinstance(_module(model, name), SparseLayer | nn.Linear | nn.Conv2d):
            raise PatternError(f"{name!r} belongs to a {type(_module(model, name)).__name__}, which cannot be sparse")
    _seen(model).require_shapes(weights, here="the model", there="the weights")


def _dense_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, but for what makes up sparse weights; tied tensors once."""
    sparse = {id(layer.values) for layer in sparse_layers(model).values()}
    found: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if id(p) not in sparse}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = buffer
    return found
