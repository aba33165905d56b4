"""Who computes: one class a backend, and the choice among them."""

from fedsparse.backends.base import Backend, Case, Geometry, Gradients, KeepsLists
from fedsparse.backends.choose import backend, choose, explain, names, rewrite_lists
from fedsparse.backends.lists import fit_in_place

__all__ = [
    "Backend",
    "Case",
    "Geometry",
    "Gradients",
    "KeepsLists",
    "backend",
    "choose",
    "explain",
    "fit_in_place",
    "names",
    "rewrite_lists",
]
