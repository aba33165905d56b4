"""`fedsparse doctor`: what is here, what is missing, and what to do about it."""

import importlib
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Annotated

import torch
import typer

from fedsparse import _native
from fedsparse.cli.failures import FAILED
from fedsparse.energy import Meter, Unavailable
from fedsparse.errors import BackendError
from fedsparse.experiment.engine import cores, engines
from fedsparse.experiment.environment import processor, version
from fedsparse.experiment.plan import data_root
from fedsparse.experiment.settings import DataTable

__all__ = ["EXAMPLE", "Check", "checks", "doctor"]

EXAMPLE = "Example: fedsparse doctor --json"

# Import name of each optional package, what needs it, and the extra that installs it.
OPTIONAL = {
    "sklearn": ("the embedded data set digits", "data"),
    "pyarrow": ("data sets in parquet files", "data"),
    "PIL": ("data sets of encoded images", "data"),
    "matplotlib": ("`fedsparse report`", "report"),
    "tensorboard": ("the tracker tensorboard", "tensorboard"),
    "wandb": ("the tracker wandb", "wandb"),
    "mlflow": ("the tracker mlflow", "mlflow"),
    "pynvml": ("joules of GPUs", "energy"),
    "triton": ("the Triton kernels", "triton"),
    "flwr": ("the engine `flower`", "flower"),
    "sparseprop": ("comparisons of `fedsparse bench`", "bench"),
    "sparselab": ("comparisons of `fedsparse bench`", "bench"),
}


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked for.
        ok: whether it is there.
        found: version, path or reason.
        remedy: what to do when it is missing.
        required: whether fedsparse cannot work without it.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    required: bool = False


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Check this installation; exit 1 when something fedsparse cannot work without is missing."""
    report = list(checks())
    if as_json:
        print(json.dumps([asdict(check) for check in report], indent=2))
    else:
        for check in report:
            _print(check)
    if any(check.required and not check.ok for check in report):
        raise typer.Exit(FAILED)


def checks() -> Iterator[Check]:
    """All lines of the report."""
    yield Check("python", True, platform.python_version())
    yield Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield Check("processor", True, processor())
    yield Check("engines", True, f"{', '.join(engines())}; up to {cores()} workers, one for each usable core")
    yield _extension()
    yield from _cuda()
    yield _triton_kernels()
    yield from (_package(name, purpose, extra) for name, (purpose, extra) in OPTIONAL.items())
    yield _energy()
    yield _data()


def _print(check: Check) -> None:
    state = "ok" if check.ok else "missing"
    remedy = f"; {check.remedy}" if check.remedy and not check.ok else ""
    print(f"{state:8} {check.name:18} {check.found}{remedy}")


def _extension() -> Check:
    try:
        sets = ", ".join(_native.instruction_sets())
    except BackendError as error:
        return Check(
            "compiled kernels",
            False,
            str(error),
            "run `pip install -e .` in the source folder",
            required=True,
        )
    return Check("compiled kernels", True, f"instruction sets {sets}", required=True)


def _cuda() -> Iterator[Check]:
    built = _built_with_cuda()
    remedy = "needs nvcc; set FEDSPARSE_CUDA=on and run `pip install -e .` in the source folder"
    yield Check("CUDA kernels", built, "built in" if built else "not built in", remedy)
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    remedy = "clients train on the CPU; for a GPU install its driver and a CUDA build of torch"
    yield Check("CUDA device", count > 0, names or f"torch {torch.__version__} sees none", remedy)


def _built_with_cuda() -> bool:
    try:
        return bool(_native.extension().built_with_cuda)
    except BackendError:
        return False


def _triton_kernels() -> Check:
    try:
        importlib.import_module("fedsparse.kernels")
    except ImportError as error:
        return Check("fedsparse.kernels", False, str(error), "run `pip install -e .` in the source folder")
    return Check("fedsparse.kernels", True, "importable")


def _package(name: str, purpose: str, extra: str) -> Check:
    if find_spec(name) is None:
        return Check(name, False, f"needed for {purpose}", f"pip install 'fedsparse[{extra}]'")
    distribution = {"sklearn": "scikit-learn", "PIL": "pillow", "pynvml": "nvidia-ml-py"}.get(name, name)
    return Check(name, True, version(distribution) or "version unknown")


def _energy() -> Check:
    try:
        Meter("cpu").joules()
    except Unavailable as error:
        return Check("energy counters", False, str(error), "joules are reported as unavailable until then")
    return Check("energy counters", True, "RAPL")


def _data() -> Check:
    root = data_root(DataTable())
    remedy = "digits needs no files; for others set FEDSPARSE_DATA or data.root to their folder"
    return Check("data folder", root.is_dir(), str(root.resolve()), remedy)
