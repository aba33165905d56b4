"""Builds the CUDA kernels for the CPU (csrc/shim) and calls them. Needs numpy alone: sanitizers want few libraries.

Objects lie in build/shim under the hash of what went into them, so only what has changed is compiled again.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("csrc/shim", "csrc/cuda", "csrc/include", "csrc/python")
SOURCES = (*ROOT.glob("csrc/shim/*.cpp"), *ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("tests/cuda/*.cu"))
# Kernels read float arrays as vectors, as CUDA's own documentation does; contraction would hide a missing rounding.
FLAGS = (
    "-std=c++17", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    "-fno-strict-aliasing", "-ffp-contract=off", "-DFEDSPARSE_SHIM",
    *(f"-I{ROOT / folder}" for folder in ("csrc/shim", "csrc/include", "csrc/cuda")),
)  # fmt: skip
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


class LaunchError(Exception):
    """A kernel did not end well; the text is the shim's report or CUDA's sentence for the status."""


def missing() -> str | None:
    """Why nothing can be built here, or None."""
    if sys.platform != "linux":
        return "the CUDA shim is written for Linux"
    return None if compiler() else "no C++ compiler (CXX, g++, c++, clang++) to build the CUDA shim with"


def compiler() -> str | None:
    """The C++ compiler, as setup.py finds it."""
    named = os.environ.get("CXX", "").split()
    return next((path for name in (named[:1] or ["g++", "c++", "clang++"]) if (path := shutil.which(name))), None)


def build(flags: Sequence[str] = (), *, instead: Mapping[Path, Path] | None = None) -> Path:
    """Shared library of every kernel and of the shim, compiled with `flags` besides the usual ones.

    Args:
        instead: files that take the place of sources.
    """
    return _link("libshim", [(instead or {}).get(source, source) for source in SOURCES], flags)


def build_binding() -> Path:
    """The module `fedsparse_shim`: what fedsparse._C has of CUDA, over kernels that run on the CPU."""
    import pybind11

    includes = (sysconfig.get_path("include"), pybind11.get_include(), str(ROOT / "csrc/python"))
    sources = (*ROOT.glob("csrc/python/bind_cuda*.cpp"), ROOT / "tests/cuda/binding.cpp")
    flags = ("-DFEDSPARSE_WITH_CUDA", "-fvisibility=hidden", *(f"-I{path}" for path in includes))
    return _link("fedsparse_shim", sources, flags, also=[build()])


def _link(name: str, sources: Sequence[Path], flags: Sequence[str], also: Sequence[Path] = ()) -> Path:
    folder, command = ROOT / "build" / "shim", [compiler() or "c++", *FLAGS, *flags]
    folder.mkdir(parents=True, exist_ok=True)
    common = hashlib.sha256("\0".join(command).encode())
    common.update(subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout)
    for path in sorted(path for part in FOLDERS for path in (ROOT / part).rglob("*.*h")):
        common.update(path.read_bytes())
    parts = [*(_compile(command, source, common.copy(), folder) for source in sorted(sources)), *also]
    digest = hashlib.sha256("".join(part.name for part in parts).encode()).hexdigest()[:16]
    return _make(folder / f"{name}-{digest}.so", [*command, "-shared", *map(str, parts), f"-Wl,-rpath,{folder}"])


def _compile(command: list[str], source: Path, digest: "hashlib._Hash", folder: Path) -> Path:
    digest.update(source.read_bytes())
    target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.o"
    return _make(target, [*command, "-x", "c++", "-c", str(source)])


def _make(target: Path, command: list[str]) -> Path:
    if not target.exists():
        fresh = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*command, "-o", str(fresh)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        fresh.replace(target)
    return target


class Shim:
    """The library's functions, one launch at a time."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.fedsparse_shim_report.restype = ctypes.c_char_p
        self._library.fedsparse_cuda_status_text.restype = ctypes.c_char_p
        self._library.fedsparse_shim_launches.restype = ctypes.c_int64

    def seed(self, seed: int) -> None:
        """0 runs threads in order, any other number shuffles them."""
        self._library.fedsparse_shim_seed(ctypes.c_uint64(seed))

    @property
    def launches(self) -> int:
        """Of kernels, so far."""
        return int(self._library.fedsparse_shim_launches())

    def __call__(self, name: str, *arguments: object) -> None:
        """Calls a function that returns a status: whole numbers go as int64, arrays and None as addresses.

        Raises:
            LaunchError: the status is not 0.
        """
        status = self.value(name, *arguments)
        if status != 0:
            raise LaunchError(self._library.fedsparse_cuda_status_text(status).decode())

    def fill(self, name: str, *arguments: object) -> None:
        """Calls a function that returns nothing."""
        function = getattr(self._library, name)
        function.restype = None
        function(*map(_argument, arguments))

    def value(self, name: str, *arguments: object) -> int:
        """What a function returns."""
        function = getattr(self._library, name)
        function.restype = ctypes.c_int64 if name.endswith("_size") else ctypes.c_int
        return int(function(*map(_argument, arguments)))


def _argument(value: object) -> object:
    match value:
        case None:
            return ctypes.c_void_p()
        case bool():
            return ctypes.c_bool(value)
        case int():
            return ctypes.c_int64(value)
        case float():
            return ctypes.c_float(value)
        case ctypes.c_double():
            return value
        case np.ndarray():
            assert value.flags.c_contiguous
            return ctypes.c_void_p(value.ctypes.data)
        case ctypes.Structure() | ctypes.Array():
            return ctypes.byref(value)
    raise TypeError(f"cannot pass {value!r}")
