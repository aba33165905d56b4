"""The only import of the compiled extension `fedsparse._C`: what was built, and why something is missing."""

import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, TypeVar

# torch first: the extension then shares the OpenMP runtime, and so the threads, that torch has loaded.
import torch

from fedsparse.errors import BackendError

__all__ = [
    "STORED",
    "address",
    "check",
    "extension",
    "has_triton",
    "instruction_sets",
    "kernels_at",
    "launch",
    "on_device",
    "on_each_device",
    "row_list",
    "weight_rows",
]

Item = TypeVar("Item")
Result = TypeVar("Result")


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


# ---- kernels of a CUDA device
STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/cuda/cuda_api.h


def on_device(tensor: torch.Tensor) -> bool:
    """Whether the CUDA kernels can take a tensor: it is on such a device, and they were built."""
    return tensor.device.type == "cuda" and bool(extension().built_with_cuda)


@cache
def has_triton() -> bool:
    """Whether the Triton kernels can be imported."""
    return find_spec("triton") is not None


def kernels_at(tensor: torch.Tensor) -> Literal["cuda", "triton"] | None:
    """Whose kernels take a tensor where it is: Triton's on a device for which the extension was not built."""
    if on_device(tensor):
        return "cuda"
    return "triton" if tensor.device.type == "cuda" and has_triton() else None


def launch(name: str, where: torch.Tensor, *arguments: object) -> None:
    """Queues a kernel on the current stream of a tensor's device.

    Raises:
        BackendError: the launch failed; the text is CUDA's own.
    """
    with torch.cuda.device_of(where):
        check(name, getattr(extension(), name)(*arguments, _stream(where)))


def check(name: str, status: int) -> None:
    """Refuses the status of a function of the CUDA part, unless it is 0.

    Raises:
        BackendError: it is not.
    """
    if status != 0:
        raise BackendError(f"{name} failed with status {status}: {extension().cuda_status_text(status)}")


def row_list(row_start: torch.Tensor, column: torch.Tensor) -> tuple[int, int, bool]:
    """A pattern's row list on the device, as the CUDA part of the extension takes it."""
    return address(row_start), address(column), column.dtype == torch.int32


def weight_rows(
    shape: Sequence[int], row_start: torch.Tensor, column: torch.Tensor
) -> tuple[tuple[int, int, int], tuple[int, int, bool]]:
    """The same with what the weight's dense shape says: rows, inputs of a group and positions of the kernel."""
    return (shape[0], shape[1], math.prod(shape[2:])), row_list(row_start, column)


def on_each_device(
    items: Sequence[Item],
    where: Callable[[Item], torch.device],
    of_some: Callable[[list[Item]], Sequence[Result]],
) -> list[Result]:
    """One result for each item, in their order; `of_some` takes those of one device."""
    devices = [where(item) for item in items]
    results = {
        device: iter(of_some([item for item, here in zip(items, devices, strict=True) if here == device]))
        for device in dict.fromkeys(devices)
    }
    return [next(results[device]) for device in devices]


def _stream(where: torch.Tensor) -> int:
    return torch.cuda.current_stream(where.device).cuda_stream
