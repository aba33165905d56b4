"""The product with a sparse weight as a torch op: schema, checks, fake and autograd, for linear and conv2d alike.

`index` holds the five index tensors of a `Pattern`; `geometry` is empty for a linear layer, else stride, padding and
dilation (vertical, horizontal each) and groups.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedsparse import backends
from fedsparse.backends import Case, Geometry
from fedsparse.errors import DoubleBackwardError, ShapeError
from fedsparse.pattern import Pattern

__all__ = [
    "as_autocast_wants",
    "autocast_dtype",
    "check_parameters",
    "product",
    "read_case",
    "remembered_case",
    "topk_pruned",
    "values_gradient",
    "weight_gradient",
]

_LIBRARY = torch.library.Library("fedsparse", "DEF")
_WEIGHT = "Tensor[] index, int[] shape, int[] geometry, str backend"
_LIBRARY.define(f"product(Tensor x, Tensor values, Tensor? bias, {_WEIGHT}) -> Tensor")
_LIBRARY.define(
    "product_backward(Tensor grad, Tensor x, Tensor values, bool want_x, bool want_values, "
    f"{_WEIGHT}) -> (Tensor, Tensor)"
)
_LIBRARY.define(f"topk_pruned(Tensor grad, Tensor x, int k, {_WEIGHT}) -> (Tensor, Tensor)")


def read_case(x: Tensor, shape: Sequence[int], nnz: int, geometry: Sequence[int]) -> Case:
    """The case of an input and a weight.

    Raises:
        ShapeError: the input does not fit the weight, or the output would be empty.
    """
    return _case(tuple(shape), tuple(x.shape), nnz, tuple(geometry), x.dtype, x.device.type)


@lru_cache(maxsize=4096)
def remembered_case(
    shape: tuple[int, ...], sizes: tuple[int, ...], nnz: int, geometry: tuple[int, ...], dtype: torch.dtype
) -> Case:
    """`read_case` for an input of `sizes` and `dtype` on the CPU, which need not be at hand."""
    return _case(shape, sizes, nnz, geometry, dtype, "cpu")


def _case(
    shape: tuple[int, ...],
    sizes: tuple[int, ...],
    nnz: int,
    geometry: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
) -> Case:
    moves = None
    if geometry:
        sh, sw, ph, pw, dh, dw, groups = geometry
        moves = Geometry((sh, sw), (ph, pw), (dh, dw), groups)
    wanted, channels = (2, shape[1]) if moves is None else (4, shape[1] * moves.groups)
    if len(sizes) != wanted or sizes[1] != channels:
        form = f"(batch, {channels})" if moves is None else f"(batch, {channels}, height, width)"
        raise ShapeError(f"input of shape {sizes} does not fit a weight of shape {shape}; expected {form}")
    case = Case(shape, sizes, nnz, moves, dtype, device)
    if moves is not None and min(case.output[2:]) < 1:
        raise ShapeError(f"an input of {sizes[2:]} pixels is smaller than the kernel {shape[2:]} reaches")
    return case


def check_parameters(
    x: Tensor, values: Tensor, bias: Tensor | None, index: Sequence[Tensor], rows: int, *, autocast: bool = False
) -> None:
    """Refuses parameters that do not fit the input; with `autocast`, whatever their dtype is.

    Raises:
        ShapeError: shapes, dtypes or devices disagree.
    """

    def differs(parameter: Tensor) -> bool:
        return parameter.device != x.device or (parameter.dtype != x.dtype and not autocast)

    if bias is not None and (bias.shape != (rows,) or differs(bias)):
        raise ShapeError(
            f"the bias must have shape ({rows},), {x.dtype} and be on {x.device}, got shape {tuple(bias.shape)}, "
            f"{bias.dtype} on {bias.device}"
        )
    if differs(values) or index[1].device != x.device:
        raise ShapeError(
            f"input ({x.dtype}, {x.device}), values ({values.dtype}, {values.device}) and pattern ({index[1].device}) "
            "must share dtype and device; move the model with `.to(...)`"
        )
    if values.shape != index[1].shape:
        raise ShapeError(f"the pattern keeps {index[1].numel()} weights, got values of shape {tuple(values.shape)}")


def _eager(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    shape: list[int],
    geometry: list[int],
    backend: str,
) -> Tensor:
    check_parameters(x, values, bias, index, shape[0])
    case = read_case(x, shape, values.numel(), geometry)
    pattern = Pattern.from_index(case.shape, index)
    engine = backends.backend(backend, case, pattern)
    bias, lies = None if bias is None else bias.contiguous(), backends.layout_of(engine, case)
    return lies.of(engine.forward(lies.of(x), values.contiguous(), pattern, bias, case))


def _eager_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    want_x: bool,
    want_values: bool,
    index: list[Tensor],
    shape: list[int],
    geometry: list[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    case = read_case(x, shape, values.numel(), geometry)
    pattern = Pattern.from_index(case.shape, index)
    engine = backends.backend(backend, case, pattern)
    lies, want = backends.layout_of(engine, case), (want_x, want_values)
    found = engine.backward(lies.of(grad), lies.of(x), values.contiguous(), pattern, want, case)
    # A schema has no optional results: what nobody wants is an empty tensor.
    return (
        x.new_empty(0) if found.x is None else lies.of(found.x),
        x.new_empty(0) if found.values is None else found.values.contiguous(),
    )


def _eager_topk(
    grad: Tensor, x: Tensor, k: int, index: list[Tensor], shape: list[int], geometry: list[int], backend: str
) -> tuple[Tensor, Tensor]:
    case = read_case(x, shape, index[1].numel(), geometry)
    pattern = Pattern.from_index(case.shape, index)
    engine = backends.backend(backend, case, pattern)
    lies = backends.layout_of(engine, case)
    return engine.topk_pruned(lies.of(grad), lies.of(x), pattern, min(k, pattern.size - pattern.nnz), case)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("product", _eager, _key)
    _LIBRARY.impl("product_backward", _eager_backward, _key)
    _LIBRARY.impl("topk_pruned", _eager_topk, _key)


@torch.library.register_fake("fedsparse::product", lib=_LIBRARY)
def _fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    shape: list[int],
    geometry: list[int],
    backend: str,
) -> Tensor:
    case = read_case(x, shape, values.shape[0], geometry)
    return backends.layout(backend, case).empty(x, case.output)


@torch.library.register_fake("fedsparse::product_backward", lib=_LIBRARY)
def _fake_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    want_x: bool,
    want_values: bool,
    index: list[Tensor],
    shape: list[int],
    geometry: list[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    case = read_case(x, shape, values.shape[0], geometry)
    grad_x = backends.layout(backend, case).empty(x, x.shape) if want_x else x.new_empty(0)
    return grad_x, x.new_empty(values.shape if want_values else (0,))


@torch.library.register_fake("fedsparse::topk_pruned", lib=_LIBRARY)
def _fake_topk(
    grad: Tensor, x: Tensor, k: int, index: list[Tensor], shape: list[int], geometry: list[int], backend: str
) -> tuple[Tensor, Tensor]:
    size = torch.Size(shape).numel() - index[1].shape[0]
    return x.new_empty(min(k, size), dtype=torch.int64), x.new_empty(min(k, size))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, index, shape, geometry, backend = inputs
    # The input is needed for the values' gradient only, the values for the input's only; both are cheap to hold.
    ctx.save_for_backward(x, values, *index)
    ctx.has_bias = bias is not None
    ctx.weight = shape, geometry, backend


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, values, *index = ctx.saved_tensors
    want_x, want_values, want_bias = ctx.needs_input_grad[:3]
    grad_x: Tensor | None = None
    grad_values: Tensor | None = None
    if want_x or want_values:
        grad_x, grad_values = torch.ops.fedsparse.product_backward(
            grad, x, values, want_x, want_values, index, *ctx.weight
        )
    axes = [0, *range(2, grad.ndim)]
    grad_bias = grad.sum(axes) if ctx.has_bias and want_bias else None
    # Answers mirror the arguments: a list for the index and, being empty, for a linear layer's geometry.
    no_index = [None] * len(index)
    no_geometry: list[None] | None = None if ctx.weight[1] else []
    wanted = (grad_x if want_x else None, grad_values if want_values else None, grad_bias)
    return (*wanted, no_index, None, no_geometry, None)


def _refuse_second(ctx: Any, *grads: Tensor) -> None:
    raise DoubleBackwardError(
        "second derivatives of sparse layers are not implemented (a gradient of a gradient was asked for, "
        "as with create_graph=True); densify(model) gives layers that have them"
    )


torch.library.register_autograd("fedsparse::product", _differentiate, setup_context=_save, lib=_LIBRARY)
torch.library.register_autograd("fedsparse::product_backward", _refuse_second, lib=_LIBRARY)


def autocast_dtype(device: str) -> torch.dtype | None:
    """In what autocast lets products on a type of device compute; None where it is off.

    On the CPU float32 sparse kernels beat reduced-precision dense ones, so it leaves the product in float32. A network
    that keeps its activations blocked does not ask: they are stored as bfloat16 there.
    """
    if not torch.is_autocast_enabled(device):
        return None
    return torch.float32 if device == "cpu" else torch.get_autocast_dtype(device)


def as_autocast_wants(x: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands of a product, converted, with history, where autocast is on; like torch's it spares float64."""
    dtype = autocast_dtype(x.device.type)
    if dtype is None:
        return x, values, bias
    return _cast(x, dtype), _cast(values, dtype), None if bias is None else _cast(bias, dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def _under_autocast(x: Tensor, values: Tensor, bias: Tensor | None, *weight: Any) -> Tensor:
    operands = as_autocast_wants(x, values, bias)
    with torch.autocast(x.device.type, enabled=False):  # what the backends call must not be cast once more
        result: Tensor = torch.ops.fedsparse.product(*operands, *weight)
    return result


for _key in ("AutocastCPU", "AutocastCUDA"):
    _LIBRARY.impl("product", _under_autocast, _key)


def product(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Sequence[Tensor],
    shape: Sequence[int],
    geometry: Sequence[int],
    backend: str,
) -> Tensor:
    """Differentiable product of `x` with the sparse weight; see `read_case` for shapes."""
    result: Tensor = torch.ops.fedsparse.product(x, values, bias, list(index), list(shape), list(geometry), backend)
    return result


def topk_pruned(
    grad: Tensor,
    x: Tensor,
    k: int,
    index: Sequence[Tensor],
    shape: Sequence[int],
    geometry: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Flat positions and signed gradients of the (at most) k pruned weights of largest |dL/dw|."""
    result: tuple[Tensor, Tensor] = torch.ops.fedsparse.topk_pruned(
        grad, x, k, list(index), list(shape), list(geometry), backend
    )
    return result


def values_gradient(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    shape: Sequence[int],
    geometry: Sequence[int],
    backend: str,
) -> Tensor:
    """dL/dvalues `(nnz,)` from the gradient of the product."""
    gradient: Tensor = torch.ops.fedsparse.product_backward(
        grad, x, values, False, True, list(index), list(shape), list(geometry), backend
    )[1]
    return gradient


def weight_gradient(grad: Tensor, x: Tensor, shape: Sequence[int], geometry: Sequence[int]) -> Tensor:
    """dL/dW at every position of a weight of dense `shape`, kept or pruned, from the gradient of the product.

    Computed and held as a dense layer's would be, which is what callers ask for; see `topk_pruned` for O(k) memory.
    """
    case = read_case(x, shape, math.prod(shape), geometry)
    if case.geometry is None:
        return grad.T @ x
    g = case.geometry
    # The weight is only read for its shape: one number stands for all.
    like = x.new_empty(1).expand(case.shape)
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, x, like, None, g.stride, g.padding, g.dilation, False, [0, 0], g.groups, [False, True, False]
    )[1]
    return found
