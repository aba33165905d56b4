"""The package as a whole: what is shipped, how it is imported, how its environment is made."""

import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, *arguments: str, cwd: Path = ROOT, **environ: str) -> str:
    """Standard output of a snippet in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return settings


# ---- imports


def test_kernels_refuse_every_other_name() -> None:
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "kernels" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"imported as 'kernels'; import them as 'fedsparse\.kernels'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_kernels_import_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fedsparse.kernels as k; print(k.__file__)"
    assert Path(run_python(code)) == ROOT / "kernels" / "__init__.py"


def test_the_engine_needs_nothing_that_reads_configurations() -> None:
    code = """
import sys
for name in ("pydantic", "typer", "rich"):
    sys.modules[name] = None
import fedsparse as fs, fedsparse.testing, fedsparse.bench.cases
fs.sparsify(fs.models.lenet(), 0.1)
try:
    fs.run
except ImportError as error:
    print(error.name)
"""
    assert run_python(code) == "pydantic"


def test_every_public_name_is_there() -> None:
    code = "import fedsparse as fs; print([n for n in fs.__all__ if getattr(fs, n, None) is None or n not in dir(fs)])"
    assert run_python(code) == "[]"


def test_extension_loads_alone_and_without_a_driver() -> None:
    # Loaded by its path: importing the package would bring torch, whose libraries must not be needed.
    code = """
import importlib.machinery, importlib.util, json, pathlib, sys
folder = pathlib.Path(importlib.util.find_spec("fedsparse").origin).parent
path = str(folder / ("_C" + importlib.machinery.EXTENSION_SUFFIXES[0]))
spec = importlib.util.spec_from_file_location("_C", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
maps = pathlib.Path("/proc/self/maps")
mapped = sorted({line.split()[-1] for line in maps.read_text().splitlines()}) if maps.exists() else []
devices = module.cuda_device_count() if module.built_with_cuda else 0
print(json.dumps({"mapped": mapped, "torch": "torch" in sys.modules, "devices": devices}))
"""
    seen = json.loads(run_python(code, CUDA_VISIBLE_DEVICES=""))
    assert seen["devices"] == 0
    assert not seen["torch"]
    assert [path for path in seen["mapped"] if re.search(r"libcuda|libtorch|libc10", path)] == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="libraries in use are read from /proc")
def test_extension_shares_torchs_openmp() -> None:
    code = """
import torch, re
from fedsparse import _C
print(len({line.split()[-1] for line in open("/proc/self/maps") if re.search(r"lib[gi]omp", line)}))
"""
    assert run_python(code) == "1"


# ---- what is shipped


def test_every_source_file_is_in_a_listed_package() -> None:
    pytest.importorskip("setuptools", minversion="77", reason="no setuptools that can build fedsparse")
    code = """
import json, warnings
from distutils.core import run_setup
import setuptools
distribution = run_setup("setup.py", stop_after="init")
print(json.dumps([distribution.packages, distribution.package_dir,
                  [extension.name for extension in distribution.ext_modules]]))
"""
    packages, folders, extensions = json.loads(run_python(code).splitlines()[-1])
    assert folders == {"fedsparse": "fedsparse", "fedsparse.kernels": "kernels"}
    assert extensions == ["fedsparse._C"]
    shipped = {ROOT / re.sub(r"^fedsparse/kernels\b", "kernels", name.replace(".", "/")) for name in packages}
    sources = {file.parent for folder in ("fedsparse", "kernels") for file in (ROOT / folder).rglob("*.py")}
    assert sources - shipped == set()
    assert all((folder / "__init__.py").exists() for folder in shipped)


def test_build_needs_no_torch(project: dict[str, Any]) -> None:
    assert not any(name.startswith("torch") for name in project["build-system"]["requires"])
    assert project["tool"]["setuptools"]["package-data"] == {"fedsparse": ["py.typed"]}
    assert (ROOT / "fedsparse" / "py.typed").exists()


def _pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}


@pytest.mark.parametrize(("file", "alone"), [("constraints.txt", False), ("constraints-flower.txt", True)])
def test_constraints_pin_every_requirement(
    project: dict[str, Any], bootstrap: ModuleType, file: str, alone: bool
) -> None:
    pins, extras = _pins(file), project["project"]["optional-dependencies"]
    chosen = {name: needs for name, needs in extras.items() if (name == "flower") == alone}
    build = [] if alone else project["build-system"]["requires"]
    for requirement in [*bootstrap.requirements(project["project"], chosen), *build]:
        assert re.match(r"[\w-]+", requirement)[0].lower() in pins  # type: ignore[index]
    assert pins["torch"] == "2.13.0"


def test_without_a_compiler_the_build_says_so_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="no setuptools that can build fedsparse")
    environ = {name: value for name, value in os.environ.items() if name != "CXX"}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path],
        cwd=ROOT,
        env=environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: fedsparse needs a C++17 compiler")
    assert "CMake" not in done.stdout


# ---- scripts/bootstrap.py


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with all that the hashes cover."""
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "csrc" / "cpu" / "a.cpp").write_text("int a;")
    for name in ("pyproject.toml", "setup.py", "constraints.txt", "CMakeLists.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "packages", "build"),
    [
        ("nothing", False, False),
        ("csrc/cpu/a.cpp", False, True),
        ("csrc/cpu/new.cpp", False, True),
        ("CMakeLists.txt", False, True),
        ("pyproject.toml", True, False),
        ("constraints.txt", True, False),
        ("setup.py", True, True),
    ],
)
def test_hashes_follow_their_files(bootstrap: ModuleType, tree: Path, change: str, packages: bool, build: bool) -> None:
    before = bootstrap.digests(tree, (3, 11), {})
    if change != "nothing":
        (tree / change).write_text("changed")
    (tree / "README.md").write_text("not a source of the build")
    after = bootstrap.digests(tree, (3, 11), {"HOME": "/elsewhere"})
    assert (before[0] != after[0], before[1] != after[1]) == (packages, build)


