"""The only import of the compiled extension `fedsparse._C`: what was built, and why something is missing."""

import os
from functools import cache
from types import ModuleType

# torch first: the extension then shares the OpenMP runtime, and so the threads, that torch has loaded.
import torch

from fedsparse.errors import BackendError

__all__ = ["address", "extension", "instruction_sets"]


# A fork copies one thread: in the child OpenMP waits for the others for ever, in torch's functions as in ours. Alone
# it needs nobody, and our kernels give the same bits on one thread as on many.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@cache
def extension() -> ModuleType:
    """The module `fedsparse._C`.

    Raises:
        BackendError: the extension was not built, or was built for another interpreter.
    """
    try:
        from fedsparse import _C  # type: ignore[attr-defined]
    except ImportError as error:
        raise BackendError(
            f"the compiled extension fedsparse._C cannot be loaded ({error}); "
            "build it with `pip install -e .` in the source folder, or run `make test`"
        ) from error
    module: ModuleType = _C
    return module


def instruction_sets() -> dict[str, int]:
    """Instruction sets the compiled kernels can use on this processor, best first, with the float32 lanes of each."""
    return dict(extension().instruction_sets())


def address(tensor: torch.Tensor | None) -> int:
    """Data pointer of a tensor, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
