"""Run a command in an environment where fedsparse is installed and its extension is up to date.

    python scripts/bootstrap.py [--extras data,test] -- COMMAND ...

An active virtual environment that already has torch is used: its torch stays, and what fedsparse lacks there is
installed. Otherwise `.venv` is made, or used again, with everything that constraints.txt pins. `PYTHON=` names the
interpreter. What was installed is remembered in a stamp, so a second call only compares hashes. Needs nothing
but the standard library.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - told in one sentence where an older interpreter starts this
    sys.exit(f"fedsparse needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; set PYTHON=")

import tomllib

ROOT = Path(__file__).resolve().parent.parent
STAMP = "fedsparse-bootstrap.json"
# What decides which packages are there, and what decides the compiled extension.
PACKAGE_FILES = ("pyproject.toml", "setup.py", "constraints.txt")
BUILD_FILES = ("setup.py", "CMakeLists.txt", "csrc")
BUILD_SETTINGS = ("FEDSPARSE_CUDA", "FEDSPARSE_CUDA_ARCHS", "CXX", "CXXFLAGS", "CUDACXX", "CUDAFLAGS")

PROBE = """
import importlib.util, json, os, sys
found = lambda name: importlib.util.find_spec(name) is not None
virtual = sys.prefix != sys.base_prefix or os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
print(json.dumps({"path": sys.executable, "version": list(sys.version_info[:2]), "prefix": sys.prefix,
                  "virtual": virtual, "torch": found("torch"), "pip": found("pip")}))
"""
LOCATE = """
import importlib.metadata, importlib.util, json, os, sysconfig
folder = importlib.util.find_spec("fedsparse").submodule_search_locations[0]
print(json.dumps([str(importlib.metadata.distribution("fedsparse")._path),
                  os.path.join(folder, "_C" + sysconfig.get_config_var("EXT_SUFFIX"))]))
"""
UNMET = """
import importlib.metadata, json, sys
from pip._vendor.packaging.requirements import Requirement
def unmet(requirement):
    if requirement.marker and not requirement.marker.evaluate():
        return False
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return True
    return not requirement.specifier.contains(version, prereleases=True)
