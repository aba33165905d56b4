"""Who computes: one class a backend, and the choice among them."""

from fedsparse.backends.base import Backend, Case, Geometry, Gradients
from fedsparse.backends.choose import backend, choose, explain, names

__all__ = ["Backend", "Case", "Geometry", "Gradients", "backend", "choose", "explain", "names"]
