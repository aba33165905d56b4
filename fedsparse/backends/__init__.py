"""Who computes: one class a backend, and the choice among them."""

from fedsparse.backends.base import Backend, Case, ChoosesLayout, Geometry, Gradients, KeepsLists, layout_of
from fedsparse.backends.choose import backend, choose, explain, layout, names, rewrite_lists
from fedsparse.backends.layout import BATCH_INNERMOST, CONTIGUOUS, Layout
from fedsparse.backends.lists import fit_in_place

__all__ = [
    "BATCH_INNERMOST",
    "CONTIGUOUS",
    "Backend",
    "Case",
    "ChoosesLayout",
    "Geometry",
    "Gradients",
    "KeepsLists",
    "Layout",
    "backend",
    "choose",
    "explain",
    "fit_in_place",
    "layout",
    "layout_of",
    "names",
    "rewrite_lists",
]
