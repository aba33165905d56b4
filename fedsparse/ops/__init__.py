"""What torch sees: library ops with checks, fake and autograd support."""

from fedsparse.ops.products import product, topk_pruned, values_gradient, weight_gradient
from fedsparse.ops.pruned import pruned_product
from fedsparse.ops.units import topk_pruned_units

__all__ = ["product", "pruned_product", "topk_pruned", "topk_pruned_units", "values_gradient", "weight_gradient"]
