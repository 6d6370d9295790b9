"""SGLang's functions that we hook into, patch or rely on are those we know, in every tested version, and patched source
has a seam for every hook."""

from __future__ import annotations

import ast
import json
import textwrap
from pathlib import Path
from typing import Any

import contract
import pytest
from released import source

from hetero_sglang.patching import series
from hetero_sglang.sglang.version import TESTED

REMEDY = "see whether our hooks still fit, then run `python tests/adapter/contract.py`"
every_version = pytest.mark.parametrize("version", TESTED)


@every_version
def test_nothing_that_we_depend_on_has_moved(version: str) -> None:
    known = json.loads(contract.file(version).read_text())
    assert contract.moved(known, contract.contract(version)) == [], REMEDY


@every_version
def test_a_change_of_any_pinned_function_is_told_by_its_name(version: str, tmp_path: Path) -> None:
    """Each alone in a file, without and with one line more."""
    for number, target in enumerate(json.loads(contract.file(version).read_text())):
        text, node = contract.find(target, source(version))
        alone = textwrap.dedent(contract.code(text, node))
        found = []
        for name, added in (("before", ""), ("after", "moved = True")):
            body = ast.parse(alone).body[0].body
            module = f"{name}_{number}"
            (tmp_path / f"{module}.py").write_text(f"{alone}\n{' ' * body[-1].col_offset}{added}\n")
            found.append({target: contract.terms(f"{module}.{node.name}", tmp_path)})
        assert contract.moved(found[0], found[0]) == []
        assert [each.split(":")[0] for each in contract.moved(*found)] == [target]


@every_version
def test_a_function_that_is_gone_is_named(version: str) -> None:
    with pytest.raises(LookupError, match=r"Scheduler\.no_such_method is gone"):
        contract.terms("sglang.srt.managers.scheduler.Scheduler.no_such_method", source(version))


def test_what_moved_is_named_with_how() -> None:
    known = {"a": {"signature": "(x)", "sha256": "1"}, "b": {"signature": "(y)", "sha256": "2"}}
    now = {"a": {"signature": "(x, z)", "sha256": "3"}, "b": {"signature": "(y)", "sha256": "4"}}
    assert contract.moved(known, known) == []
    assert contract.moved(known, now) == [
        "a: its signature was (x) and is (x, z).",
        "b: its source has changed.",
    ]
    assert len(contract.moved({}, known)) == len(contract.moved(known, {})) == 2


@every_version
def test_patched_source_has_a_seam_for_every_hook_and_no_other(version: str) -> None:
    found = set()
    for path, content in series.patched(source(version), version).items():
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for node in ast.parse(content.decode()).body:
            if isinstance(node, ast.ClassDef):
                found |= {f"{module}.{node.name}.{each.name}" for each in node.body if is_seam(each)}
            elif is_seam(node):
                found.add(f"{module}.{node.name if isinstance(node, ast.FunctionDef) else named(node.targets[0])}")
    assert found == contract.hooked(version)


def is_seam(node: Any) -> bool:
    """A function that is decorated, or a name that is bound anew."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        return named(node.value.func) in ("seam", "arguments")
    return isinstance(node, ast.FunctionDef) and any(named(each) == "seam" for each in node.decorator_list)


def named(node: Any) -> str | None:
    return getattr(node, "id", None)
