"""Law: a control message whose handling fails is answered, and the scheduler's loop goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers import io_struct

from hetero_sglang.sglang import guard

ANSWERED = [
    name
    for name in dir(io_struct)
    if name.endswith("ReqInput") and hasattr(io_struct, name.removesuffix("Input") + "Output")
]


@pytest.mark.parametrize("name", ANSWERED)
def test_every_message_that_has_an_answer_gets_one_that_says_it_failed(name: str) -> None:
    answer = guard.failure(type(name, (), {})(), "it broke")
    assert isinstance(answer, getattr(io_struct, name.removesuffix("Input") + "Output"))
    assert getattr(answer, "success", False) is False


def test_a_message_without_an_answer_gets_none() -> None:
    assert guard.failure(SimpleNamespace(), "it broke") is None


def test_a_failing_handler_does_not_end_the_loop() -> None:
    def dispatch(message: Any) -> Any:
        raise ZeroDivisionError("of no use")

    scheduler = SimpleNamespace(_request_dispatcher=dispatch)
    guard.guard_dispatch(None, scheduler)
    message = type("FlushCacheReqInput", (), {})()
    assert scheduler._request_dispatcher(message).success is False
