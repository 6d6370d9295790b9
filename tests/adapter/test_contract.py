"""SGLang's functions that we hook into or patch are those we know, and patched source has a seam for every hook."""

from __future__ import annotations

import ast
import json
from typing import Any

import contract
import pytest

from hetero_sglang.patching import series
from hetero_sglang.patching.command import installed

REMEDY = "see whether our hooks still fit, then run `python tests/adapter/contract.py`"


def test_nothing_that_we_depend_on_has_moved() -> None:
    known = json.loads(contract.FILE.read_text())
    assert contract.moved(known, contract.contract()) == [], REMEDY


def test_what_moved_is_named_with_how() -> None:
    known = {"a": {"signature": "(x)", "sha256": "1"}, "b": {"signature": "(y)", "sha256": "2"}}
    now = {"a": {"signature": "(x, z)", "sha256": "3"}, "b": {"signature": "(y)", "sha256": "4"}}
    assert contract.moved(known, known) == []
    assert contract.moved(known, now) == [
        "a: its signature was (x) and is (x, z).",
        "b: its source has changed.",
    ]
    assert len(contract.moved({}, known)) == len(contract.moved(known, {})) == 2


def test_a_function_that_is_gone_is_named() -> None:
    with pytest.raises(LookupError, match=r"Scheduler\.no_such_method is gone"):
        contract.terms("sglang.srt.managers.scheduler.Scheduler.no_such_method")


def test_patched_source_has_a_seam_for_every_hook_and_no_other() -> None:
    found = set()
    for path, content in series.patched(installed()).items():
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for node in ast.parse(content.decode()).body:
            if isinstance(node, ast.ClassDef):
                found |= {f"{module}.{node.name}.{each.name}" for each in node.body if is_seam(each)}
            elif is_seam(node):
                found.add(f"{module}.{node.name if isinstance(node, ast.FunctionDef) else named(node.targets[0])}")
    assert found == contract.hooked()


def is_seam(node: Any) -> bool:
    """A function that is decorated, or a name that is bound anew."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        return named(node.value.func) in ("seam", "arguments")
    return isinstance(node, ast.FunctionDef) and any(named(each) == "seam" for each in node.decorator_list)


def named(node: Any) -> str | None:
    return getattr(node, "id", None)
