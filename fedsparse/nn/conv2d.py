"""2-D convolution with a sparse weight."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse.blocked import sizes_of
from fedsparse.functional import place_kernel
from fedsparse.nn.layer import SparseLayer
from fedsparse.pattern import Pattern, parse

__all__ = ["SparseConv2d"]


class SparseConv2d(SparseLayer):
    """`nn.Conv2d` whose weight `(out, in / groups, kh, kw)` is stored as kept values and a pattern.

    Attributes:
        stride, padding, dilation, groups, padding_mode: as in `nn.Conv2d`.
    """

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None, like: nn.Conv2d) -> None:
        super().__init__(pattern, values, bias)
        self.stride = _pair(like.stride)
        self.padding: str | tuple[int, int] = like.padding if isinstance(like.padding, str) else _pair(like.padding)
        self.dilation = _pair(like.dilation)
        self.groups = like.groups
        self.padding_mode = like.padding_mode
        # Left, right, top and bottom pixels that a padding mode other than zeros adds before the product.
        self._rim = list(like._reversed_padding_repeated_twice)

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, mask: Tensor, *, granularity: str = "element") -> "SparseConv2d":
        """Sparse layer with the weights of `conv` that `mask` (of the weight's shape) keeps.

        Raises:
            PatternError: the mask does not fit the weight, or the granularity is unknown.
        """
        pattern = Pattern.from_mask(mask, parse(granularity), device=conv.weight.device)
        bias = None if conv.bias is None else conv.bias.detach().clone()
        layer = cls(pattern, pattern.gather(conv.weight.detach()), bias, conv)
        return layer.train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """`nn.Conv2d` that computes the same function."""
        out, inputs, *kernel = self.pattern.shape
        options: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }
        conv = nn.Conv2d(
            inputs * self.groups,
            out,
            (kernel[0], kernel[1]),
            bias=self.bias is not None,
            device="meta",
            **options,
        )
        conv.weight = nn.Parameter(self.weight)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone())
        return conv.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in, height, width)` or `(in, height, width)` -> the same with `out` channels."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._rim, mode=self.padding_mode), (0, 0)
        pictures = len(sizes_of(x)) == 4
        batched = x if pictures else x.unsqueeze(0)
        batched, geometry = place_kernel(batched, self._pattern.shape, self.stride, padding, self.dilation, self.groups)
        y = self.product(batched, geometry)
        return y if pictures else y.squeeze(0)

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}"
        for name, plain in (("dilation", (1, 1)), ("groups", 1), ("padding_mode", "zeros")):
            if getattr(self, name) != plain:
                text += f", {name}={getattr(self, name)}"
        return text


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    vertical, horizontal = value
    return vertical, horizontal
