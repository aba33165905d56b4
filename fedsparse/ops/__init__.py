"""What torch sees: library ops with checks, fake and autograd support."""

from fedsparse.ops.held import held_product
from fedsparse.ops.products import product, topk_pruned, values_gradient, weight_gradient
from fedsparse.ops.units import topk_pruned_units

__all__ = ["held_product", "product", "topk_pruned", "topk_pruned_units", "values_gradient", "weight_gradient"]
