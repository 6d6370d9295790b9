"""Changes of `Tuning` on every rank between the same two steps.

They travel as SGLang's SetInternalStateReq, which rank 0 hands to all ranks before it is handled
(managers/scheduler_components/request_receiver.py)."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from sglang.srt.managers.io_struct import SetInternalStateReqOutput

from hetero_sglang.config.tuning import NAMES
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.pool import least_of_ranks
from hetero_sglang.sglang.runtime import runtime

logger = logging.getLogger("hetero_sglang")

KEY = "hetero_config"  # in SGLang's internal state
PREFIX = "hetero_"  # of a field's name in a message


def encode(change: Mapping[str, Any]) -> dict[str, int | float]:
    """As the message takes it, which has numbers alone."""
    return {PREFIX + name: int(value) if isinstance(value, bool) else value for name, value in change.items()}


def decode(message: Mapping[str, int | float]) -> dict[str, Any]:
    """What was encoded."""
    change: dict[str, Any] = {name.removeprefix(PREFIX): value for name, value in message.items()}
    if change.get("retrieval") in (0, 1):
        change["retrieval"] = bool(change["retrieval"])
    return change


def config() -> dict[str, Any]:
    """What holds now, and why some of it is fixed."""
    state = runtime()
    assert state.engine is not None  # built with the scheduler
    return {**asdict(state.settings.tuning), "fixed": state.engine.fixed()}


def set_internal_state(original: Callable[..., Any], scheduler: Any, request: Any) -> Any:
    """AROUND Scheduler.set_internal_state: a change of ours is made by all ranks, or by none.

    One that names a field of SGLang's too is SGLang's, which refuses names that it does not know."""
    message = request.server_args
    if not message or not all(name.startswith(PREFIX) for name in message):
        return original(scheduler, request)
    state = runtime()
    assert state.engine is not None
    try:
        wanted = state.settings.tuning.changed(decode(message), state.engine.fixed())
    except Exception as error:  # whatever it is, the other ranks wait for this one's word
        trace = not isinstance(error, HeteroError)
        logger.warning("a change of the configuration was refused: %s", error, exc_info=trace)
        wanted = None
    agreed = bool(least_of_ranks(int(wanted is not None)))
    if agreed and wanted is not None:
        state.settings.tuning.take(wanted)
        logger.info("%s from the next step on", ", ".join(f"{name} is {getattr(wanted, name)}" for name in NAMES))
    return SetInternalStateReqOutput(updated=agreed)
