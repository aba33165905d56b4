"""What torch sees: library ops with checks, fake and autograd support."""

from fedsparse.ops.products import product, topk_pruned, weight_gradient

__all__ = ["product", "topk_pruned", "weight_gradient"]
