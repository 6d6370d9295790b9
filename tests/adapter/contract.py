"""What of SGLang we hook into, patch or rely on, as it was when that was written: signatures and hashes of the source.

After a look at what has moved, `python tests/adapter/contract.py` writes it anew, for all tested versions."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from unittest import mock

from hetero_sglang.cpu.platform import ENGINE_VARIABLE
from hetero_sglang.patching import series
from hetero_sglang.sglang.interface import Targets
from hetero_sglang.sglang.version import TESTED, folder

sys.path.append(str(Path(__file__).parents[1]))  # as pytest has it
from released import source  # noqa: E402

MEMORY, MANAGERS, EXECUTOR = "sglang.srt.mem_cache", "sglang.srt.managers", "sglang.srt.model_executor"
# What we override or call where SGLang hides it, in every version; those of one version are in its folder.
OTHERS = (
    *(f"{MEMORY}.memory_pool.MHATokenToKVPool.{name}" for name in ("__init__", "_create_buffers", "get_kv_size_bytes")),
    f"{MEMORY}.memory_pool.unwrap_write_loc",
    *(f"{MEMORY}.allocator.base.BaseTokenToKVPoolAllocator.free_group_{name}" for name in ("begin", "end")),
    f"{MEMORY}.allocator.paged.PagedTokenToKVPoolAllocator.free",
    f"{MEMORY}.allocator.paged.PagedTokenToKVPoolAllocator.free_segment",
    f"{MEMORY}.kv_cache_dtype.configure_kv_cache_dtype",
    f"{MEMORY}.radix_cache.RadixKey.__init__",
    "sglang.srt.model_loader.weight_utils.get_quant_config",
    f"{EXECUTOR}.pool_configurator.DefaultPoolConfigurator.__init__",
    f"{EXECUTOR}.pool_configurator.DefaultPoolConfigurator.calculate_pool_sizes",
    f"{EXECUTOR}.pool_configurator.DefaultPoolConfigurator.calculate_pool_sizes_from_max_tokens",
    *(
        f"sglang.srt.layers.attention.base_attn_backend.AttentionBackend.{name}"
        for name in (
            "init_forward_metadata", "init_forward_metadata_out_graph", "init_forward_metadata_in_graph",
            "init_cuda_graph_state", "get_cuda_graph_seq_len_fill_value", "forward", "forward_extend",
            "forward_decode", "support_triton",
        )
    ),
    "sglang.srt.configs.model_config.ModelConfig.__init__",
    "sglang.srt.layers.radix_attention.RadixAttention.__init__",
    f"{MANAGERS}.scheduler.Scheduler._add_request_to_queue",
    f"{MANAGERS}.scheduler.Scheduler.is_fully_idle",
    f"{MANAGERS}.schedule_batch.Req.init_next_round_input",
    f"{MANAGERS}.schedule_batch.FINISH_ABORT",
    f"{MANAGERS}.tokenizer_manager.TokenizerManager.generate_request",
    f"{MANAGERS}.tokenizer_manager.TokenizerManager._create_tokenized_object",
    *(f"{MANAGERS}.io_struct.{name}" for name in ("AbortReq", "SetInternalStateReq", "SetInternalStateReqOutput")),
    f"{MANAGERS}.io_struct.TokenizedGenerateReqInput",
    "sglang.srt.sampling.sampling_params.SamplingParams",
    "sglang.srt.platforms._resolve_platform",
    "sglang.srt.plugins.load_plugins",
    "sglang.srt.plugins.hook_registry.HookRegistry._apply_target",
    "sglang.srt.plugins.hook_registry._wrap_fn",
    *(f"sglang.srt.server_args.ServerArgs.{name}" for name in ("add_cli_args", "from_cli_args")),
)  # fmt: skip
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Contract = dict[str, dict[str, str]]


def file(version: str) -> Path:
    """Where a version's contract is written down."""
    return Path(__file__).parent / f"contract-{version}.json"


def targets(version: str) -> Targets:
    """A version's own targets, also of one that is not installed."""
    found: Targets = import_module(f"{folder(version)}.targets")
    return found


def hooked(version: str) -> set[str]:
    """The targets in the table of hooks, those of a machine without a GPU too."""
    from hetero_sglang.sglang import early_exit
    from hetero_sglang.sglang.hooks import process_seams, scheduler_seams

    own = targets(version)
    with mock.patch.dict(os.environ, {ENGINE_VARIABLE: "1"}):
        every = process_seams(own) + scheduler_seams() + early_exit.seams(True, own)
    return {target for target, _, _ in every}


def patched(version: str) -> set[str]:
    """The functions that patches change."""
    found, root = set(), source(version)
    for path, content in series.patched(root, version).items():
        if (root / path).exists():
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            before = dict(functions((root / path).read_text(), module))
            after = dict(functions(content.decode(), module))
            found |= {name for name in before if before[name] != after[name]}
    return found


def functions(text: str, module: str) -> Iterator[tuple[str, str]]:
    """Functions of a module and methods of its classes, by target, with their source."""
    for node in ast.parse(text).body:
        for each in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                owner = f"{module}.{node.name}" if isinstance(node, ast.ClassDef) else module
                yield f"{owner}.{each.name}", code(text, each)


def contract(version: str) -> Contract:
    """Of every function we depend on, by target. Raises LookupError naming those that are not there."""
    found, gone = {}, []
    for target in sorted(hooked(version) | patched(version) | set(OTHERS) | set(targets(version).RELIED_ON)):
        try:
            found[target] = terms(target, source(version))
        except LookupError as error:
            gone.append(str(error))
    if gone:
        raise LookupError("\n".join(gone))
    return found


def terms(target: str, root: Path) -> dict[str, str]:
    """A target's signature, and a hash of its source with its decorators; `root` holds the package."""
    text, node = find(target, root)
    digest = hashlib.sha256(code(text, node).encode()).hexdigest()
    return {"signature": signature(node), "sha256": digest}


def find(target: str, root: Path) -> tuple[str, Definition]:
    """The text of the module that defines a target, and its place in it."""
    parts = target.split(".")
    path = next(path for at in range(len(parts), 0, -1) if (path := file_of(parts[:at], root)) is not None)
    names = parts[len(path.relative_to(root).with_suffix("").parts) - (path.name == "__init__.py") :]
    text, node = parsed(path)
    for name in names:
        for each in ast.iter_child_nodes(node):
            if isinstance(each, Definition) and each.name == name:
                node = each
                break
            if isinstance(each, ast.ImportFrom) and name in (alias.name for alias in each.names):
                return find(f"{each.module}.{name}", root)
        else:
            raise LookupError(f"{target} is gone: {path.name} has no {name}.")
    assert isinstance(node, Definition)
    return text, node


@cache
def parsed(path: Path) -> tuple[str, ast.AST]:
    text = path.read_text()
    return text, ast.parse(text)


def file_of(parts: list[str], root: Path) -> Path | None:
    place = root.joinpath(*parts)
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def signature(node: Definition) -> str:
    """As written; of a class its bases and how many fields it declares."""
    if isinstance(node, ast.ClassDef):
        fields = sum(isinstance(each, ast.AnnAssign) for each in node.body)
        return f"({', '.join(map(ast.unparse, node.bases))}), {fields} fields"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def code(text: str, node: Definition) -> str:
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
    for each in TESTED:
        file(each).write_text(json.dumps(contract(each), indent=1) + "\n")