def test_hashes_follow_names_settings_and_interpreter(bootstrap: ModuleType, tree: Path) -> None:
    before = bootstrap.digests(tree, (3, 11), {})
    with_setting = bootstrap.digests(tree, (3, 11), {"FEDSPARSE_CUDA": "off"})
    assert (before[0] == with_setting[0], before[1] == with_setting[1]) == (True, False)
    other = bootstrap.digests(tree, (3, 12), {})
    assert (before[0] == other[0], before[1] == other[1]) == (False, False)
    (tree / "csrc" / "cpu" / "a.cpp").rename(tree / "csrc" / "cpu" / "b.cpp")
    assert bootstrap.digests(tree, (3, 11), {})[1] != before[1]


def test_work_left(bootstrap: ModuleType, tmp_path: Path) -> None:
    module = tmp_path / "_C.so"
    module.touch()
    stamp = bootstrap.Stamp("p", "b", ["data", "dev"], [str(module)])
    assert bootstrap.work_left(None, "p", "b", []) == "packages"
    assert bootstrap.work_left(stamp, "p", "b", ["dev"]) == "nothing"
    assert bootstrap.work_left(stamp, "p", "b", ["dev", "onnx"]) == "packages"
    assert bootstrap.work_left(stamp, "q", "b", ["dev"]) == "packages"
    assert bootstrap.work_left(stamp, "p", "c", ["dev"]) == "extension"
    module.unlink()
    assert bootstrap.work_left(stamp, "p", "b", ["dev"]) == "extension"


def test_stamp_survives_the_disk_and_damage_is_no_stamp(bootstrap: ModuleType, tmp_path: Path) -> None:
    stamp = bootstrap.Stamp("p", "b", ["dev"], ["x"])
    assert bootstrap.read_stamp(tmp_path) is None
    bootstrap.write_stamp(tmp_path, stamp)
    assert bootstrap.read_stamp(tmp_path) == stamp
    assert [path.name for path in tmp_path.iterdir()] == [bootstrap.STAMP]  # nothing half-written beside it
    for damaged in ("", "{", "[]", '{"packages": "p"}'):
        (tmp_path / bootstrap.STAMP).write_text(damaged)
        assert bootstrap.read_stamp(tmp_path) is None


