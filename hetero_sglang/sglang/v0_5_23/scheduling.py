"""managers/scheduler.py and managers/schedule_policy.py; ranks are published before a process is configured."""

from typing import Any

REQUEUES = True


def rank(*args: Any, **kwargs: Any) -> int:
    from sglang.srt.runtime_context import get_parallel

    return int(get_parallel().tp_rank)


def preempt(adder: Any, req: Any, scheduler: Any) -> bool:
    return bool(adder.preempt_to_schedule(req))
