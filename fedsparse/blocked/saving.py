"""What a network's layers hold of their activations for the backward pass, where activations are pruned.

A product holds the largest elements of its input (`fedsparse.backends.activation`). A norm needs its own input for its
gradients; a product that reads that norm's ReLU shares it and holds two numbers an image, the cuts. A ReLU without a
norm in front and the ReLU of a residual sum hold one bit for each element. With `dtype=torch.bfloat16` norms hold their
normalised input in bfloat16. A product whose gradient somebody catches holds its whole input, packed without the exact
zeros or shared with a norm as above, and prunes it when the backward pass begins.
"""

from contextvars import ContextVar
from dataclasses import replace

import torch
from torch import Tensor

from fedsparse.backends import Case
from fedsparse.backends.activation import Pruning, nonzero_bits, pack, select, unpack
from fedsparse.backends.cpu import blocked_shape
from fedsparse.backends.term import Packed, Term

__all__ = ["Form", "begin", "end", "gate_bits", "pruned_form", "pruning", "restored", "unpruned"]

# One entry for each model or part of one that is running, the innermost last.
_running: ContextVar[tuple[Pruning | None, ...]] = ContextVar("fedsparse_pruned_activations", default=())


def pruning() -> Pruning | None:
    """How the model that is running prunes activations; None where it does not, or keeps nothing for gradients."""
    running = _running.get()
    return running[-1] if running and torch.is_grad_enabled() else None


def begin(pruning: Pruning | None) -> None:
    """A model, or a part of one, that prunes its activations so, or not at all, begins to run."""
    _running.set((*_running.get(), pruning))


def end() -> None:
    """The innermost of what is running ends."""
    _running.set(_running.get()[:-1])


# What a product keeps of its input: packed values, or cuts of what a norm holds anyway.
Form = Term | Packed


def pruned_form(term: Term, held: Term | None, batch: int, pruning: Pruning) -> Form:
    """What a product keeps of its input `term`; `held` is the same term of what a norm holds, if one does."""
    if held is not None:
        return held._replace(cuts=select(held, batch, pruning))
    return pack(term._replace(cuts=select(term, batch, pruning)), batch, pruning.dtype or term.data.dtype)


def unpruned(pruning: Pruning) -> Pruning:
    """How a product keeps its input that is to be pruned in the backward pass only: exact zeros are left out."""
    return replace(pruning, keep=1.0, dtype=None)


def restored(form: Form, case: Case, lanes: int) -> Term:
    """The input of a product that an uncut form was made of, of the product's dtype."""
    if isinstance(form, Term):
        return form._replace(data=form.data.to(case.dtype))
    return Term(unpack(form, blocked_shape(case.input, lanes)).to(case.dtype))


def gate_bits(term: Term, batch: int) -> Tensor | None:
    """The gate of a ReLU whose result is `term`, one bit for each element; None where the ReLU should hold numbers."""
    return None if pruning() is None else nonzero_bits(term, batch)
