"""What operators see: statistics, /server_info, the idle integrity check."""

import gc
import logging
import time
from typing import Any

from hetero_sglang.sglang import early_exit, exporter, present, tune
from hetero_sglang.sglang.interface import Slots
from hetero_sglang.sglang.lifecycle import free_slots
from hetero_sglang.sglang.runtime import Check, runtime
from hetero_sglang.sglang.version import installed

logger = logging.getLogger("hetero_sglang")
slots: Slots = installed("slots")

_LONG = 10.0  # seconds that a queue may wait while nothing runs
_QUEUE = "the queue did not move"


def scheduler_built(result: None, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER Scheduler.__init__: SGLang has made its graphs, and appends get theirs; what start-up has made stays,
    collections during steps need not look at it."""
    runtime().scheduler = scheduler
    if (engine := runtime().engine) is not None:
        engine.record()
    exporter.start(scheduler)
    early_exit.start(scheduler)
    gc.collect()
    gc.freeze()


def stats(scheduler: Any) -> dict[str, Any]:
    """Counters and levels, with the latest verdict of the integrity check; nothing here waits for a step."""
    state = runtime()
    return {
        **(state.engine.stats() if state.engine else {}),  # brings the counters up to date
        **state.cache.stats(),
        "integrity": _stuck(scheduler) or state.check.verdict,
        "integrity_age_s": round(time.monotonic() - state.check.at, 3),
        "integrity_current": state.current,
        "profile_warning": state.profile_warning,
        "keep_ratio": state.settings.keep_ratio,
        "floor": state.settings.floor,
        "dense_below": state.settings.rule.dense_below,
        "token_slots": scheduler.max_total_num_tokens,
        "token_slots_free": scheduler.token_to_kv_pool_allocator.available_size(),
        "token_slots_cached": slots.cached(scheduler.tree_cache),
        "token_slots_written": state.check.written,
        **({"early_exit": exits} if (exits := early_exit.stats()) else {}),
    }


def _stuck(scheduler: Any) -> str | None:
    """What is wrong where requests wait and nothing has run for long."""
    since = runtime().waiting_since
    if since is None or scheduler._engine_paused or (waits := time.monotonic() - since) < _LONG:
        return None
    return f"{len(scheduler.waiting_queue)} requests wait although nothing has run for {waits:.0f} s"


def internal_state(result: Any, scheduler: Any, recv_req: Any) -> Any:
    """AFTER Scheduler.get_internal_state: /server_info carries what is ours in its internal states."""
    result.internal_state["hetero"] = stats(scheduler)
    result.internal_state[present.KEY] = present.present(runtime())
    result.internal_state[tune.KEY] = tune.config()
    return result


def idle(scheduler: Any) -> None:
    """BEFORE Scheduler.on_idle, which may sleep: once after every busy spell, nothing may be lost, or it is said."""
    state = runtime()
    assert state.engine is not None  # built with the scheduler
    state.engine.poll()
    exporter.tell_soon()
    if not scheduler.waiting_queue or scheduler._engine_paused or not scheduler.running_batch.is_empty():
        state.waiting_since = None
    elif state.waiting_since is None:
        state.waiting_since = time.monotonic()
    if (trouble := _stuck(scheduler)) and state.check.verdict != _QUEUE:
        state.check, state.current = Check(_QUEUE, time.monotonic(), state.check.written), False
        logger.error("heterocache: %s", trouble)
    if state.current or not scheduler.is_fully_idle():
        return
    verdict = "ok"
    try:
        state.cache.check_integrity(free_slots(scheduler.token_to_kv_pool_allocator))
        state.engine.check_integrity()
    except RuntimeError as error:
        logger.error("heterocache lost track of memory: %s", error)
        verdict = str(error)
    state.check, state.current = Check(verdict, time.monotonic(), int(state.cache.written.sum())), True
    exporter.tell()


def host_released(result: None, scheduler: Any) -> None:
    """AFTER Scheduler.release_host_resources (graceful exit)."""
    state = runtime()
    if state.engine is not None:
        state.engine.close()
    if state.built:
        state.cache.close()
