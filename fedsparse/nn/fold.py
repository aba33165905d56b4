"""Several networks of one architecture and one set of masks as a single one, whose kernels run once for all of them.

Networks stand side by side in the channels: inputs `(n, k * channels, height, width)`, convolutions with k times the
groups, batch norms with k times the channels, linear layers as 1x1 convolutions with k groups. Every network keeps
its own weights and statistics, and since no product mixes two groups, each computes what it would by itself, up to
the order in which a kernel adds. Optimisers that treat every number by itself (SGD, Adam) train all of them at once;
with `Joint`, each network has an optimiser of its own.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse.blocked import keep_blocked
from fedsparse.errors import ConfigError
from fedsparse.nn.conv2d import SparseConv2d
from fedsparse.nn.layer import SparseLayer
from fedsparse.nn.linear import SparseLinear
from fedsparse.pattern import Pattern

__all__ = ["FoldedLinear", "Joint", "fold", "require_foldable", "side_by_side", "unfold"]

# Without parameters, and the same for every channel or for every number.
_ALIKE = (nn.ReLU, nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.GELU, nn.Sequential)

_NOISE = 0.5  # of a number's usual size
_ALLOWED = 0.05  # far above what TF32 and the order of sums leave, far below what mixed channels give


class FoldedLinear(nn.Module):
    """Linear layers side by side: `(n, k * in)` -> `(n, k * out)`."""

    def __init__(self, pixel: nn.Conv2d | SparseConv2d) -> None:
        super().__init__()
        self.pixel = pixel

    def forward(self, x: Tensor) -> Tensor:
        """Each network's features by its own weight."""
        y: Tensor = self.pixel(x[:, :, None, None])
        return y.squeeze((2, 3))  # its gradient lies as y does


def fold(networks: Sequence[nn.Module]) -> nn.Module:
    """One network that computes all of `networks`, which stay as they are.

    Parts that this module does not know must hold no numbers of their own, and may do to their tensors only what
    keeps channels apart: arithmetic, activations, pooling, `flatten(1)`, means over pixels.

    Args:
        networks: of one architecture, with equal masks, on one device.

    Raises:
        ConfigError: a layer that cannot be folded, or networks that differ in more than their numbers.
    """
    if not networks:
        raise ConfigError("there is nothing to fold: expected at least one network")
    for network in networks:
        _require_own_numbers(network)
    wide = copy.deepcopy(networks[0])
    if type(wide) in _FOLDED:
        raise ConfigError(f"a bare {type(wide).__name__} cannot be folded; wrap it in nn.Sequential")
    for path, module in list(wide.named_modules()):
        parts = [_part(network, path, module) for network in networks]
        if type(module) in _FOLDED:
            for part in parts:
                _require_simple(path, part)
            parent, _, leaf = path.rpartition(".")
            setattr(wide.get_submodule(parent), leaf, _FOLDED[type(module)](parts).train(module.training))
        else:
            _require_plain(path, module)
    return keep_blocked(wide) if any(isinstance(module, SparseLayer) for module in wide.modules()) else wide


def unfold(wide: nn.Module, networks: Sequence[nn.Module]) -> None:
    """Writes the numbers of `wide`, which `fold` made of `networks`, back into each of them."""
    with torch.no_grad():
        for whole, parts in _matched(wide, networks):
            for mine, view in zip(parts, _split(whole, parts) if whole.ndim else [whole] * len(parts), strict=True):
                mine.copy_(view)


def side_by_side(batches: Sequence[Tensor]) -> Tensor:
    """Batches of equal size, one for each network, as the input of the folded network: stacked in the channels."""
    return torch.cat(list(batches), dim=1)


