"""One direction: a package imports only from floors below its own; no two modules import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lvspec_cli

ROOT = Path(lvspec_cli.__file__).parent
# From the ground up. Packages on one floor know nothing of each other.
FLOORS = (
    {"errors", "escape", "host", "system"},
    {"table", "text_file", "workers"},
    {"types"},
    {"pairs"},
    {"request"},
    {"video", "models"},
    {"memory", "speculation", "output"},
    {"events", "demo"},
    {"figures", "checks"},
    {"answers"},
    {"pipeline"},
    {"library", "conversation"},
    {"batch", "lmms_eval"},
    {"bench"},
    {"ui"},
    {"cli"},
)
ABOVE_ALL = {"__init__", "__main__"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package itself goes by its own."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """The package's modules that a file imports: at its top, in functions, and for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for name in node.names:
                submodule = f"{node.module}.{name.name}"
                yield submodule if submodule in MODULES else node.module


def package_of(module: str) -> str:
    """``lvspec_cli.video.scan`` is in ``video``; the package's own module is in ``__init__``."""
    return [*module.split("."), "__init__"][1]


def test_every_package_has_one_floor() -> None:
    floors = [package for floor in FLOORS for package in floor]
    assert len(floors) == len(set(floors))
    assert set(floors) | ABOVE_ALL == set(map(package_of, MODULES))


@pytest.mark.parametrize("package", sorted(package for floor in FLOORS for package in floor))
def test_imports_go_down(package: str) -> None:
    below: set[str] = set()
    for floor in FLOORS:
        if package in floor:
            break
        below |= floor
    allowed = below | {package, "__init__"}  # the version stands in the package's own module
    wrong = [
        f"{module} imports {other}"
        for module, path in sorted(MODULES.items())
        if package_of(module) == package
        for other in imported(path)
        if package_of(other) not in allowed
    ]
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    graph = {module: set(imported(path)) - {module, "lvspec_cli"} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
