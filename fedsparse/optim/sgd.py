"""SGD with momentum, the parameters of a group in one launch on a CUDA device."""

from collections.abc import Callable
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from fedsparse.backends.flat_steps import SgdArrays, SgdRule, sgd_steps, takes
from fedsparse.optim.groups import alike, evaluated

__all__ = ["FlatSGD"]

_MOMENTUM = "momentum_buffer"


class FlatSGD(torch.optim.SGD):
    """`torch.optim.SGD` with the same settings, results and state, so that checkpoints of one are those of the other.

    On a CUDA device contiguous float32 parameters are stepped by a kernel that reads and writes everything once, 20
    bytes for each value with momentum: all of a group in one launch. Results may differ from torch's in the last bit,
    as multiply-adds round once there. Everything else (the CPU, other dtypes, sparse gradients, a learning rate that is
    a tensor) takes torch's own functions and gives their bits. May be captured by `fedsparse.nn.graph.capture_step`,
    without dampening.

    Args:
        params: parameters or groups of them.
        lr, momentum, dampening, weight_decay, nesterov: as in `torch.optim.SGD`.

    Raises:
        ValueError: a setting is out of range, as torch says it.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: recomputes the loss with gradients, which is then returned.
        """
        loss = evaluated(closure)
        for group in self.param_groups:
            pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
            taken = [self._takes(*pair, group) for pair in pairs]
            self._step_by_kernel([*compress(pairs, taken)], group)
            self._step_by_torch([*compress(pairs, (not yes for yes in taken))], group)
        return loss

    def _takes(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> bool:
        """Whether a kernel can step over this parameter."""
        buffer = self.state[parameter].get(_MOMENTUM)
        known = [parameter, grad, *([] if buffer is None else [buffer])]
        return not isinstance(group["lr"], Tensor) and grad.layout == torch.strided and takes(*known)

    def _step_by_kernel(self, pairs: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        rule = SgdRule(group["lr"], group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"])
        first = {parameter for parameter, _ in pairs if self.state[parameter].get(_MOMENTUM) is None}
        for same in alike(pairs, lambda pair: (pair[0].device, pair[0] in first)):
            rows = [SgdArrays(*pair, self._buffer(pair[0]) if group["momentum"] else None) for pair in same]
            sgd_steps(rows, rule, first_step=same[0][0] in first)

    def _buffer(self, parameter: Tensor) -> Tensor:
        """The momentum of a parameter, holding nothing before the first step."""
        state = self.state[parameter]
        if state.get(_MOMENTUM) is None:
            state[_MOMENTUM] = torch.empty_like(parameter)
        buffer: Tensor = state[_MOMENTUM]
        return buffer

    def _step_by_torch(self, pairs: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        if not pairs:
            return
        parameters, grads = [p for p, _ in pairs], [grad for _, grad in pairs]
        buffers = [self.state[p].get(_MOMENTUM) if group["momentum"] else None for p in parameters]
        sgd(
            parameters, grads, buffers, lr=group["lr"], momentum=group["momentum"], dampening=group["dampening"],
            weight_decay=group["weight_decay"], nesterov=group["nesterov"], maximize=False,
            has_sparse_grad=any(grad.is_sparse for grad in grads),
        )  # fmt: skip
        if group["momentum"]:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                self.state[parameter][_MOMENTUM] = buffer