class Joint:
    """Networks whose numbers lie in the one that computes all of them.

    Their parameters and batch-norm statistics are views of the folded network's until `part`. So one forward and one
    backward pass give the gradients of all, an optimiser of one network's own moves its part of the whole, and a
    network may be trained by itself in between. Masks must stay as they are.

    Args:
        networks: as for `fold`.

    Raises:
        ConfigError: as of `fold`.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._wide = fold(networks)
        self._parameters: list[tuple[Tensor, list[Tensor]]] = []
        self._statistics: list[list[Tensor]] = []
        self._counters: list[tuple[Tensor, Tensor, list[Tensor]]] = []  # with what the folded one began at
        for whole, parts in _matched(self._wide, networks):
            if not whole.ndim:
                self._counters.append((whole, whole.clone(), parts))
                continue
            for mine, view in zip(parts, _split(whole.detach(), parts), strict=True):
                mine.data = view
            if whole.requires_grad:
                self._parameters.append((whole, parts))
            else:
                self._statistics.append(parts)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Output `(n, ...)` of each network for its own input `(n, ...)`; n is the same for all."""
        output: Tensor = self._wide(side_by_side(inputs))
        return list(output.chunk(len(inputs), dim=1))

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, made of outputs of the last call, in place of those that the networks have."""
        self._wide.zero_grad()
        loss.backward()
        for whole, parts in self._parameters:
            grads = [None] * len(parts) if whole.grad is None else _split(whole.grad, parts)
            for mine, grad in zip(parts, grads, strict=True):
                mine.grad = grad

    def part(self) -> None:
        """Gives every network memory of its own again; the object is of no use any more."""
        for parts in (*(parts for _, parts in self._parameters), *self._statistics):
            for mine in parts:
                mine.data = mine.detach().clone()
        with torch.no_grad():
            for whole, start, parts in self._counters:
                for mine in parts:
                    mine.add_(whole - start)


def require_foldable(network: nn.Module, x: Tensor) -> None:
    """Tries whether two networks like this one compute side by side, in training mode, what each does by itself.

    `fold` knows layers, not what a model's own `forward` does between them: one that mixes channels, or draws random
    numbers, shows here.

    Args:
        network: left as it is.
        x: `(n, ...)` inputs, n at least 2.

    Raises:
        ConfigError: they do not, or cannot be folded.
    """
    generator = torch.Generator().manual_seed(0)
    pair, inputs = [_varied(network, generator) for _ in range(2)], [x, x.flip(0)]
    gpu = [x.device] if x.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=gpu):
        try:
            alone = [one(mine) for one, mine in zip(pair, inputs, strict=True)]
            together = Joint(pair)(inputs)
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(together, alone, strict=True)]
        except ConfigError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # of a forward that expects its own sizes
            raise ConfigError(f"the model cannot compute networks side by side: {error}") from error
    if not all(error < _ALLOWED for error in errors):  # NaN is an error too
        raise ConfigError(
            f"the model computes networks side by side with relative errors of {max(errors):.2g}: its forward mixes "
            "channels or draws random numbers, which folded networks must not"
        )


def _varied(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in training mode with other numbers."""
    copied = copy.deepcopy(network).train()
    with torch.no_grad():
        for parameter in copied.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(_NOISE * (parameter.abs().sum() / max(1, parameter.numel()) + 0.1) * noise)
    return copied


