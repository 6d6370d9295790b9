"""Imports go downwards only: a folder's floor says what a line in it may touch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hetero_sglang

ROOT = Path(hetero_sglang.__file__).parent
FLOORS = {
    "errors": 0, "config": 0, "profile": 0, "cpu": 0,
    "cache": 1,
    "ops": 2,
    "selection": 3, "transfer": 3,
    "policy": 4,
    "engine": 5,
    "sglang": 6, "calibration": 6, "patching": 7, "cli": 8, "plugin": 8,
}  # fmt: skip


def house(name: str) -> str:
    """The folder or file right below the package that a module lies in."""
    return name.split(".")[1]


def imports(path: Path) -> set[str]:
    """Folders and files of ours that a module imports from, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "hetero_sglang":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hetero_sglang."):
            found.add(house(node.module))
        elif isinstance(node, ast.Import):
            found |= {house(a.name) for a in node.names if a.name.startswith("hetero_sglang.")}
    return found


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_floors_below_alone(path: Path) -> None:
    mine = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for other in imports(path) - {mine}:
        assert FLOORS[other] < FLOORS[mine] or (FLOORS[other] == FLOORS[mine] == 0), f"{mine} imports {other}"


def test_the_lowest_floor_has_no_circles() -> None:
    below = {name: set[str]() for name, floor in FLOORS.items() if floor == 0}
    for path in modules():
        mine = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if mine in below:
            below[mine] |= imports(path) - {mine}
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert not below, f"these import each other: {below}"
