"""How functions of torch are carried out on blocked tensors; NotImplemented is what a rule does not cover."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.backends.blocked import Window, moments
from fedsparse.blocked.functions import Norm, apply
from fedsparse.blocked.layers import AveragePool, GroupNorm, MaxPool
from fedsparse.blocked.nodes import Normed, Stored, add, dtype_of, relu, requires_grad
from fedsparse.blocked.tensor import Blocked, rule, sizes_of

__all__: list[str] = []


def _batch(x: Blocked) -> int:
    return x.sizes[0]


def _stays(*tensors: Any) -> bool:
    """Whether all are in the layout, and stored alike."""
    dtypes = [None if t.node is None else dtype_of(t.node) for t in tensors if isinstance(t, Blocked)]
    return len(dtypes) == len(tensors) and None not in dtypes and len(set(dtypes)) <= 1


# ---- norms, ReLU, sums
@rule(F.batch_norm)
def _batch_norm(
    x: Blocked,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    count = math.prod(x.sizes) // x.sizes[1] if _stays(x) else 0
    if count < 2 or not _fit(x, running_mean, running_var, weight, bias):
        return NotImplemented
    data, weight, bias = x.stored(), _wide(weight), _wide(bias)
    if training:
        mean, variance = moments(data.detach(), _batch(x))
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    elif running_mean is not None and running_var is not None:
        mean, variance = running_mean.detach().to(torch.float32, copy=True), running_var.detach().float()
    else:
        return NotImplemented
    return Blocked(Normed(data, Norm.of(mean, variance, eps, weight, bias, own=training)), x.sizes)


def _fit(x: Blocked, *vectors: Tensor | None) -> bool:
    """Whether parameters and statistics are float32 or of the activations' dtype, as torch wants them."""
    assert x.node is not None
    dtypes = (torch.float32, dtype_of(x.node))
    return all(t is None or (t.dtype in dtypes and t.device.type == "cpu") for t in vectors)


def _wide(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.float()


@rule(F.relu, torch.relu, Tensor.relu)
def _relu(x: Blocked, inplace: bool = False) -> Any:
    if not _stays(x):
        return NotImplemented
    assert x.node is not None
    result = Blocked(relu(x.node, _batch(x)), x.sizes)
    return x.become(result) if inplace else result


@rule(torch.relu_, Tensor.relu_)
def _relu_(x: Blocked) -> Any:
    return _relu(x, inplace=True)


@rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def _add(left: Any, right: Any, *, alpha: float = 1) -> Any:
    if not _stays(left, right) or left.sizes != right.sizes or alpha != 1:
        return _elementwise(torch.add)(left, right, alpha=alpha)
    return Blocked(add(left.node, right.node, _batch(left)), left.sizes)


@rule(Tensor.add_, Tensor.__iadd__)
def _add_(left: Any, right: Any, *, alpha: float = 1) -> Any:
    result = _add(left, right, alpha=alpha)
    return result if result is NotImplemented or not isinstance(left, Blocked) else left.become(result)


# ---- functions of single numbers: the layout does not matter
def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def carry_out(*args: Any, **kwargs: Any) -> Any:
        blocked = [a for a in args if isinstance(a, Blocked)]
        others = [a for a in args if isinstance(a, Tensor) and not isinstance(a, Blocked)]
        if others or not blocked or not _stays(*blocked) or any(b.sizes != blocked[0].sizes for b in blocked):
            return NotImplemented
        data = [a.stored() if isinstance(a, Blocked) else a for a in args]
        return Blocked(Stored(function(*data, **kwargs)), blocked[0].sizes)

    return carry_out


# Only functions whose slope is finite at every finite number: lanes without an image go through them as well.
_Functions = dict[Callable[..., Any], tuple[Any, ...]]
_SMOOTH: _Functions = {
    F.gelu: (F.gelu,),
    F.silu: (F.silu,),
    F.leaky_relu: (F.leaky_relu,),
    F.elu: (F.elu,),
    F.hardtanh: (F.hardtanh, F.relu6),
    F.hardswish: (F.hardswish,),
    F.softplus: (F.softplus,),
    F.dropout: (F.dropout,),
    torch.tanh: (torch.tanh, Tensor.tanh),
    torch.sigmoid: (torch.sigmoid, Tensor.sigmoid),
    torch.mul: (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__),
    torch.sub: (torch.sub, Tensor.sub, Tensor.__sub__),
    torch.neg: (torch.neg, Tensor.neg, Tensor.__neg__),
    torch.detach: (torch.detach, Tensor.detach),
}
for _function, _names in _SMOOTH.items():
    rule(*_names)(_elementwise(_function))


# ---- shapes
@rule(torch.flatten, Tensor.flatten)
def _flatten(x: Blocked, start_dim: int = 0, end_dim: int = -1) -> Any:
    if not _stays(x) or start_dim != 1 or end_dim not in (-1, len(x.sizes) - 1):
        return NotImplemented
    data = x.stored()
    features = data[0, ..., 0].numel()
    return Blocked(Stored(data.reshape(data.shape[0], features, 1, 1, data.shape[-1])), (_batch(x), features))


@rule(Tensor.view, Tensor.reshape, torch.reshape)
def _view(x: Blocked, *shape: Any) -> Any:
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int | torch.dtype) else shape
    features = math.prod(x.sizes) // _batch(x) if _batch(x) else 0
    flattens = sizes in ((_batch(x), -1), (_batch(x), features), (-1, features))
    return _flatten(x, 1) if flattens else NotImplemented


