"""Who computes: one class a backend, and the choice among them."""

from fedsparse.backends.base import Backend, Case, ChoosesLayout, Geometry, Gradients, KeepsLists, layout_of
from fedsparse.backends.choose import backend, choose, explain, hand_lists_on, layout, names, rewrite_lists
from fedsparse.backends.layout import BATCH_INNERMOST, CONTIGUOUS, Layout
from fedsparse.backends.lists import Change, fit_in_place

__all__ = [
    "BATCH_INNERMOST",
    "CONTIGUOUS",
    "Backend",
    "Case",
    "Change",
    "ChoosesLayout",
    "Geometry",
    "Gradients",
    "KeepsLists",
    "Layout",
    "backend",
    "choose",
    "explain",
    "fit_in_place",
    "hand_lists_on",
    "layout",
    "layout_of",
    "names",
    "rewrite_lists",
]
