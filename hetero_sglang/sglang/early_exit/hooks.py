"""Where early exit is put into SGLang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hetero_sglang.exits.files import load
from hetero_sglang.sglang.early_exit import recording, report, self_draft
from hetero_sglang.sglang.early_exit.passes import EarlyExit, Rules
from hetero_sglang.sglang.interface import Requests, Seam, Slots, Targets
from hetero_sglang.sglang.version import installed

requests: Requests = installed("requests")
slots: Slots = installed("slots")
targets: Targets = installed("targets")

_GRAPHS = "sglang.srt.model_executor.runner.decode_cuda_graph_runner"
_NGRAM = "sglang.srt.speculative.ngram_worker.NGRAMWorker"
_WHOLE = "hetero_whole"  # on a Req: tokens whose rows are there in every layer, and exact; absent: all

_passes: EarlyExit | None = None
_exporter: Any = None


def tell() -> None:
    """Metrics are exported now."""
    if _exporter is not None:
        _exporter.tell()


def stats() -> dict[str, Any] | None:
    """Of this rank; None where early exit is off."""
    return None if _passes is None else report.stats(_passes)


def start(scheduler: Any) -> None:
    """Once the scheduler is built."""
    from hetero_sglang.sglang.exporter import exporter_of

    global _exporter
    if _passes is not None:
        counts = _passes.counts
        recording.record(_passes)
        _exporter = exporter_of(scheduler, report.METRICS, lambda: counts)


def seams(alone: bool, of: Targets = targets) -> list[Seam]:
    """Hooks of a scheduler process with --hetero-early-exit, whatever its policy. `alone`: of plain SGLang's, where no
    hooks of a policy tell what goes on; `of`: a version's own targets."""
    from sglang.srt.plugins.hook_registry import HookType

    if not of.LAYER_BY_LAYER:
        return []
    collector = "sglang.srt.observability.metrics_collector.SchedulerMetricsCollector"
    scheduler = "sglang.srt.managers.scheduler.Scheduler"
    telling: list[Seam] = [
        (f"{scheduler}.__init__", scheduler_built, HookType.AFTER),
        (f"{scheduler}.get_internal_state", internal_state, HookType.AFTER),
        (f"{collector}.log_stats", logged, HookType.AFTER),
    ]
    return [
        *(telling if alone else []),
        (f"{_NGRAM}._prepare_draft_tokens", drafts_made, HookType.AROUND),
        ("sglang.srt.model_executor.model_runner.ModelRunner.load_model", model_loaded, HookType.AFTER),
        ("sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation", batch_runs, HookType.AROUND),
        (f"{_GRAPHS}.DecodeCudaGraphRunner.can_run_graph", in_one_graph, HookType.AROUND),
        ("sglang.srt.mem_cache.common._release_overallocated_kv_indices", behind_freed, HookType.AROUND),
        (of.KEPT, kept, HookType.AROUND),
    ]


def model_loaded(result: None, runner: Any) -> None:
    """AFTER ModelRunner.load_model: branches stand in its forward pass."""
    global _passes
    args = runner.server_args
    exits = load(args.hetero_early_exit).to(runner.device, runner.dtype)
    copied = args.hetero_exit_kv == "copied"
    rules = Rules(args.hetero_exit_agreement, copied, args.hetero_early_exit_max_batch, drafts=args.hetero_self_draft)
    _passes = EarlyExit(runner, exits, rules)
    _passes.install()


def scheduler_built(result: None, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER Scheduler.__init__."""
    start(scheduler)


def internal_state(result: Any, scheduler: Any, recv_req: Any) -> Any:
    """AFTER Scheduler.get_internal_state: as of a policy's server."""
    result.internal_state["hetero"] = {"early_exit": stats()}
    return result


def logged(result: None, collector: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER SchedulerMetricsCollector.log_stats."""
    tell()


def batch_runs(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND TpModelWorker.forward_batch_generation: whose tokens the pass makes."""
    state = _passes
    if state is None or batch is None:
        return original(worker, batch, *args, **kwargs)
    if batch.forward_mode.is_decode():
        state.begin(list(batch.reqs))  # which SGLang changes
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


def drafts_made(original: Callable[..., Any], worker: Any, batch: Any) -> Any:
    """AROUND NGRAMWorker._prepare_draft_tokens: with --hetero-self-draft the first branch makes them."""
    if _passes is None or not _passes.rules.drafts:
        return original(worker, batch)
    return self_draft.prepare(_passes, worker, batch)


def in_one_graph(original: Callable[..., bool], graphs: Any, batch: Any) -> bool:
    """AROUND DecodeCudaGraphRunner.can_run_graph: a pass that may end early is no graph of all layers."""
    return original(graphs, batch) and (_passes is None or not _passes.comes(batch))


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
    if _passes is not None:
        _passes.waiting.forget([req])
    if not hasattr(req, _WHOLE):
        original(req, start_p, end_p, tree_cache)
        return
    page = tree_cache.token_to_kv_pool_allocator.page_size
    start = -(-start_p // page) * page
    if start < end_p:
        slots.free_behind(req, start, end_p, tree_cache)
