"""A plan on disk, for processes that read it: samples are mapped into memory, one copy for all of them.

The plan itself is pickled, its tensors are not: they go into a second file as they are. Both lie in a folder that
only this run's own processes use.
"""

import mmap
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fedsparse.errors import ConfigError
from fedsparse.federated.plan import Plan

__all__ = ["read_plan", "write_plan"]

_PLAN, _TENSORS = "plan.pickle", "plan.tensors"
_ALIGNMENT = 64


def write_plan(plan: Plan, folder: Path) -> None:
    """Writes a plan for `read_plan`.

    Raises:
        ConfigError: its method or its model cannot be pickled, as those defined inside functions.
    """
    with (folder / _PLAN).open("wb") as file, (folder / _TENSORS).open("wb") as tensors:
        try:
            _Pickler(file, tensors).dump(plan)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"the run cannot be handed to worker processes: {error}; define its method and model at the top of a "
                'module, or use engine.kind = "inline"'
            ) from error


def read_plan(folder: Path) -> Plan:
    """The plan that `write_plan` wrote; samples are read from disk when they are used."""
    with (folder / _PLAN).open("rb") as file, (folder / _TENSORS).open("rb") as tensors:
        empty = tensors.seek(0, 2) == 0
        # A private copy of each page that is written to, so that workers cannot change each other's samples.
        content = None if empty else mmap.mmap(tensors.fileno(), 0, access=mmap.ACCESS_COPY)
        plan: Plan = _Unpickler(file, content).load()
    return plan


class _Pickler(pickle.Pickler):
    def __init__(self, file: BinaryIO, tensors: BinaryIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors
        self._written: dict[int, tuple[Tensor, tuple[object, ...]]] = {}  # holds tensors, so that no id comes twice

    def persistent_id(self, thing: object) -> tuple[object, ...] | None:
        if type(thing) is not Tensor:
            return None
        if id(thing) not in self._written:
            self._written[id(thing)] = thing, self._write(thing)
        return self._written[id(thing)][1]

    def _write(self, tensor: Tensor) -> tuple[object, ...]:
        self._tensors.write(bytes(-self._tensors.tell() % _ALIGNMENT))
        offset = self._tensors.tell()
        plain = tensor.detach().cpu().contiguous()
        self._tensors.write(plain.reshape(-1).view(torch.uint8).numpy().data)
        return plain.dtype, tuple(plain.shape), offset


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, content: mmap.mmap | None) -> None:
        super().__init__(file)
        self._content = content

    def persistent_load(self, key: Any) -> Tensor:
        dtype, shape, offset = key
        count = torch.Size(shape).numel()
        if count == 0 or self._content is None:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._content, dtype=dtype, count=count, offset=offset).reshape(shape)
