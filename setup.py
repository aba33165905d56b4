"""One package from two source folders, and a CMake + ninja build of the extension fedsparse._C."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import ExecError, PlatformError

ROOT = Path(__file__).resolve().parent


def required_tool(name: str) -> str:
    """Full path of a build tool, looked for on PATH, then beside this interpreter."""
    beside = sysconfig.get_path("scripts")
    found = shutil.which(name) or shutil.which(name, path=beside)
    if found is None:
        raise PlatformError(
            f"fedsparse needs the build tool {name}, which is neither on PATH nor in {beside}; "
            f"install it with `pip install {name}`"
        )
    return found


def require_compiler() -> None:
    """Stop with one sentence where no C++ compiler can be found: CMake's own report runs over pages."""
    named = os.environ.get("CXX", "").split()
    if not any(shutil.which(name) for name in (named[:1] or ["c++", "g++", "clang++"])):
        looked_for = f"CXX={named[0]}" if named else "c++, g++ or clang++"
        raise PlatformError(
            f"fedsparse needs a C++17 compiler to build its kernels and found none ({looked_for}); install "
            "GCC 12 or newer or clang, for example `apt-get install g++`, or name one with CXX="
        )


def build_folder() -> Path:
    """One folder for each interpreter, source place and compiler choice: CMake keeps what it began with."""
    choice = [str(ROOT), *(os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "CUDACXX", "CUDAFLAGS"))]
    digest = hashlib.sha256("\0".join(choice).encode()).hexdigest()[:8]
    return ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{digest}"


class FreshBuild(build_py):
    """Starts from an empty folder: modules that were deleted since the last build stay out of the wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds fedsparse._C with CMake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        require_compiler()
        folder = build_folder()
        try:
            self._run("the configuration", self._configure_command(folder))
        except ExecError:
            shutil.rmtree(folder, ignore_errors=True)  # CMake would remember the compiler that failed
            raise
        self._run("the compilation", [required_tool("cmake"), "--build", str(folder), "--target", "_C"])
        self._deliver(folder, Path(self.get_ext_fullpath(ext.name)))

    def _deliver(self, folder: Path, target: Path) -> None:
        """Replace the module under a second name: a process that has the old one mapped keeps its bytes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(folder / target.name, fresh)
        fresh.replace(target)

    def _configure_command(self, folder: Path) -> list[str]:
        import pybind11

        command = [
            required_tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={required_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        for setting, default in (("FEDSPARSE_CUDA", "auto"), ("FEDSPARSE_CUDA_ARCHS", "80-real;90")):
            command.append(f"-D{setting}={os.environ.get(setting) or default}")
        return command

    def _run(self, what: str, command: list[str]) -> None:
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise ExecError(
                f"{what} of fedsparse._C failed with status {error.returncode}; the reason stands above "
                f"(command: {' '.join(command)})"
            ) from error


setup(
    packages=[
        *find_packages(include=["fedsparse", "fedsparse.*"]),
        "fedsparse.kernels",
        *(f"fedsparse.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"fedsparse": "fedsparse", "fedsparse.kernels": "kernels"},
    ext_modules=[Extension("fedsparse._C", sources=[])],
    cmdclass={"build_py": FreshBuild, "build_ext": CMakeBuild},
)
