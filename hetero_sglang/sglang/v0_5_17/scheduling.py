"""managers/scheduler.py and managers/schedule_policy.py."""

from typing import Any

REQUEUES = False


def rank(gpu_id: int, tp_rank: int, *args: Any, **kwargs: Any) -> int:
    return tp_rank


def preempt(adder: Any, req: Any, scheduler: Any) -> bool:
    return bool(adder.preempt_to_schedule(req, scheduler.server_args))
