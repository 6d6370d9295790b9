"""Where early exit is put into SGLang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hetero_sglang.exits.files import load
from hetero_sglang.sglang.early_exit.passes import EarlyExit, Rules
from hetero_sglang.sglang.interface import Requests, Seam, Slots, Targets
from hetero_sglang.sglang.version import installed

requests: Requests = installed("requests")
slots: Slots = installed("slots")
targets: Targets = installed("targets")

_WHOLE = "hetero_whole"  # on a Req: tokens whose rows are there in every layer, and exact; absent: all

_passes: EarlyExit | None = None


def passes() -> EarlyExit | None:
    """This process's, once its model is loaded, where early exit is on."""
    return _passes


def seams() -> list[Seam]:
    """Hooks of a scheduler process with --hetero-early-exit, whatever its policy."""
    from sglang.srt.plugins.hook_registry import HookType

    return [
        ("sglang.srt.model_executor.model_runner.ModelRunner.load_model", model_loaded, HookType.AFTER),
        ("sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation", batch_runs, HookType.AROUND),
        ("sglang.srt.mem_cache.common._release_overallocated_kv_indices", behind_freed, HookType.AROUND),
        (targets.KEPT, kept, HookType.AROUND),
    ]


def model_loaded(result: None, runner: Any) -> None:
    """AFTER ModelRunner.load_model: branches stand in its forward pass."""
    global _passes
    args = runner.server_args
    exits = load(args.hetero_early_exit).to(runner.device, runner.dtype)
    copied = args.hetero_exit_kv == "copied"
    _passes = EarlyExit(runner, exits, Rules(args.hetero_exit_agreement, copied, args.hetero_early_exit_max_batch))
    _passes.install()


def batch_runs(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND TpModelWorker.forward_batch_generation: whose tokens the pass makes."""
    state = _passes
    if state is None or batch is None:
        return original(worker, batch, *args, **kwargs)
    if batch.forward_mode.is_decode():
        state.requests = list(batch.reqs)  # which SGLang changes
    else:
        state.waiting.forget(batch.reqs)
        for req in batch.reqs:
            req.__dict__.pop(_WHOLE, None)
    try:
        return original(worker, batch, *args, **kwargs)
    finally:
        if state.requests is not None:
            lengths = batch.seq_lens_cpu.tolist()
            for req, length in zip(batch.reqs, lengths, strict=True):
                _note(state, req, length)
        state.requests = None


def _note(state: EarlyExit, req: Any, length: int) -> None:
    """After a pass by which the request has `length` tokens."""
    if state.rules.copied:
        if state.left and not hasattr(req, _WHOLE):
            setattr(req, _WHOLE, length - 1)
    elif state.waiting.count:
        setattr(req, _WHOLE, length - state.waiting.count)
    else:
        req.__dict__.pop(_WHOLE, None)


def kept(original: Callable[..., int], req: Any) -> int:
    """AROUND the Req's own: the radix tree keeps tokens whose rows are whole."""
    count = original(req)
    return min(count, getattr(req, _WHOLE, count))


def behind_freed(original: Callable[..., None], req: Any, start_p: int, end_p: int, tree_cache: Any) -> None:
    """AROUND mem_cache.common._release_overallocated_kv_indices, which takes it for a fault that any are: slots behind
    what the tree keeps."""
    if not hasattr(req, _WHOLE):
        original(req, start_p, end_p, tree_cache)
        return
    page = tree_cache.token_to_kv_pool_allocator.page_size
    start = -(-start_p // page) * page
    if start < end_p:
        slots.free_behind(req, start, end_p, tree_cache)
