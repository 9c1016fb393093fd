"""The package's rooms lie on floors: what stands on a floor imports only from floors below, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cosutils

PACKAGE = Path(cosutils.__file__).parent
GROUND = {"_check", "_files", "_quiet", "films", "metrics"}
FLOORS = [
    GROUND,
    {"pipelines"},
    {"hooks"},
    {"mini"},
    {"measures"},
    {"report", "serial"},
    {"training", "vbvr"},
    {"scale"},
]
CORE = ("hooks/*.py", "pipelines/schedule.py")  # hooks, schedules and ensembles


def modules(package: Path) -> dict[str, Path]:
    """Dotted name below the package -> file; a package's own file goes by the package's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(package: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere in its text, for type checking and lazily too."""
    known = modules(package)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        here = name.split(".") if name else []
        inside = here if path.name == "__init__.py" else here[:-1]
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = inside[: len(inside) - node.level + 1] + (node.module or "").split(".")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
                base = node.module.split(".")[1:]
            else:
                continue
            source = ".".join(filter(None, base))
            targets = {".".join(filter(None, [source, alias.name])) for alias in node.names}
            found[name] |= {target if target in known else source for target in targets}
        found[name].discard(name)
    return found


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if module.split(".")[0] in rooms)


def upward(found: dict[str, set[str]]) -> list[str]:
    """Arrows that go up, or across to another room of the same floor above the ground."""
    wrong = []
    for name, targets in found.items():
        for target in filter(None, targets) if name else ():
            same = name.split(".")[0] == target.split(".")[0] or {name, target} <= GROUND
            if not same and floor(target) >= floor(name):
                wrong.append(f"{name} -> {target}")
    return wrong


def test_every_room_has_its_floor():
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.name[:2] != "__"}
    assert rooms == set().union(*FLOORS)


def test_no_arrow_goes_upward():
    assert upward(arrows(PACKAGE)) == []


def test_there_is_no_circle():
    found = {name: targets - {""} for name, targets in arrows(PACKAGE).items() if name}  # all know __version__
    assert list(TopologicalSorter(found).static_order())


def test_a_circle_and_an_upward_arrow_would_be_seen(tmp_path):
    package = tmp_path / "cosutils"
    for room in ("hooks", "pipelines"):
        (package / room).mkdir(parents=True)
    (package / "hooks" / "record.py").write_text("from ..pipelines.load import x\n")
    (package / "pipelines" / "load.py").write_text("def f():\n    from ..hooks.record import y\n")
    found = arrows(package)
    assert upward(found) == ["pipelines.load -> hooks.record"]
    with pytest.raises(CycleError):
        list(TopologicalSorter(found).static_order())


def test_the_core_is_thin():
    lines = sum(len(path.read_text().splitlines()) for files in CORE for path in PACKAGE.glob(files))
    assert lines <= 3_000
