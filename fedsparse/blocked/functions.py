"""What autograd sees of a blocked network: entering and leaving the layout, products, and fused norms.

Data are `(groups, channels, height, width, lanes)`, float32 or bfloat16; results and gradients have their dtype.
Gradients are zero in lanes without an image; every function here keeps that promise. Norms are float32; products take
parameters of either dtype and give their gradients that one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fedsparse.backends import Case
from fedsparse.backends.activation import Pruning, nonzero_bits
from fedsparse.backends.blocked import NormGradients, channel_sums, combine, isa_of, norm_backward
from fedsparse.backends.cpu import CpuBackend, from_blocked, to_blocked
from fedsparse.backends.term import Cuts, Packed, Term
from fedsparse.blocked.saving import Form
from fedsparse.errors import DoubleBackwardError
from fedsparse.ops.held import alias
from fedsparse.pattern import Pattern

__all__ = ["Activate", "CatchForm", "Combine", "Enter", "Leave", "Norm", "Product", "Read", "apply", "final"]


# Gets the gradient of a product and what is saved of its input; returns what the values' gradient is of.
CatchForm = Callable[[Tensor, Form], Form]


@dataclass(frozen=True)
class Norm:
    """Per channel: `x_hat = (x - mean) * inv_std`, then `scale * x + shift = x_hat * weight + bias`.

    Attributes:
        weight, bias: `(channels,)`, differentiable, or None for 1 and 0.
        mean, inv_std, scale, shift: `(channels,)`, without gradients.
        own: the statistics are the batch's own, so they depend on x.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    inv_std: Tensor
    scale: Tensor
    shift: Tensor
    own: bool

    @classmethod
    def of(
        cls, mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None, own: bool
    ) -> "Norm":
        """The norm that these statistics make."""
        with torch.no_grad():
            inv_std = (variance + eps).rsqrt()
            scale = inv_std if weight is None else inv_std * weight
            shift = -mean * scale
            if bias is not None:
                shift += bias
        return cls(weight, bias, mean, inv_std, scale, shift, own)

    def hold(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        """What of its input x is held for the backward pass: x itself, or x_hat where `dtype` is another than its."""
        return x if dtype in (None, x.dtype) else combine(x, self.inv_std, -self.mean * self.inv_std).to(dtype)

    def held_term(self, held: Tensor, dtype: torch.dtype) -> Term:
        """relu(norm(x)) as a term of what is held of an x of `dtype`."""
        if held.dtype == dtype:
            return Term(held, self.scale, self.shift, relu=True)
        weight, bias = (None if t is None else t.detach() for t in (self.weight, self.bias))
        return Term(held, weight, bias, relu=True)


def apply(function: type[Function], *args: Any) -> Tensor:
    """`function.apply`, typed."""
    result: Tensor = function.apply(*args)
    return result


class _Once(Function):
    """Gradients that have no gradients: says so when they are asked for theirs."""

    @staticmethod
    def forward(_ctx: Any, grad: Tensor) -> Tensor:
        return alias(grad)

    @staticmethod
    def backward(_ctx: Any, _grad: Tensor) -> Tensor:
        raise DoubleBackwardError(
            "second derivatives of sparse networks are not implemented (a gradient of a gradient was asked for, "
            "as with create_graph=True); densify(model) gives layers that have them"
        )


def final(grad: Tensor | None) -> Tensor | None:
    """A gradient that refuses to be differentiated once more."""
    if grad is None or not torch.is_grad_enabled():
        return grad
    return apply(_Once, grad.requires_grad_())


class Enter(Function):
    """Plain `(batch, ...)` -> blocked, in lines of an instruction set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, isa: str | None) -> Tensor:
        ctx.shape = tuple(x.shape)
        return to_blocked(x, isa)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return final(from_blocked(grad.contiguous(), ctx.shape)), None


class Leave(Function):
    """Blocked -> plain of `shape`."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.isa = isa_of(data.shape[-1])
        return from_blocked(data, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return final(to_blocked(grad, ctx.isa)), None


class Product(Function):
    """Product of a term of `data` with a sparse weight; the gradient of `data` is that of the term.

    The values' gradient is that of `form`, what is saved of the term. `catch`, if given, gets the product's gradient
    and that form when the backward pass begins, and says of which form the values' gradient is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        _data: Tensor,
        values: Tensor,
        bias: Tensor | None,
        term: Term,
        form: Form,
        pattern: Pattern,
        case: Case,
        engine: CpuBackend,
        catch: CatchForm | None,
    ) -> Tensor:
        tensors, ctx.form = _taken_apart(form)
        ctx.save_for_backward(values, *tensors)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.pattern, ctx.case, ctx.engine, ctx.catch = pattern, case, engine, catch
        return engine.forward_blocked(term, values, pattern, bias, case)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values, *tensors = ctx.saved_tensors
        want_data, want_values, want_bias = ctx.needs_input_grad[:3]
        grad = grad.contiguous()
        grad_data = grad_values = grad_bias = None
        form = ctx.form(tensors)
        if ctx.catch is not None:
            with torch.no_grad():
                form = ctx.catch(grad.detach(), form)
        if want_data or want_values:
            seen = form if want_values else None
            found = ctx.engine.backward_blocked(grad, seen, values, ctx.pattern, want_data, ctx.case)
            grad_data, grad_values = found
        if ctx.bias_dtype is not None and want_bias:
            grad_bias = channel_sums(grad, ctx.case.input[0]).to(ctx.bias_dtype)
        return final(grad_data), final(grad_values), final(grad_bias), None, None, None, None, None, None


def _taken_apart(form: Form) -> tuple[tuple[Tensor | None, ...], Callable[[Sequence[Any]], Form]]:
    """The tensors of a form, and how it is made of them again."""
    if isinstance(form, Packed):
        return form, Packed._make
    relu, (key, last) = form.relu, form.cuts[:2] if form.cuts else (None, None)

    def again(tensors: Sequence[Any]) -> Term:
        data, scale, shift, *cuts = tensors
        return Term(data, scale, shift, relu, None if cuts[0] is None else Cuts(*cuts))

    return (form.data, form.scale, form.shift, key, last), again


class Read(Function):
    """What a term makes of its data, stored."""

    @staticmethod
    def forward(_ctx: Any, data: Tensor, term: Term) -> Tensor:
        return combine(data, term.scale, term.shift, relu=term.relu)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return final(grad), None


class Activate(Function):
    """An alias of x that stands for relu(norm(x)) in the graph: whoever uses it applies the term.

    `held` is what the norm holds of x. Without a norm it is x, or None where `bits` tell the gate.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _weight: Tensor | None,
        _bias: Tensor | None,
        norm: Norm | None,
        held: Tensor | None,
        bits: Tensor | None,
        batch: int,
    ) -> Tensor:
        ctx.save_for_backward(held, bits)
        ctx.norm, ctx.batch = norm, batch
        return alias(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        held, bits = ctx.saved_tensors
        found = _backward(grad, held, ctx.norm, ctx.batch, gate_bits=bits, gate_by_x=bits is None)
        return (*_wanted(ctx, (found.x, found.weight, found.bias)), None, None, None, None)


class Combine(Function):
    """relu?(norm(x) + norm(r)), stored. A norm may be missing; r, then its norm too, may be missing.

    Weights and biases of the norms are arguments because they have gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _x_weight: Tensor | None,
        _x_bias: Tensor | None,
        r: Tensor | None,
        _r_weight: Tensor | None,
        _r_bias: Tensor | None,
        norms: tuple[Norm | None, Norm | None],
        relu: bool,
        batch: int,
        pruned: Pruning | None,
    ) -> Tensor:
        (scale, shift), (r_scale, r_shift) = (_affine(norm) for norm in norms)
        # A norm's gradients need its input. To round it takes room for a moment: z is made afterwards.
        dtype = None if pruned is None else pruned.dtype
        held = [n.hold(t, dtype) if n and t is not None else None for n, t in zip(norms, (x, r), strict=True)]
        z = combine(x, scale, shift, r, r_scale, r_shift, relu)
        # The ReLU's gate is read off the result, which its consumer saves as well, unless it prunes.
        bits = nonzero_bits(Term(z), batch) if relu and pruned is not None else None
        ctx.save_for_backward(*held, z if relu and bits is None else None, bits)
        ctx.norms, ctx.batch = norms, batch
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, r, gate, bits = ctx.saved_tensors
        want_r = any(ctx.needs_input_grad[3:6])
        first = _backward(grad, x, ctx.norms[0], ctx.batch, gate=gate, gate_bits=bits, want_gated=want_r)
        second = NormGradients(None, None, None, None)
        if want_r:
            assert first.gated is not None
            second = _backward(first.gated, r, ctx.norms[1], ctx.batch)
        grads = (first.x, first.weight, first.bias, second.x, second.weight, second.bias)
        return (*_wanted(ctx, grads), None, None, None, None)


def _affine(norm: Norm | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if norm is None else (norm.scale, norm.shift)


def _backward(
    grad: Tensor,
    held: Tensor | None,
    norm: Norm | None,
    batch: int,
    *,
    gate: Tensor | None = None,
    gate_bits: Tensor | None = None,
    gate_by_x: bool = False,
    want_gated: bool = False,
) -> NormGradients:
    """Gradients of one norm, of which `held` is left, or of none, behind a gate."""
    grad = grad.contiguous()
    if norm is not None:
        return norm_backward(
            grad,
            batch,
            held,
            norm.scale,
            norm.shift,
            gate=gate,
            gate_bits=gate_bits,
            gate_by_x=gate_by_x,
            mean=norm.mean if norm.own else None,
            inv_std=norm.inv_std,
            center=norm.mean,
            want_gated=want_gated,
            want_affine=True,
        )
    if gate is None and gate_bits is None and not gate_by_x:
        return NormGradients(grad, grad if want_gated else None, None, None)
    found = norm_backward(grad, batch, held, gate=gate, gate_bits=gate_bits, gate_by_x=gate_by_x)
    return found._replace(gated=found.x if want_gated else None)


def _wanted(ctx: Any, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [final(g) if want else None for g, want in zip(grads, ctx.needs_input_grad, strict=False)]
