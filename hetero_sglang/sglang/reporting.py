"""What operators see: /hetero routes, /server_info, the idle integrity check."""

from __future__ import annotations

import logging
from typing import Any

from hetero_sglang.sglang.lifecycle import free_slots
from hetero_sglang.sglang.runtime import runtime

logger = logging.getLogger("hetero_sglang")


def scheduler_built(result: None, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER Scheduler.__init__."""
    state = runtime()
    state.scheduler = scheduler
    if state.when_built is not None:
        with scheduler.forward_stream_ctx:  # where steps run: memory that is cached for it is theirs
            state.when_built()


def stats(scheduler: Any) -> dict[str, Any]:
    """Counters and levels, with the verdict of the integrity check."""
    state = runtime()
    try:
        state.cache.check_integrity(free_slots(scheduler.token_to_kv_pool_allocator))
        integrity = "ok"
    except RuntimeError as error:
        integrity = str(error)
    return {
        **state.cache.stats(),
        "integrity": integrity,
        "keep_ratio": state.settings.keep_ratio,
        "floor": state.settings.floor,
        "dense_below": state.settings.rule.dense_below,
        "token_slots": scheduler.max_total_num_tokens,
        "token_slots_free": scheduler.token_to_kv_pool_allocator.available_size(),
        "token_slots_cached": scheduler.tree_cache.total_size() if hasattr(scheduler.tree_cache, "total_size") else 0,
    }


def internal_state(result: Any, scheduler: Any, recv_req: Any) -> Any:
    """AFTER Scheduler.get_internal_state: /server_info carries `hetero`."""
    result.internal_state["hetero"] = stats(scheduler)
    return result


def idle(result: None, scheduler: Any) -> None:
    """AFTER Scheduler.on_idle: once after every busy spell, nothing may be lost; a loss is said loudly."""
    state = runtime()
    with scheduler.forward_stream_ctx:  # where steps run: what rows are scattered to belongs to them
        state.cache.fetcher.publish()  # answers to requests that have ended meanwhile
    if state.checked_after == state.counters.requests or not scheduler.is_fully_idle():
        return
    state.checked_after = state.counters.requests
    try:
        state.cache.check_integrity(free_slots(scheduler.token_to_kv_pool_allocator))
    except RuntimeError as error:
        logger.error("heterocache lost track of memory: %s", error)


def host_released(result: None, scheduler: Any) -> None:
    """AFTER Scheduler.release_host_resources (graceful exit)."""
    if runtime().cache is not None:
        runtime().cache.close()


def add_routes(server_args: Any, tokenizer_manager: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE http_server._setup_and_run_http_server: GET /hetero/stats on the server's own port."""
    if getattr(server_args, "kv_policy", "full") == "full":
        return
    from sglang.srt.entrypoints.http_server import app

    async def hetero_stats() -> Any:
        states = await tokenizer_manager.get_internal_state()
        return [s.get("hetero") for s in states]

    app.add_api_route("/hetero/stats", hetero_stats, methods=["GET"])
