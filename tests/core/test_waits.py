"""Requests that are put off are counted by what they lacked, and those that lacked hot pages by how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from queue_world import acting, sglang_world  # noqa: F401  (a fixture)
from sglang.srt.managers.schedule_policy import AddReqResult
from test_queue_moves import lone, send

from hetero_sglang.sglang import admit

pytestmark = pytest.mark.usefixtures("sglang_world")


def test_a_request_that_waited_for_hot_pages_says_how_long_once() -> None:
    world = lone(keep=0.3)
    counters = world.state.counters
    sent = [send(world, rid, 112, 370) for rid in range(30)]
    world.step()
    assert counters.waiting_for_hot_pages > 0 and counters.hot_page_wait.count == 0
    late = [req for req in sent if "hetero_waits_since" in vars(req)]
    assert len(late) == 1, "who stands behind it in the queue waits for it"
    heard: list[float] = []
    counters.hot_page_wait.listen = heard.append
    for _ in range(20_000):
        if not world.live:
            break
        world.step()
    assert all(req.done for req in sent) and not any("hetero_waits_since" in vars(req) for req in sent)
    assert counters.hot_page_wait.count == len(heard) > 0
    assert counters.hot_page_wait.seconds == pytest.approx(sum(heard)) and min(heard) >= 0


@pytest.mark.parametrize(
    ("answer", "admitted", "counted"),
    [
        (AddReqResult.NO_TOKEN, False, "waiting_for_token_slots"),
        (AddReqResult.OTHER, False, "waiting_for_prefill"),
        (AddReqResult.NO_TOKEN, True, None),  # it came in, and nobody else fits
        (AddReqResult.CONTINUE, True, None),
    ],
)
def test_whom_sglang_lets_wait_is_counted_apart(answer: AddReqResult, admitted: bool, counted: str | None) -> None:
    world, adder = lone(), SimpleNamespace(can_run_list=[])
    req = send(world, 0, 20, 8)

    def add(adder: Any, req: Any) -> AddReqResult:
        adder.can_run_list += [req] * admitted
        return answer

    with acting(world):
        assert admit.admit(add, adder, req) is answer
    names = ("waiting_for_hot_pages", "waiting_for_token_slots", "waiting_for_prefill")
    told = world.state.counters.as_dict()
    assert {name: told[name] for name in names} == {name: int(name == counted) for name in names}
