"""Several networks of one architecture and one set of masks as a single one, whose kernels run once for all of them.

Networks stand side by side in the channels: inputs `(n, k * channels, height, width)`, convolutions with k times the
groups, batch norms with k times the channels, linear layers as 1x1 convolutions with k groups. Every network keeps
its own weights and statistics, and since no product mixes two groups, each computes what it would by itself, up to
the order in which a kernel adds. Optimisers that treat every number by itself (SGD, Adam) train all of them at once.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse.blocked import keep_blocked
from fedsparse.errors import ConfigError
from fedsparse.nn.conv2d import SparseConv2d
from fedsparse.nn.layer import SparseLayer
from fedsparse.nn.linear import SparseLinear
from fedsparse.pattern import Pattern

__all__ = ["FoldedLinear", "fold", "side_by_side", "unfold"]

# Without parameters, and the same for every channel or for every number.
_ALIKE = (nn.ReLU, nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.GELU, nn.Sequential)


class FoldedLinear(nn.Module):
    """Linear layers side by side: `(n, k * in)` -> `(n, k * out)`."""

    def __init__(self, pixel: nn.Conv2d | SparseConv2d) -> None:
        super().__init__()
        self.pixel = pixel

    def forward(self, x: Tensor) -> Tensor:
        """Each network's features by its own weight."""
        y: Tensor = self.pixel(x[:, :, None, None])
        return y[:, :, 0, 0]


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
    wide = copy.deepcopy(networks[0])
    if type(wide) in _FOLDED:
        raise ConfigError(f"a bare {type(wide).__name__} cannot be folded; wrap it in nn.Sequential")
    for path, module in list(wide.named_modules()):
        parts = [_part(network, path, module) for network in networks]
        if type(module) in _FOLDED:
            parent, _, leaf = path.rpartition(".")
            setattr(wide.get_submodule(parent), leaf, _FOLDED[type(module)](parts).train(module.training))
        else:
            _require_plain(path, module)
    return keep_blocked(wide) if any(isinstance(module, SparseLayer) for module in wide.modules()) else wide


def unfold(wide: nn.Module, networks: Sequence[nn.Module]) -> None:
    """Writes the numbers of `wide`, which `fold` made of `networks`, back into each of them."""
    with torch.no_grad():
        for path, module in networks[0].named_modules():
            if type(module) not in _FOLDED:
                continue
            whole = wide.get_submodule(path)
            tensors = _numbers(whole.pixel if isinstance(whole, FoldedLinear) else whole)
            for place, network in enumerate(networks):
                for name, mine in _numbers(network.get_submodule(path)).items():
                    parts = tensors[name] if not mine.ndim else tensors[name].chunk(len(networks))[place]
                    mine.copy_(parts.view(mine.shape))


def side_by_side(batches: Sequence[Tensor]) -> Tensor:
    """Batches of equal size, one for each network, as the input of the folded network: stacked in the channels."""
    return torch.cat(list(batches), dim=1)


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


def _conv(parts: Sequence[Any]) -> nn.Conv2d:
    first: nn.Conv2d = parts[0]
    wide = nn.Conv2d(
        first.in_channels * len(parts), first.out_channels * len(parts), _pair(first.kernel_size), _pair(first.stride),
        first.padding if isinstance(first.padding, str) else _pair(first.padding), _pair(first.dilation),
        first.groups * len(parts), first.bias is not None, first.padding_mode, device="meta",
    )  # fmt: skip
    return _with(wide, _cat(parts, "weight"), _cat(parts, "bias"))


def _linear(parts: Sequence[Any]) -> FoldedLinear:
    first: nn.Linear = parts[0]
    pixel = nn.Conv2d(first.in_features * len(parts), first.out_features * len(parts), 1, groups=len(parts),
                      bias=first.bias is not None, device="meta")  # fmt: skip
    weight = torch.cat([part.weight.detach() for part in parts])[:, :, None, None]
    return FoldedLinear(_with(pixel, weight, _cat(parts, "bias")))


def _with(conv: nn.Conv2d, weight: Tensor | None, bias: Tensor | None) -> nn.Conv2d:
    assert weight is not None
    conv.weight = nn.Parameter(weight)
    conv.bias = None if bias is None else nn.Parameter(bias)
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
    values, bias = _cat(parts, "values"), _cat(parts, "bias")
    assert values is not None
    wide = SparseConv2d(rows.to(values.device), values, bias, like)
    wide.groups = like.groups * count
    wide.backend = parts[0].backend
    return wide


def _batch_norm(parts: Sequence[Any]) -> nn.Module:
    wide = copy.deepcopy(parts[0])
    wide.num_features = parts[0].num_features * len(parts)
    for name in ("weight", "bias"):
        whole = _cat(parts, name)
        setattr(wide, name, None if whole is None else nn.Parameter(whole))
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
