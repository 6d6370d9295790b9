"""Imports go downwards only: a folder's floor says what a line in it may touch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import hetero_sglang

ROOT = Path(hetero_sglang.__file__).parent
MAP = Path(__file__).parents[2] / "CONTRIBUTING.md"


def module_map() -> dict[str, tuple[int, set[str]]]:
    """Of CONTRIBUTING.md: each folder's floor and what it imports from."""
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|.*\| ([\w`, ]*?) ?\|$", MAP.read_text(), re.MULTILINE)
    return {name: (int(floor), set(re.findall(r"`(\w+)`", below))) for floor, name, below in rows}


FLOORS = {name: floor for name, (floor, _) in module_map().items()}


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


def found() -> dict[str, set[str]]:
    """What each folder really imports from."""
    below: dict[str, set[str]] = {}
    for path in modules():
        mine = path.relative_to(ROOT).parts[0].removesuffix(".py")
        below.setdefault(mine, set()).update(imports(path) - {mine})
    return below


def test_the_map_says_what_is_imported() -> None:
    assert {name: below for name, (_, below) in module_map().items()} == found()


def test_there_are_no_circles() -> None:
    below = found()
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert not below, f"these import each other: {below}"
