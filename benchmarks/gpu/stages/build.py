"""Compiles the extension with CUDA, and what else the other stages want; notes every kernel's registers."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.context import Context, Unavailable
from benchmarks.gpu.record import Row
from benchmarks.gpu.site import BUILD, ROOT, extension_folder

__all__ = ["PROBES", "configure_command", "registers", "run"]

PROBES = BUILD / "lib" / "libprobes.so"
_ENTRY = re.compile(
    r"Compiling entry function '(?P<entry>\w+)' for '(?P<architecture>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def run(context: Context) -> None:
    """Configures, compiles, and checks that the module loads and sees the device."""
    context.needs_gpu()
    missing = [tool for tool in ("cmake", "ninja", "nvcc") if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f"not on PATH: {', '.join(missing)}")
    extension_folder().mkdir(parents=True, exist_ok=True)
    _run(configure_command(_architecture()), context, "configure")
    log = _run(["cmake", "--build", str(BUILD / "cmake"), "--target", "_C"], context, "compile")
    for row in registers(log):
        context.row(row)
    if not log.count("Compiling entry function"):
        context.note("no kernel was compiled now: an earlier build of the same sources was kept, and its register log")
    _run(_probes_command(_architecture()), context, "probes")
    context.row({"what": "module", **_loaded()})


def _architecture() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def configure_command(architecture: str) -> list[str]:
    """CMake's command line; files that use wgmma ask for more by themselves."""
    import pybind11

    return [
        "cmake", "-S", str(ROOT), "-B", str(BUILD / "cmake"), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        "-DFEDSPARSE_CUDA=on", f"-DFEDSPARSE_CUDA_ARCHS={architecture}-real", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DPYTHON_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={extension_folder()}",
    ]  # fmt: skip


def _probes_command(architecture: str) -> list[str]:
    return [
        "nvcc", "-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC", f"-arch=sm_{architecture}",
        str(Path(__file__).resolve().parents[1] / "probes.cu"), "-o", str(PROBES),
    ]  # fmt: skip


def registers(log: str) -> Iterator[Row]:
    """Registers, stack and spills of each kernel that ptxas has told of."""
    for found in _ENTRY.finditer(log):
        yield {
            "what": "kernel",
            "kernel": _name(found["entry"]),
            "entry": found["entry"],
            "architecture": found["architecture"],
            "registers": int(found["registers"]),
            "stack": int(found["stack"]),
            "spilled": int(found["stores"]) + int(found["loads"]),
        }


def _name(entry: str) -> str:
    """The kernel's own name out of a mangled one, where a number says how long each name is."""
    for digits in re.finditer(r"(?=(\d+))", entry):
        begin = digits.start() + len(digits[1])
        name = entry[begin : begin + int(digits[1])]
        if name.endswith("_kernel"):
            return name
    return entry


def _loaded() -> Row:
    """What the fresh module says, in a process that finds it where the next stages will."""
    from benchmarks.gpu.site import environment, stage_site

    code = "from fedsparse import _native as n; e = n.extension(); print(e.__file__, e.cuda_device_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(stage_site(), os.environ), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    file, devices = done.stdout.split()
    return {"file": file, "devices": int(devices)}


def _run(command: list[str], context: Context, what: str) -> str:
    """Output of a command; where it fails, the stage does, with the end of it."""
    begin = context.left()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    context.row({"what": what, "seconds": round(begin - context.left(), 2)})
    if done.returncode != 0:
        raise RuntimeError(f"{what} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout
