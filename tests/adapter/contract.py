"""What of SGLang we hook into or patch, as it was when that was written: signatures and hashes of the source.

After a look at what has moved, `python tests/adapter/contract.py` writes it anew from the installed SGLang."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from hetero_sglang.cpu.platform import ENGINE_VARIABLE
from hetero_sglang.patching import series
from hetero_sglang.patching.command import installed
from hetero_sglang.sglang.version import TESTED

FILE = Path(__file__).parent / f"contract-{TESTED}.json"
# What we override or call where SGLang hides it, beside the functions in the table of hooks and those in patches.
OTHERS = (
    *(f"sglang.srt.server_args.ServerArgs.{name}" for name in ("__post_init__", "add_cli_args", "from_cli_args")),
    "sglang.srt.plugins.load_plugins",
    "sglang.srt.plugins.hook_registry.HookRegistry._apply_target",
    "sglang.srt.plugins.hook_registry._wrap_fn",
)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Contract = dict[str, dict[str, str]]


def hooked() -> set[str]:
    """The targets in the table of hooks, those of a machine without a GPU too."""
    from hetero_sglang.sglang.hooks import process_seams, scheduler_seams

    with mock.patch.dict(os.environ, {ENGINE_VARIABLE: "1"}):
        return {target for target, _, _ in process_seams() + scheduler_seams()}


def patched() -> set[str]:
    """The functions that patches change."""
    found = set()
    for path, content in series.patched(installed()).items():
        if (installed() / path).exists():
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            before = dict(functions((installed() / path).read_text(), module))
            after = dict(functions(content.decode(), module))
            found |= {name for name in before if before[name] != after[name]}
    return found


def functions(text: str, module: str) -> Iterator[tuple[str, str]]:
    """Functions of a module and methods of its classes, by target, with their source."""
    for node in ast.parse(text).body:
        for each in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                owner = f"{module}.{node.name}" if isinstance(node, ast.ClassDef) else module
                yield f"{owner}.{each.name}", source(text, each)


def contract() -> Contract:
    """Of every function we depend on, by target. Raises LookupError for one that is not there."""
    return {target: terms(target) for target in sorted(hooked() | patched() | set(OTHERS))}


def terms(target: str) -> dict[str, str]:
    """A target's signature, and a hash of its source with its decorators."""
    text, node = find(target)
    digest = hashlib.sha256(source(text, node).encode()).hexdigest()
    return {"signature": signature(node), "sha256": digest}


def find(target: str) -> tuple[str, Definition]:
    """The text of the module that defines a target, and its place in it."""
    parts = target.split(".")
    path = next(path for at in range(len(parts), 0, -1) if (path := file_of(parts[:at])) is not None)
    names = parts[len(path.relative_to(installed()).with_suffix("").parts) - (path.name == "__init__.py") :]
    text = path.read_text()
    node: ast.AST = ast.parse(text)
    for name in names:
        for each in ast.iter_child_nodes(node):
            if isinstance(each, Definition) and each.name == name:
                node = each
                break
            if isinstance(each, ast.ImportFrom) and name in (alias.name for alias in each.names):
                return find(f"{each.module}.{name}")
        else:
            raise LookupError(f"{target} is gone: {path.name} has no {name}.")
    assert isinstance(node, Definition)
    return text, node


def file_of(parts: list[str]) -> Path | None:
    place = installed().joinpath(*parts)
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def signature(node: Definition) -> str:
    """As written; of a class its bases and how many fields it declares."""
    if isinstance(node, ast.ClassDef):
        fields = sum(isinstance(each, ast.AnnAssign) for each in node.body)
        return f"({', '.join(map(ast.unparse, node.bases))}), {fields} fields"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def source(text: str, node: Definition) -> str:
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return "\n".join(text.split("\n")[first - 1 : node.end_lineno])


def moved(old: Contract, new: Contract) -> list[str]:
    """What differs between two contracts, a sentence for each target."""
    found = [f"{target} is new here: write the contract anew." for target in new.keys() - old.keys()]
    found += [f"{target} is no longer depended on: write the contract anew." for target in old.keys() - new.keys()]
    for target in old.keys() & new.keys():
        was, now = old[target], new[target]
        if was["signature"] != now["signature"]:
            found.append(f"{target}: its signature was {was['signature']} and is {now['signature']}.")
        elif was != now:
            found.append(f"{target}: its source has changed.")
    return sorted(found)


if __name__ == "__main__":
    FILE.write_text(json.dumps(contract(), indent=1) + "\n")
