"""Imports point downwards: the table of the architecture, checked on every import statement."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A part of the package may import parts of a lower rank, itself, and what ALSO adds.
RANKS = {
    "errors": 0,
    "_native": 0,
    "kernels": 0,
    "pattern": 1,
    "allocator": 1,
    "measure": 1,
    "energy": 1,
    "data": 1,
    "models": 1,
    "backends": 2,
    "pruning": 2,
    "wire": 2,
    "ops": 3,
    "functional": 3,
    "blocked": 4,
    "nn": 5,
    "optim": 5,
    "methods": 6,
    "federated": 7,
    "flower": 8,
    "experiment": 9,
    "testing": 9,
    "bench": 10,
    "cli": 11,
    "fedsparse": 12,  # the package itself, which gathers the public names
}
ALSO = {("measure", "energy"), ("_native", "errors"), ("_native", "_C"), ("functional", "ops")}
# Parts that see less than their rank allows.
ONLY = {
    "kernels": set(),
    "data": {"errors"},
    "models": {"errors"},
    "methods": {"errors", "pattern", "measure", "data", "pruning", "wire", "nn"},
}
# Parts that only these may import.
RESERVED = {
    "_native": {"pattern", "measure", "backends", "experiment", "testing", "bench", "cli"},
    "kernels": {"backends", "ops", "optim", "experiment", "testing", "cli"},
    "_C": {"_native"},
}
# Of a part, the modules that these parts may import.
MODULES = {
    ("methods", "wire"): {"fedsparse.wire.payload"},
    ("federated", "methods"): {"fedsparse.methods.base", "fedsparse.methods.roles"},
}
THIRD_PARTIES = {"typer": {"cli"}, "rich": {"cli"}, "triton": {"kernels"}, "flwr": {"flower", "experiment"}}


def modules():
    """Source file of each module, by the name it is imported under."""
    found = {}
    for folder, package in (("fedsparse", "fedsparse"), ("kernels", "fedsparse.kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = path
    return found


MODULE_FILES = modules()


def imports(name, source, *, is_package=False):
    """Modules that `source`, the text of module `name`, imports, at the top or inside functions."""
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*home, base] if base else home)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                is_module = inner in MODULE_FILES or inner == "fedsparse._C"
                yield inner if is_module else base


def part(module):
    """First name below the package."""
    return module.split(".")[1] if module.count(".") else module


def reason_against(importer, imported):
    """Why module `importer` may not import module `imported`, or None."""
    here = part(importer)
    if not (imported == "fedsparse" or imported.startswith("fedsparse.")):
        allowed = THIRD_PARTIES.get(imported.split(".")[0])
        return None if allowed is None or here in allowed else f"only {sorted(allowed)} may"
    there = part(imported)
    if here in (there, "fedsparse") or (here, there) in ALSO:
        return None
    if here in ONLY and there not in ONLY[here]:
        return f"{here} may import {sorted(ONLY[here]) or 'nothing of ours'} only"
    if here not in RANKS or RANKS.get(there, RANKS["fedsparse"]) >= RANKS[here]:
        return f"{there} is not below {here}"
    if here not in RESERVED.get(there, {here}):
        return f"only {sorted(RESERVED[there])} may"
    known = MODULES.get((here, there))
    return f"only {sorted(known)} of it" if known is not None and imported not in known else None


@pytest.mark.parametrize("name", MODULE_FILES)
def test_imports_point_downwards(name):
    path = MODULE_FILES[name]
    found = imports(name, path.read_text(), is_package=path.name == "__init__.py")
    wrong = {f"{name} imports {other}: {why}" for other in found if (why := reason_against(name, other))}
    assert not wrong, "\n".join(sorted(wrong))


def test_every_part_has_a_rank():
    assert {part(name) for name in MODULE_FILES} <= set(RANKS)
    assert len(MODULE_FILES) > 60


def test_methods_import_another_only_to_build_on_it():
    """A file of a method takes classes from another method's file for their own subclasses, nothing else."""
    paths = list((ROOT / "fedsparse/methods").glob("*.py"))
    shared = {path.stem for path in paths if "\n@register\n" not in path.read_text()}
    assert {"base", "roles", "aggregation"} <= shared
    for path in paths:
        if path.stem in shared:
            continue
        tree = ast.parse(path.read_text())
        bases = {ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases}
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("fedsparse.methods."):
                continue
            if node.module.rpartition(".")[2] not in shared:
                taken = {alias.name for alias in node.names}
                assert taken <= bases, f"{path.name} imports {sorted(taken - bases)} from {node.module}"


@pytest.mark.parametrize(
    ("importer", "line", "expected"),
    [
        ("fedsparse.pattern.x", "from fedsparse import nn", "nn is not below pattern"),
        ("fedsparse.pattern.x", "from fedsparse.nn.layer import SparseLayer", "nn is not below pattern"),
        ("fedsparse.pattern.x", "from ..backends import choose", "backends is not below pattern"),
        ("fedsparse.pattern.x", "from . import pattern", None),
        ("fedsparse.pattern.x", "def f():\n    import fedsparse.ops", "ops is not below pattern"),
        ("fedsparse.pattern.x", "from fedsparse import sparsify", "fedsparse is not below pattern"),
        ("fedsparse.pattern.x", "from fedsparse import _native", None),
        ("fedsparse.nn.x", "from fedsparse import _native", "only ['backends'"),
        ("fedsparse.backends.x", "from fedsparse import _C", "_C is not below backends"),
        ("fedsparse.wire.x", "from fedsparse import pruning", "pruning is not below wire"),
        ("fedsparse.models.x", "from fedsparse.pattern import Pattern", "models may import ['errors'] only"),
        ("fedsparse.methods.x", "from fedsparse.federated import loop", "methods may import"),
        ("fedsparse.methods.x", "from fedsparse import backends", "methods may import"),
        ("fedsparse.methods.x", "from fedsparse.ops import product", "methods may import"),
        ("fedsparse.methods.x", "from fedsparse.wire import encode", "only ['fedsparse.wire.payload'] of it"),
        ("fedsparse.methods.x", "from fedsparse.wire.payload import Section", None),
        ("fedsparse.federated.x", "from fedsparse.methods import fedtiny", "only ['fedsparse.methods.base'"),
        ("fedsparse.kernels.x", "from fedsparse.errors import ShapeError", "kernels may import nothing of ours"),
        ("fedsparse.experiment.x", "import rich.table", "only ['cli'] may"),
        ("fedsparse.experiment.x", "import typer", "only ['cli'] may"),
        ("fedsparse.cli.x", "import typer, rich", None),
    ],
)
def test_the_check_notices(importer, line, expected):
    reasons = [reason_against(importer, imported) for imported in imports(importer, line)]
    given = [reason for reason in reasons if reason]
    assert given == [] if expected is None else given and given[0].startswith(expected)