def _matched(wide: nn.Module, networks: Sequence[nn.Module]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Each tensor of the folded layers with its parts in the networks, in their order."""
    for path, module in networks[0].named_modules():
        if type(module) not in _FOLDED:
            continue
        whole = wide.get_submodule(path)
        tensors = _numbers(whole.pixel if isinstance(whole, FoldedLinear) else whole)
        parts = [_numbers(network.get_submodule(path)) for network in networks]
        for name in parts[0]:
            yield tensors[name], [mine[name] for mine in parts]


def _split(whole: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """Views of `whole`, one in the shape of each part."""
    rows = whole.shape[0] // len(parts)
    return [part.view(parts[0].shape) for part in whole.view(len(parts), rows, *whole.shape[1:]).unbind()]


def _part(network: nn.Module, path: str, like: nn.Module) -> nn.Module:
    try:
        part = network.get_submodule(path)
    except AttributeError:
        raise ConfigError(f"networks to be folded must be alike: one has no part {path!r}") from None
    if _kind(part) != _kind(like):
        where = path or "the model"
        raise ConfigError(
            f"networks to be folded must be alike: {where} is {_kind(like)} in one, {_kind(part)} in another"
        )
    return part


def _require_own_numbers(network: nn.Module) -> None:
    """A layer that stands in two places, or a parameter that two layers share, would become two."""
    if len([*network.parameters()]) != len([*network.named_parameters(remove_duplicate=False)]):
        raise ConfigError(f"{type(network).__name__} uses a parameter in two places, which cannot be folded; copy it")


def _require_simple(path: str, layer: nn.Module) -> None:
    """What others have added to a layer would be lost."""
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        raise ConfigError(f"{path} has hooks, which cannot be folded; remove them first")
    if isinstance(layer, SparseLayer) and layer.activation_pruning is not None:
        raise ConfigError(f"{path} prunes its activations, which cannot be folded; undo it with prune_activations")
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is None:
        raise ConfigError(f"{path} averages over all batches, which cannot be folded; give it a momentum")


def _kind(module: nn.Module) -> str:
    """What parts of two networks must have in common; masks are compared apart from this."""
    children = [name for name, _ in module.named_children()]
    if children or isinstance(module, SparseLayer):
        return f"{type(module).__name__}({', '.join(children)})"
    return repr(module)


def _require_plain(path: str, module: nn.Module) -> None:
    """A part that is kept as it is must not hold numbers; one without parts of its own must be known."""
    own = [*module._parameters, *(name for name in module._buffers)]
    known = isinstance(module, _ALIKE) or next(module.children(), None) is not None
    if own or not known:
        held = f" with {', '.join(own)}" if own else ""
        raise ConfigError(
            f"{path or 'the model'} is a {type(module).__name__}{held}, which cannot be folded; networks are folded if "
            "they consist of convolutions, linear layers, batch norms, ReLU and pooling"
        )


def _numbers(module: nn.Module) -> dict[str, Tensor]:
    """What `unfold` writes back: parameters and statistics, but no masks."""
    found: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    return found | {name: b for name, b in module.named_buffers(recurse=False) if name not in Pattern.INDEX_NAMES}


# ---- one layer of each network
def _cat(parts: Sequence[nn.Module], name: str) -> Tensor | None:
    tensors = [getattr(part, name) for part in parts]
    return None if tensors[0] is None else torch.cat([tensor.detach() for tensor in tensors])


def _parameter(parts: Sequence[nn.Module], name: str) -> nn.Parameter | None:
    whole, first = _cat(parts, name), getattr(parts[0], name)
    return None if whole is None else nn.Parameter(whole, requires_grad=first.requires_grad)


def _conv(parts: Sequence[Any]) -> nn.Conv2d:
    first: nn.Conv2d = parts[0]
    wide = nn.Conv2d(
        first.in_channels * len(parts), first.out_channels * len(parts), _pair(first.kernel_size), _pair(first.stride),
        first.padding if isinstance(first.padding, str) else _pair(first.padding), _pair(first.dilation),
        first.groups * len(parts), first.bias is not None, first.padding_mode, device="meta",
    )  # fmt: skip
    return _with(wide, _parameter(parts, "weight"), _parameter(parts, "bias"))


def _linear(parts: Sequence[Any]) -> FoldedLinear:
    first: nn.Linear = parts[0]
    pixel = nn.Conv2d(first.in_features * len(parts), first.out_features * len(parts), 1, groups=len(parts),
                      bias=first.bias is not None, device="meta")  # fmt: skip
    weight = _parameter(parts, "weight")
    assert weight is not None
    weight.data = weight.data[:, :, None, None]
    return FoldedLinear(_with(pixel, weight, _parameter(parts, "bias")))


def _with(conv: nn.Conv2d, weight: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Conv2d:
    assert weight is not None
    conv.weight, conv.bias = weight, bias
    return conv


def _sparse_conv(parts: Sequence[Any]) -> SparseConv2d:
    first: SparseConv2d = parts[0]
    return _sparse(parts, first.pattern.shape, first.to_dense())


def _sparse_linear(parts: Sequence[Any]) -> FoldedLinear:
    shape = (*parts[0].pattern.shape, 1, 1)
    return FoldedLinear(_sparse(parts, shape, nn.Conv2d(shape[1], shape[0], 1, device="meta")))


def _sparse(parts: Sequence[SparseLayer], shape: tuple[int, ...], like: nn.Conv2d) -> SparseConv2d:
    """The rows of all networks one below the other, each reading channels of its own group."""
    pattern, count = parts[0].pattern.to("cpu"), len(parts)
    if any(part.pattern != parts[0].pattern for part in parts):
        raise ConfigError("networks to be folded must have equal masks; give them one topology with set_masks first")
    ends = [pattern.row_start[1:] + place * pattern.nnz for place in range(count)]
    row_start, column = torch.cat([pattern.row_start[:1], *ends]), pattern.column.repeat(count)
    rows = Pattern.from_rows((count * shape[0], *shape[1:]), row_start, column, pattern.granularity)
    values = _parameter(parts, "values")
    assert values is not None
    wide = SparseConv2d(rows.to(values.device), values.data, None, like)
    wide.values, wide.bias = values, _parameter(parts, "bias")
    wide.groups = like.groups * count
    wide.backend = parts[0].backend
    return wide


def _batch_norm(parts: Sequence[Any]) -> nn.Module:
    wide = copy.deepcopy(parts[0])
    wide.num_features = parts[0].num_features * len(parts)
    for name in ("weight", "bias"):
        setattr(wide, name, _parameter(parts, name))
    for name in ("running_mean", "running_var"):
        setattr(wide, name, _cat(parts, name))
    norm: nn.Module = wide
    return norm


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    vertical, horizontal = sizes
    return vertical, horizontal


_FOLDED: Mapping[type[nn.Module], Callable[[Sequence[Any]], nn.Module]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    SparseConv2d: _sparse_conv,
    SparseLinear: _sparse_linear,
}
