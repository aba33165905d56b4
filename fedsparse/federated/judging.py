"""Whether an upload is believed: what every method expects of one, and what its own check makes of it."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedsparse.errors import FedsparseError
from fedsparse.methods.roles import Check, Download, Update
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import SparseVector

__all__ = ["check_fits", "check_masks", "judge", "not_finite"]


def judge(check: Check, sent: Download, update: Update) -> None:
    """Whatever a method's check stumbles over is wrong with the upload: a client cannot end the run with it."""
    try:
        check(sent, update)
    except FedsparseError:
        raise
    except Exception as error:
        raise FedsparseError(f"the upload is not what the method expects: {type(error).__name__}: {error}") from error


def check_fits(uploaded: Weights, sent: Weights, *, own_masks: bool, own_counts: bool) -> None:
    """Raises FedsparseError unless the upload is a state of the model sent, under masks that are allowed."""
    sent.require_shapes(uploaded, here="the sent weights", there="the upload")
    if uploaded.topology != sent.topology:
        if not own_masks:
            raise FedsparseError("the uploaded weights have another topology than the ones sent")
        check_masks(uploaded.topology, sent.topology, own_counts=own_counts)
    wanted = dict(sent.items())
    for name, tensor in uploaded.items():
        if tensor.dtype != wanted[name].dtype:
            raise FedsparseError(f"{name!r} was sent as {wanted[name].dtype}, the upload has {tensor.dtype}")


def check_masks(uploaded: Topology, sent: Topology, *, own_counts: bool) -> None:
    """Raises FedsparseError unless the uploaded masks could take the place of those sent."""
    if list(uploaded) != list(sent):
        raise FedsparseError(f"the upload prunes {', '.join(uploaded) or 'nothing'}; sent were {', '.join(sent)}")
    for name, pattern in uploaded.items():
        if pattern.granularity != sent[name].granularity:
            raise FedsparseError(
                f"{name!r} was sent with granularity {sent[name].granularity}, the upload has {pattern.granularity}"
            )
        if not own_counts and pattern.nnz != sent[name].nnz:
            raise FedsparseError(f"{name!r} was sent with {sent[name].nnz} kept weights, the upload has {pattern.nnz}")


def not_finite(section: object, path: str = "") -> str:
    """Where in a message a number is NaN or infinite; empty when nowhere."""
    if isinstance(section, Tensor):
        return path if section.is_floating_point() and not bool(torch.isfinite(section).all()) else ""
    if isinstance(section, float):
        return path if not np.isfinite(section) else ""
    if isinstance(section, SparseVector):
        return not_finite(section.values, path)
    if isinstance(section, Weights):
        return not_finite(dict(section.items()), path)
    if isinstance(section, Mapping) and not isinstance(section, Topology):
        found = (not_finite(part, f"{path}.{name}".lstrip(".")) for name, part in section.items())
        return next((place for place in found if place), "")
    return ""