@rule(torch.cat)
def _cat(tensors: Any, dim: int = 0) -> Any:
    ranks = {len(sizes_of(t)) for t in tensors}
    if not _stays(*tensors) or len(ranks) > 1 or dim not in (1, 1 - next(iter(ranks))):
        return NotImplemented
    first, channels = tensors[0], sum(t.sizes[1] for t in tensors)
    if any(t.sizes[0] != first.sizes[0] or t.sizes[2:] != first.sizes[2:] for t in tensors):
        return NotImplemented
    return Blocked(Stored(torch.cat([t.stored() for t in tensors], 1)), (_batch(first), channels, *first.sizes[2:]))


@rule(Tensor.requires_grad.__get__)  # type: ignore[attr-defined]
def _requires_grad(x: Blocked) -> Any:
    return requires_grad(x.node) if x.node is not None else NotImplemented


# ---- pooling and group norm
def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else tuple(value)
    return first, second


def _window(x: Blocked, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> Window | None:
    """The window over a picture, or None where torch should look at the arguments."""
    k, p, d = _pair(kernel), _pair(padding), _pair(dilation)
    s = _pair(stride) if stride not in (None, [], ()) else k
    size = (x.sizes[2], x.sizes[3])
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, k, s, p, d, strict=True)]
    if min(out) < 1 or any(2 * pad > side for pad, side in zip(p, k, strict=True)):
        return None
    return Window(k, s, p, d, (out[0], out[1]))


def _pooled(x: Blocked, window: Window, data: Tensor) -> Blocked:
    return Blocked(Stored(data), (*x.sizes[:2], *window.output))


@rule(torch.max_pool2d, F.max_pool2d)
def _max_pool2d(
    x: Blocked,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    window = _window(x, kernel_size, stride, padding, dilation) if _stays(x) and len(x.sizes) == 4 else None
    if window is None or ceil_mode or return_indices or window.kernel[0] * window.kernel[1] > 256:
        return NotImplemented
    return _pooled(x, window, apply(MaxPool, x.stored(), window, _batch(x)))


@rule(F.avg_pool2d)
def _avg_pool2d(
    x: Blocked,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    window = _window(x, kernel_size, stride, padding) if _stays(x) and len(x.sizes) == 4 else None
    if window is None or ceil_mode or divisor_override is not None:
        return NotImplemented
    divisor = window.kernel[0] * window.kernel[1] if count_include_pad else 0
    return _pooled(x, window, apply(AveragePool, x.stored(), window, divisor, _batch(x)))


@rule(F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Blocked, output_size: Any) -> Any:
    if not _stays(x) or len(x.sizes) != 4:
        return NotImplemented
    size = (x.sizes[2], x.sizes[3])
    out = [n if o is None else o for n, o in zip(size, _pair(output_size), strict=True)]
    if any(o < 1 or n % o for n, o in zip(size, out, strict=True)):
        return NotImplemented  # windows of different sizes
    kernel = (size[0] // out[0], size[1] // out[1])
    return _avg_pool2d(x, kernel)


@rule(torch.mean, Tensor.mean)
def _mean(x: Blocked, dim: Any = None, keepdim: bool = False) -> Any:
    if not _stays(x) or len(x.sizes) != 4 or dim is None or {d % 4 for d in _axes(dim)} != {2, 3}:
        return NotImplemented
    pooled = _adaptive_avg_pool2d(x, 1)
    return pooled if keepdim else _flatten(pooled, 1)


def _axes(dim: Any) -> tuple[int, ...]:
    return (dim,) if isinstance(dim, int) else tuple(dim)


@rule(F.group_norm)
def _group_norm(
    x: Blocked, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Any:
    fits = _stays(x) and num_groups > 0 and x.sizes[1] % num_groups == 0 and _fit(x, weight, bias)
    if not fits or math.prod(x.sizes) // (x.sizes[0] * num_groups) < 2:
        return NotImplemented
    z = apply(GroupNorm, x.stored(), _wide(weight), _wide(bias), num_groups, eps, _batch(x))
    return Blocked(Stored(z), x.sizes)