def test_requirements_follow_extras_of_extras(bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    small = {
        "name": "fedsparse",
        "dependencies": ["torch>=2.8", "numpy"],
        "optional-dependencies": {
            "data": ["pyarrow"],
            "triton": ["triton; platform_system == 'Linux'"],
            "test": ["pytest>=8", "fedsparse[data]"],
            "dev": ["ruff", "fedsparse[test, triton]"],
        },
    }
    core = ["torch>=2.8", "numpy"]
    assert bootstrap.requirements(small, []) == core
    assert bootstrap.requirements(small, ["data"]) == [*core, "pyarrow"]
    assert sorted(bootstrap.requirements(small, ["dev", "data"])) == sorted(
        [*core, "ruff", "pytest>=8", "pyarrow", "triton; platform_system == 'Linux'"]
    )
    with pytest.raises(SystemExit, match=r"no extra 'docs'; pyproject\.toml offers data, dev, test, triton"):
        bootstrap.requirements(small, ["docs"])
    assert capsys.readouterr().out == ""


ACTIVE, OWN, SYSTEM = "/env/bin/python", "{root}/.venv/bin/python", "/usr/bin/python3"


@pytest.mark.parametrize(
    ("environ", "pythons", "prefix", "version"),
    [
        # an active environment with torch is used as it is
        ({"VIRTUAL_ENV": "/env"}, {ACTIVE: (12, True)}, "/env", 12),
        # without torch it is not: .venv, made with its interpreter
        ({"VIRTUAL_ENV": "/env"}, {ACTIVE: (12, False)}, "{root}/.venv", 12),
        # an existing .venv keeps its own interpreter
        ({"VIRTUAL_ENV": "/env"}, {ACTIVE: (12, False), OWN: (11, True)}, "{root}/.venv", 11),
        # .venv itself may be the active one
        ({"VIRTUAL_ENV": "{root}/.venv"}, {OWN: (11, True)}, "{root}/.venv", 11),
        # PYTHON= comes before all
        (
            {"VIRTUAL_ENV": "/env", "PYTHON": SYSTEM},
            {ACTIVE: (12, True), SYSTEM: (13, True)},
            "{root}/.venv",
            13,
        ),
        ({"PYTHON": SYSTEM}, {SYSTEM: (13, False), OWN: (11, True)}, "{root}/.venv", 13),
    ],
)  # fmt: skip
def test_choice_of_environment(
    bootstrap: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environ: dict[str, str],
    pythons: dict[str, tuple[int, bool]],
    prefix: str,
    version: int,
) -> None:
    def known(text: str) -> str:
        return text.replace("{root}", str(tmp_path))

    def probe(python: Path | str) -> Any:
        for path, (minor, torch) in pythons.items():
            if known(path) == str(python):
                return bootstrap.Interpreter(
                    path=known(path),
                    version=[3, minor],
                    prefix=str(Path(known(path)).parent.parent),
                    virtual=path != SYSTEM,
                    torch=torch,
                    pip=True,
                )
        return None

    monkeypatch.setattr(bootstrap, "probe", probe)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: name)
    interpreter, environment = bootstrap.choose(tmp_path, {name: known(value) for name, value in environ.items()})
    assert environment.prefix == Path(known(prefix))
    assert environment.owned == (prefix != "/env")
    assert interpreter.version == [3, version]


def test_refuses_interpreters_that_are_missing_or_old(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="PYTHON=no-such-python does not lead to a working Python"):
        bootstrap.choose(tmp_path, {"PYTHON": "no-such-python"})
    old = bootstrap.Interpreter(SYSTEM, [3, 9], "/usr", virtual=False, torch=False, pip=True)
    monkeypatch.setattr(bootstrap, "probe", lambda _: old)
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, .* is 3\.9; name another with PYTHON="):
        bootstrap.choose(tmp_path, {})


def test_probe_describes_this_interpreter(bootstrap: ModuleType) -> None:
    seen = bootstrap.probe(sys.executable)
    assert seen.version == list(sys.version_info[:2])
    assert Path(seen.prefix) == Path(sys.prefix)
    assert seen.torch
    assert bootstrap.probe("/no/such/python") is None
