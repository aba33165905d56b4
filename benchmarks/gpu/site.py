"""A folder to import from: the package, its Triton kernels and the extension, without installing anything.

A clone that was never installed has its kernels in a folder beside the package, where `fedsparse.kernels` is not
found. Links make one package of the two, as setup.py does.
"""

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

__all__ = ["BUILD", "ROOT", "environment", "extension_folder", "stage_site"]

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"


def extension_folder() -> Path:
    """Where the build stage puts fedsparse._C."""
    return BUILD / "lib"


def stage_site(folder: Path = BUILD / "site") -> Path:
    """Makes the folder anew; an extension of the build stage goes before one that lies in the package."""
    package = folder / "fedsparse"
    shutil.rmtree(folder, ignore_errors=True)
    package.mkdir(parents=True)
    built = sorted(extension_folder().glob("_C*.so"))
    for source in sorted((ROOT / "fedsparse").iterdir()):
        if source.name == "__pycache__" or (built and source.name.startswith("_C")):
            continue
        (package / source.name).symlink_to(source)
    for source in built:
        (package / source.name).symlink_to(source)
    (package / "kernels").symlink_to(ROOT / "kernels")
    return folder


def environment(site: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Of a process that imports from `site`: nothing of the folder it runs in comes before it.

    Build tools may lie beside the interpreter, where PATH does not lead without an active environment.
    """
    path = os.pathsep.join(part for part in (base.get("PATH"), sysconfig.get_path("scripts")) if part)
    more = {
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {**base, **more}