print(json.dumps([text for text in json.loads(sys.argv[1]) if unmet(Requirement(text))]))
"""


@dataclass(frozen=True)
class Interpreter:
    """What a Python says of itself."""

    path: str
    version: Sequence[int]
    prefix: str
    virtual: bool
    torch: bool
    pip: bool


@dataclass(frozen=True)
class Environment:
    """Where the command runs; `owned` is our own .venv, in which packages may be installed."""

    prefix: Path
    owned: bool

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.prefix / "bin" / "python"


@dataclass(frozen=True)
class Stamp:
    """What a finished set-up left behind: hashes of its sources, extras, files that must still be there."""

    packages: str
    build: str
    extras: Sequence[str]
    present: Sequence[str]


def stop(sentence: str) -> NoReturn:
    """End with one sentence on standard error."""
    sys.exit(f"bootstrap: {sentence}")


def digest(root: Path, names: Iterable[str], settings: Mapping[str, str]) -> str:
    """Hash of files (folders with all below), by relative name and content, and of settings."""
    hashed = hashlib.sha256()
    for name in names:
        path = root / name
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            content = file.read_bytes()
            hashed.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    hashed.update(json.dumps(sorted(settings.items())).encode())
    return hashed.hexdigest()


def digests(root: Path, version: Sequence[int], environ: Mapping[str, str]) -> tuple[str, str]:
    """Hashes of what the installed packages and what the extension depend on."""
    # The place: an environment shared by two clones serves the one that asked last.
    common = {"root": str(root), "python": ".".join(map(str, version))}
    settings = {name: environ[name] for name in BUILD_SETTINGS if environ.get(name)}
    return digest(root, PACKAGE_FILES, common), digest(root, BUILD_FILES, common | settings)


def read_stamp(prefix: Path) -> Stamp | None:
    """The stamp of an environment, or None where there is none that this version wrote."""
    try:
        return Stamp(**json.loads((prefix / STAMP).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_stamp(prefix: Path, stamp: Stamp) -> None:
    """Put the stamp in place in one step: readers see the old one or the new one."""
    fresh = prefix / f"{STAMP}.{os.getpid()}"
    fresh.write_text(json.dumps(asdict(stamp), indent=2) + "\n")
    fresh.replace(prefix / STAMP)


def work_left(stamp: Stamp | None, packages: str, build: str, extras: Iterable[str]) -> str:
    """`packages` (all there is to install), `extension` (only that) or `nothing`."""
    if stamp is None or stamp.packages != packages or not set(extras) <= set(stamp.extras):
        return "packages"
    if stamp.build != build or not all(Path(path).exists() for path in stamp.present):
        return "extension"
    return "nothing"


def requirements(project: Mapping[str, Any], extras: Iterable[str]) -> list[str]:
    """The core dependencies and those of extras, without repetition; extras of extras are followed."""
    offered = project["optional-dependencies"]
    wanted = list(project["dependencies"])
    for extra in extras:
        if extra not in offered:
            stop(f"there is no extra {extra!r}; pyproject.toml offers {', '.join(sorted(offered))}")
        for requirement in offered[extra]:
            if nested := re.fullmatch(rf"{project['name']}\[(.+)\]", requirement):
                wanted += requirements(project, re.split(r"\s*,\s*", nested[1]))
            else:
                wanted.append(requirement)
    return list(dict.fromkeys(wanted))


def ask(python: Path | str, code: str, *arguments: str) -> Any:
    """What a snippet prints as JSON in an interpreter that sees only what is installed there."""
    command = [str(python), "-I", "-c", code, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def probe(python: Path | str) -> Interpreter | None:
    """An interpreter's own account, or None where it cannot run."""
    try:
        return Interpreter(**ask(python, PROBE))
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def checked(where: str | None, given: str) -> Interpreter:
    """The interpreter at a path, if it works and is new enough."""
    interpreter = probe(where) if where else None
    if interpreter is None:
        stop(f"{given} does not lead to a working Python; name one with PYTHON=, such as PYTHON=python3.11")
    if tuple(interpreter.version) < (3, 11):
        found = ".".join(map(str, interpreter.version))
        stop(f"fedsparse needs Python 3.11 or newer, {given} is {found}; name another with PYTHON=")
    return interpreter


def choose(root: Path, environ: Mapping[str, str]) -> tuple[Interpreter, Environment]:
    """PYTHON= where it is set, else the active virtual environment, else .venv, else what runs this.

    The second is the interpreter's own environment where that is a virtual one with torch, else .venv.
    """
    own = root / ".venv"
    named, active = environ.get("PYTHON"), environ.get("VIRTUAL_ENV")
    if named:
        interpreter = checked(shutil.which(named), f"PYTHON={named}")
    elif active:
        interpreter = checked(str(Path(active, "bin", "python")), f"VIRTUAL_ENV={active}")
    else:
        interpreter = checked(sys.executable, sys.executable)
    elsewhere = interpreter.virtual and Path(interpreter.prefix).resolve() != own.resolve()
    if elsewhere and interpreter.torch:
        return interpreter, Environment(Path(interpreter.prefix), owned=False)
    if not named:
        interpreter = probe(Environment(own, owned=True).python) or interpreter
    return interpreter, Environment(own, owned=True)


