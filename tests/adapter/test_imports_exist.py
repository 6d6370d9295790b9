"""What is imported from SGLang is there, also inside functions that only a GPU's server calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from hetero_sglang.sglang.version import TESTED, folder, installed, release

PACKAGE = Path(__file__).resolve().parents[2] / "hetero_sglang"
OTHERS = {folder(each).rsplit(".", 1)[-1] for each in TESTED if each != release()}
if not installed("targets").LAYER_BY_LAYER:
    OTHERS.add("early_exit")


def imported() -> Iterator[tuple[str, str]]:
    """Modules of SGLang and names in them."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if OTHERS & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
                yield from ((str(node.module), each.name) for each in node.names)


@pytest.mark.parametrize("module, name", sorted(set(imported())))
def test_they_are_there(module: str, name: str) -> None:
    assert hasattr(import_module(module), name) or find_spec(f"{module}.{name}")
