"""Arrays of a model as one message: kept values where there is a mask, everything else as it is.

Masks are said, never guessed from zeros, so that a kept weight that happens to be 0 stays kept. They travel once; from
then on their id, the digest of the topology, stands for them, and a receiver refuses an id that it does not know.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsparse import wire
from fedsparse.errors import PatternError, WireError
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import Payload

__all__ = ["pack_arrays", "unpack_arrays"]

_TASK = "arrays"


def pack_arrays(arrays: Mapping[str, NDArray[Any]], topology: Topology, *, known: Collection[str] = ()) -> bytes:
    """Arrays by name as one message; what lies outside a mask is left behind.

    Args:
        arrays: of any shapes; those named in `topology` in the shapes of their masks.
        topology: masks by name.
        known: ids of masks that the receiver has.

    Raises:
        PatternError: a masked array is missing or has another shape.
        WireError: an array of a dtype that cannot be sent.
    """
    dense = {name: _tensor(name, array) for name, array in arrays.items()}
    values = {}
    for name, pattern in topology.items():
        if name not in dense:
            raise PatternError(f"there is a mask for {name!r}, but the arrays are {', '.join(dense) or 'none'}")
        if dense[name].shape != pattern.shape:
            raise PatternError(
                f"{name!r} has shape {tuple(dense[name].shape)}, its mask {pattern.shape}; give masks of this model"
            )
        values[name] = pattern.gather(dense.pop(name))
    travelling = [*values, *dense]
    order = torch.tensor([travelling.index(name) for name in arrays], dtype=torch.int32)
    message = Payload(_TASK, 0, Weights(topology, values, dense), {"order": order})
    return wire.encode(message, known=known)


def unpack_arrays(
    blob: bytes, topologies: Mapping[str, Topology] | None = None
) -> tuple[dict[str, NDArray[Any]], Topology]:
    """The arrays that `pack_arrays` was given, in their order, with 0 outside the masks; and the masks.

    Args:
        topologies: masks held here, by id.

    Raises:
        WireError: the bytes are damaged, no such message, or refer to masks that are not held here.
    """
    message = wire.decode(blob, topologies=topologies)
    weights, order = message.weights, message.extras.get("order")
    if message.task != _TASK or weights is None or not _is_list(order):
        raise WireError(f"a message for the task {message.task!r}: expected the arrays of a model")
    names = [*weights.values, *weights.dense]
    if sorted(order.tolist()) != list(range(len(names))):
        raise WireError(f"the order of {len(names)} arrays is {order.tolist()}: expected each place once")
    in_order = [names[place] for place in order.tolist()]
    return {name: _array(name, weights.weight(name)) for name in in_order}, weights.topology


def _is_list(section: object) -> TypeGuard[Tensor]:
    return isinstance(section, Tensor) and section.dtype == torch.int32 and section.ndim == 1


def _array(name: str, tensor: Tensor) -> NDArray[Any]:
    try:
        return tensor.numpy()
    except TypeError as error:
        raise WireError(f"{name!r}: a tensor of {tensor.dtype} is no array: {error}") from error


def _tensor(name: str, array: NDArray[Any]) -> Tensor:
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except TypeError as error:
        raise WireError(f"{name!r}: an array of {array.dtype} cannot be sent: {error}") from error