def activated(environment: Environment) -> dict[str, str]:
    """Process variables under which the environment's programs come first."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    programs = [str(environment.prefix / "bin"), environ.get("PATH", os.defpath)]
    return environ | {"VIRTUAL_ENV": str(environment.prefix), "PATH": os.pathsep.join(programs)}


def call(what: str, command: Sequence[Path | str], environ: Mapping[str, str] = os.environ) -> None:
    """Run one step of the set-up; standard output stays free for the command that follows."""
    result = subprocess.run(list(map(str, command)), cwd=ROOT, env=environ, stdout=sys.stderr, check=False)
    if result.returncode != 0:
        stop(f"{what} failed with status {result.returncode}; the reason stands above")


def ensure_venv(environment: Environment, interpreter: Interpreter) -> None:
    """Make .venv where it is missing or broken, or has another version than the interpreter."""
    present = probe(environment.python)
    if present is not None and present.version == interpreter.version:
        if not present.pip:
            call("adding pip to .venv", [environment.python, "-m", "ensurepip"])
        return
    if present is not None and read_stamp(environment.prefix) is None:
        has, wants = (".".join(map(str, each.version)) for each in (present, interpreter))
        stop(f".venv has Python {has}, PYTHON= asks for {wants}, and this script did not make it; move it away")
    call("making .venv", [interpreter.path, "-m", "venv", "--clear", environment.prefix])


def lacking(environment: Environment, needed: Sequence[str]) -> list[str]:
    """Requirements that an environment we did not make does not meet; its torch must be one of those we can use."""
    unmet: list[str] = ask(environment.python, UNMET, json.dumps(needed))
    if old := [requirement for requirement in unmet if re.match(r"torch\b", requirement)]:
        stop(
            f"the torch of {environment.prefix} does not meet {old[0]} and is left alone; upgrade it there, or "
            "deactivate that environment to have .venv made"
        )
    return unmet


def install(environment: Environment, settings: Mapping[str, Any], extras: Sequence[str], work: str) -> None:
    """Install fedsparse in editable form; into our own .venv with everything it needs, at pinned versions."""
    needed = requirements(settings["project"], extras)

    def pip(what: str, *arguments: str) -> None:
        quiet = ("--disable-pip-version-check", "install", "--quiet")
        call(what, [environment.python, "-m", "pip", *quiet, *arguments], activated(environment))

    if not environment.owned:
        if unmet := lacking(environment, needed):
            pip("installing what is missing", *unmet)
        pip("installing fedsparse", "--no-deps", "--editable", ".")
        return
    if work == "packages":
        # The build tools stay, so that a later change of csrc/ costs no download.
        tools = settings["build-system"]["requires"]
        pip("installing packages", *tools, *needed, "--constraint", "constraints.txt")
    pip("building fedsparse", "--no-build-isolation", "--no-deps", "--editable", ".")


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Hold the set-up of this source tree against other processes."""
    folder = root / "build"
    folder.mkdir(exist_ok=True)
    with (folder / "bootstrap.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("bootstrap: waiting for another set-up of this folder", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare(environment: Environment, interpreter: Interpreter, extras: Sequence[str]) -> None:
    """Bring the environment up to date, unless its stamp says that it is."""
    packages, build = digests(ROOT, interpreter.version, os.environ)
    if work_left(read_stamp(environment.prefix), packages, build, extras) == "nothing":
        return
    with one_at_a_time(ROOT):
        stamp = read_stamp(environment.prefix)
        work = work_left(stamp, packages, build, extras)  # again: another process may have done it
        if work == "nothing":
            return
        print(f"bootstrap: installing {work} in {environment.prefix}, once", file=sys.stderr)
        if environment.owned:
            ensure_venv(environment, interpreter)
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
        offered = settings["project"]["optional-dependencies"]
        earlier = [extra for extra in (stamp.extras if stamp else ()) if extra in offered]
        together = sorted({*extras, *earlier})
        install(environment, settings, together, work)
        write_stamp(environment.prefix, Stamp(packages, build, together, ask(environment.python, LOCATE)))


def start(environment: Environment, command: Sequence[str]) -> NoReturn:
    """Become the command, with the environment's programs first on PATH."""
    environ = activated(environment)
    if shutil.which(command[0], path=environ["PATH"]) is None:
        stop(f"there is no command {command[0]!r} in {environment.prefix / 'bin'} or on PATH")
    os.execvpe(command[0], list(command), environ)


def main() -> NoReturn:
    """Read the command line, prepare, start."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extras", default="dev", help="comma-separated extras the command needs (default: dev)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    options = parser.parse_args()
    interpreter, environment = choose(ROOT, os.environ)
    extras = {extra.strip() for extra in options.extras.split(",") if extra.strip()}
    if environment.owned:
        extras.add("dev")  # one set-up of .venv serves every target
    prepare(environment, interpreter, sorted(extras))
    start(environment, options.command)


if __name__ == "__main__":
    main()
