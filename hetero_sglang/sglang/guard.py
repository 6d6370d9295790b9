"""The scheduler process's gate: a message whose handling fails is answered, and the process goes on.

The main process has checked requests before (`bodies.py`); others come from processes without this plugin
(--tokenizer-worker-num) or ask for what no check foresaw."""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
import zmq
from sglang.srt.managers import io_struct

from hetero_sglang.sglang.adapters import check_request
from hetero_sglang.sglang.request_check import check, place
from hetero_sglang.sglang.runtime import runtime

logger = logging.getLogger("hetero_sglang")


def handle_generate(original: Callable[..., None], scheduler: Any, request: Any, **more: Any) -> None:
    """AROUND Scheduler.handle_generate_request: what cannot become a request of the queue is aborted with a 400."""
    try:
        check(request, scheduler.model_config)
        check_request(request, scheduler)
        original(scheduler, request, **more)
    except Exception as error:
        runtime().counters.refused_requests += 1
        logger.warning("a request was refused: %s", place(error))
        reason = {"type": "abort", "status_code": HTTPStatus.BAD_REQUEST, "message": f"{error}"}
        aborted = io_struct.AbortReq(rid=request.rid, finished_reason=reason)
        scheduler.ipc_channels.send_to_tokenizer.send_output(aborted, request)


def guard_dispatch(result: None, scheduler: Any) -> None:
    """AFTER Scheduler.init_request_dispatcher: a control message that fails gets the answer that it failed."""
    dispatch = scheduler._request_dispatcher

    def guarded(message: Any) -> Any:
        try:
            return dispatch(message)
        except Exception as error:
            logger.exception("%s failed", type(message).__name__)
            return failure(message, f"{type(error).__name__}: {error}")

    scheduler._request_dispatcher = guarded


def failure(message: Any, words: str) -> Any:
    """The answer to a control message, as SGLang names and shapes it, saying that it failed; None: it has none."""
    answer = getattr(io_struct, f"{type(message).__name__.removesuffix('Input')}Output", None)
    if answer is None:
        return None
    values = {"success": False, "updated": False, "message": words, "error_message": words, "internal_state": {}}
    fields = msgspec.structs.fields(answer)
    kept = {field.name: values[field.name] for field in fields if field.name in values}
    return answer(**{field.name: getattr(message, field.name, None) for field in fields if field.required} | kept)


def receive(original: Callable[..., Any], socket: Any, flags: int = 0) -> Any:
    """AROUND request_receiver.sock_recv: a message that is none of SGLang's is dropped; nobody could answer it."""
    try:
        return original(socket, flags)
    except msgspec.DecodeError:
        logger.exception("a message could not be decoded")
        raise zmq.Again from None  # as if none had come: the rest is received in the next round
