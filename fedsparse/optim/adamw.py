"""AdamW, the parameters of a group in one launch on a CUDA device."""

from collections.abc import Callable
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fedsparse.backends.flat_steps import AdamwArrays, AdamwRule, adamw_steps, takes
from fedsparse.optim.groups import alike, evaluated

__all__ = ["FlatAdamW"]


class _Lists(NamedTuple):
    """A group's tensors, as torch's functions take them; `largest` only with `amsgrad`."""

    parameters: list[Tensor]
    grads: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    largest: list[Tensor]
    steps: list[Tensor]


class FlatAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with the same settings, results and state, so that checkpoints of one are those of the other.

    Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2. On a CUDA device contiguous float32 parameters are stepped by
    a kernel that reads and writes everything once, 28 bytes for each value: all of a group in one launch. Results may
    differ from torch's in the last bits, as multiply-adds round once there; corrections of the means are nearer to the
    formula than torch's with `capturable`. Everything else (the CPU, other dtypes, `amsgrad`, `maximize`, a learning
    rate that is a tensor) takes torch's own functions and gives their bits.

    Args:
        params: parameters or groups of them.
        lr, betas, eps, weight_decay, amsgrad, maximize: as in `torch.optim.AdamW`.
        capturable: steps are counted on the device, as `fedsparse.nn.graph.capture_step` wants; a second launch, for
            all parameters of a group, counts.

    Raises:
        ValueError: a setting is out of range, as torch says it.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: recomputes the loss with gradients, which is then returned.

        Raises:
            RuntimeError: a CUDA graph is being captured and a group is not `capturable`, or a gradient is sparse.
        """
        loss = evaluated(closure)
        self._require_capturable()
        for group in self.param_groups:
            lists = _Lists([], [], [], [], [], [])
            has_complex = torch.optim.AdamW._init_group(self, group, *lists)
            left = _left_by_kernels(lists, group) if _has_kernel(group) else lists
            adamw(
                *left, foreach=group["foreach"], capturable=group["capturable"],
                differentiable=group["differentiable"], fused=group["fused"], has_complex=has_complex,
                amsgrad=group["amsgrad"], beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
                weight_decay=group["weight_decay"], eps=group["eps"], maximize=group["maximize"],
            )  # fmt: skip
        return loss

    def _require_capturable(self) -> None:
        if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
            return
        if not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError(
                "a CUDA graph would repeat the step it was captured at for ever, as FlatAdamW counts in main memory; "
                "give it capturable=True"
            )


def _has_kernel(group: dict[str, Any]) -> bool:
    """Whether a kernel knows these settings."""
    tensors = any(isinstance(number, Tensor) for number in (group["lr"], *group["betas"]))
    return not (tensors or group["amsgrad"] or group["maximize"] or group["differentiable"])


def _left_by_kernels(lists: _Lists, group: dict[str, Any]) -> _Lists:
    """Steps over the parameters that kernels take; lists of the others."""
    counted_there = bool(group["capturable"] or group["fused"])
    rows = [*map(AdamwArrays, lists.parameters, lists.grads, lists.means, lists.squares, lists.steps)]
    taken = [takes(*(row if counted_there else row[:-1])) for row in rows]
    rule = AdamwRule(group["lr"], group["betas"], group["eps"], group["weight_decay"])
    for same in alike(compress(rows, taken), lambda row: row.values.device):
        adamw_steps(same, rule, counted_there=counted_there)
    left = [not yes for yes in taken]
    return _Lists(*([*compress(column, left)] for column in lists))
