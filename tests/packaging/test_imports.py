"""Every package that is imported is declared, and the other way round."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
from lockfile import ROOT, declared
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PACKAGE = "hetero_sglang"


def modules(source: str) -> Iterator[str]:
    """Top-level names of all imports, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def imported() -> dict[str, str]:
    """A file that imports it, by the module's name; the standard library and the package itself left out."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        for name in modules(path.read_text()):
            if name not in sys.stdlib_module_names and name != PACKAGE:
                found[name] = str(path.relative_to(ROOT))
    return found


def required(*groups: str) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for group in groups for text in declared()[group]}


def distributions_of(module: str) -> set[str]:
    return {canonicalize_name(name) for name in packages_distributions().get(module, ())}


def test_imports_inside_functions_and_of_submodules_are_seen() -> None:
    assert list(modules("def f():\n    import a.b\n    from c.d import e\n    from . import g\n")) == ["a", "c"]


@pytest.mark.parametrize("module", imported())
def test_an_imported_package_is_declared(module: str) -> None:
    assert distributions_of(module) & required("run-time", "plot"), f"{imported()[module]} imports {module}"


def test_a_declared_package_is_imported() -> None:
    used = {name for module in imported() for name in distributions_of(module)}
    assert required("run-time", "plot") <= used


def test_make_ruff_and_pyproject_speak_of_the_same_pythons() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    allowed = SpecifierSet(project["project"]["requires-python"])
    least, most = re.findall(r"\((\d+, \d+)\)", (ROOT / "Makefile").read_text())
    versions = [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in allowed]
    assert [least.replace(", ", "."), most.replace(", ", ".")] == [versions[0], versions[-1]]
    assert project["tool"]["ruff"]["target-version"] == "py" + versions[0].replace(".", "")
