"""Every seam of SGLang this project touches, in one table; targets of one version alone are in its folder."""

import importlib.util
import pkgutil
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType, _wrap_fn

from hetero_sglang.config import development
from hetero_sglang.cpu import grammar, lora
from hetero_sglang.errors import HeteroError, ending_the_process
from hetero_sglang.sglang import seam
from hetero_sglang.sglang.interface import Scheduling, Targets
from hetero_sglang.sglang.runtime import start_runtime
from hetero_sglang.sglang.version import PATCHED, check_version, installed

targets: Targets = installed("targets")
scheduling: Scheduling = installed("scheduling")


def process_seams(of: Targets = targets) -> list[tuple[str, Callable[..., Any], HookType]]:
    """Hooks of every process, whatever its policy; each looks at that itself. `of`: a version's own targets."""
    from hetero_sglang.sglang import control, port
    from hetero_sglang.sglang.args import HeteroServerArgs
    from hetero_sglang.sglang.bodies import watch
    from hetero_sglang.sglang.page import door

    before, http = HookType.BEFORE, "sglang.srt.entrypoints.http_server"
    return [
        *of.seams(),
        *grammar.seams(),
        *lora.seams(),
        ("sglang.srt.server_args.ServerArgs", HeteroServerArgs, HookType.REPLACE),
        ("sglang.srt.managers.scheduler.configure_scheduler_process", enter_scheduler, before),
        (f"{http}.launch_server", port.launching, before),
        ("sglang.srt.managers.tokenizer_manager.TokenizerManager.__init__", watch, HookType.AFTER),
        (f"{http}._setup_and_run_http_server", control.add_routes, before),
        ("sglang.srt.utils.auth.add_api_key_middleware", door.hang_door, HookType.AFTER),
    ]


def scheduler_seams() -> list[tuple[str, Callable[..., Any], HookType]]:
    """Hooks of a scheduler process that runs a policy; a process of `--kv-policy full` has none of them."""
    from hetero_sglang.sglang import admit, backend, exporter, guard, lifecycle, pool, reporting, tune

    around, after = HookType.AROUND, HookType.AFTER
    memory, managers = "sglang.srt.mem_cache", "sglang.srt.managers"
    runner = "sglang.srt.model_executor"
    backends = f"{runner}.model_runner_components.attention_backend_setup"
    return [
        (f"{runner}.pool_configurator.create_memory_pool_configurator", pool.configurator, around),
        (f"{memory}.kv_cache_configurator.KVCacheConfigurator._build_mha_kv_pool", pool.build_pool, around),
        (f"{backends}._build_full_attention_backend_from_str", backend.build_backend, around),
        (f"{memory}.memory_pool.ReqToTokenPool.alloc", lifecycle.request_slots_given, after),
        (f"{memory}.memory_pool.ReqToTokenPool.free", lifecycle.request_slot_freed, around),
        (f"{memory}.memory_pool.ReqToTokenPool.clear", lifecycle.request_slots_cleared, after),
        (f"{memory}.allocator.token.TokenToKVPoolAllocator.free", lifecycle.slots_freed, around),
        (f"{memory}.allocator.paged.PagedTokenToKVPoolAllocator._release_page_ids", lifecycle.pages_freed, around),
        (f"{managers}.schedule_policy.PrefillAdder.add_one_req", admit.admit, around),
        (f"{managers}.schedule_policy.PrefillAdder.preempt_to_schedule", admit.preempt, around),
        (f"{managers}.scheduler.Scheduler._get_new_batch_prefill_raw", admit.choose_batch, around),
        (f"{managers}.schedule_batch.Req._compute_max_prefix_len", lifecycle.leave_observed_queries, after),
        (f"{managers}.scheduler.Scheduler.handle_generate_request", guard.handle_generate, around),
        (f"{managers}.scheduler.Scheduler.init_request_dispatcher", guard.guard_dispatch, after),
        (f"{managers}.scheduler_components.request_receiver.sock_recv", guard.receive, around),
        (f"{managers}.scheduler.Scheduler.run_batch", lifecycle.batch_runs, around),
        (f"{managers}.scheduler.Scheduler.__init__", reporting.scheduler_built, after),
        (f"{managers}.scheduler.Scheduler.get_internal_state", reporting.internal_state, after),
        (f"{managers}.scheduler.Scheduler.set_internal_state", tune.set_internal_state, around),
        (f"{managers}.scheduler.Scheduler.on_idle", reporting.idle, HookType.BEFORE),
        ("sglang.srt.observability.metrics_collector.SchedulerMetricsCollector.log_stats", exporter.logged, after),
        (f"{managers}.scheduler.Scheduler.release_host_resources", reporting.host_released, after),
    ]


def install(seams: list[tuple[str, Callable[..., Any], HookType]]) -> None:
    """Apply hooks now and refuse to go on when one of ours did not take. Raises HeteroError naming the targets."""
    if importlib.util.find_spec(PATCHED):
        _fill(seams)
        return
    for target, hook, kind in seams:
        if hook not in (h for _, h, _ in HookRegistry._hooks.get(target, ())):
            HookRegistry.register(target, hook, kind)
    HookRegistry.apply_hooks()
    missing = [
        target
        for target, hooks in HookRegistry._hooks.items()
        if target not in HookRegistry._patched and any(_ours(hook) for _, hook, _ in hooks)
    ]
    if missing:
        raise HeteroError(
            f"{len(missing)} hooks into SGLang did not apply ({', '.join(sorted(missing))}): this SGLang is not the "
            f"tested one; install the pinned version."
        )


def _fill(seams: list[tuple[str, Callable[..., Any], HookType]]) -> None:
    """Put hooks into the seams of patched source. Raises HeteroError naming the targets that are none."""
    missing = []
    for target, hook, kind in seams:
        try:
            found = pkgutil.resolve_name(target)  # which imports the seam's module
        except (ImportError, AttributeError):
            found = None
        if target in seam.plain:
            seam.hooked[target] = _wrap_fn(seam.plain[target], hook, kind)
        elif found is not hook:  # a class that stands in its place
            missing.append(target)
    if missing:
        raise HeteroError(
            f"{len(missing)} of SGLang's functions lack their patch ({', '.join(sorted(missing))}): run "
            f"`hetero-sglang patch revert` and `hetero-sglang patch apply`."
        )


def _ours(hook: Callable[..., Any]) -> bool:
    return hook.__module__.split(".")[0] == "hetero_sglang"


def enter_process() -> None:
    """At the first seam that a process of patched source comes to; ends the process with a sentence if it must."""
    with ending_the_process():
        check_version(importlib.import_module(PATCHED).RELEASE)
        development.check()
        install(process_seams())


def enter_scheduler(server_args: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE configure_scheduler_process: the first moment a scheduler process knows its arguments."""
    plain = getattr(server_args, "kv_policy", "full") == "full"
    if getattr(server_args, "hetero_early_exit", None):
        from hetero_sglang.sglang import early_exit

        install(early_exit.seams(alone=plain))
    if plain:
        return
    start_runtime(server_args, scheduling.rank(*args, **kwargs), server_args.tp_size)
    install(scheduler_seams())
