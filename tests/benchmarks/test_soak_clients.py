"""A soak's clients against a server that misbehaves: whatever it does to a request is called by its name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from waiting import PATIENCE_S

from benchmarks.launch import RECALL
from benchmarks.recall import Language
from benchmarks.soak.client import Client
from benchmarks.soak.crowd import Crowd, User
from benchmarks.soak.door import Door
from benchmarks.soak.plan import Fate, Plan, Planner
from benchmarks.soak.tally import End, Tally

Answers = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]

ABORTED = web.AppKey("ABORTED", asyncio.Event)  # somebody asked for that

USUAL = Plan("single", [0, 5, 6], (), 3, True, 1, False, Fate.STAYS, 0.0, 0.0)


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    return Crowd(Language.load(RECALL), 4, seed=0)


def answer(text: str = "hm", tokens: int = 3, kind: str = "length", ids: int = 3) -> dict[str, Any]:
    meta = {"finish_reason": {"type": kind}, "completion_tokens": tokens}
    return {"text": text, "output_ids": [7] * ids, "meta_info": meta}


def says(*answers: dict[str, Any], status: int = 200) -> Answers:
    """A whole reply."""

    async def handle(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(answers[0] if len(answers) == 1 else list(answers), status=status)

    return handle


def streams(*lines: str) -> Answers:
    async def handle(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(f"data: {line}\n\n".encode())
        return response

    return handle


async def nothing(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(PATIENCE_S)
    raise AssertionError


def asked(
    crowd: Crowd, handle: Answers, plan: Plan, aborted_all: bool = False, patience: float = PATIENCE_S
) -> tuple[Tally, list[str]]:
    """One request of the first user; the tally, and the paths that the server was asked at."""
    tally, paths = Tally(), []

    async def serve(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        if request.path == "/generate":
            return await handle(request, await request.json())
        if request.path == "/abort_request":
            request.app[ABORTED].set()
        return web.Response()

    async def run() -> None:
        app = web.Application()
        app[ABORTED] = asyncio.Event()
        app.router.add_post("/{path}", serve)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        async with Door(f"http://{host}:{port}") as door:
            client = Client(Planner(crowd.users[0], crowd.language, 0), crowd, door, tally, patience)
            began = tally.begins(plan.kind, plan.fate)
            if aborted_all:
                tally.aborted_all = began + 1
            end, said = await client._ask(plan, began)
            tally.ended(end, began, said)
        await runner.cleanup()

    asyncio.run(run())
    return tally, paths


def end(
    crowd: Crowd, handle: Answers, plan: Plan = USUAL, aborted_all: bool = False, patience: float = PATIENCE_S
) -> End:
    tally, _ = asked(crowd, handle, plan, aborted_all, patience)
    (only,) = tally.ends
    assert tally.sent == tally.done == 1
    return End(only)


def test_an_answer_is_one_only_where_it_is_whole(crowd: Crowd) -> None:
    assert end(crowd, says(answer())) is End.ANSWERED
    assert end(crowd, says(answer(tokens=2))) is End.FAILED, "fewer tokens than asked for"
    assert end(crowd, says(answer(ids=2))) is End.FAILED, "fewer came than told"
    assert end(crowd, says(answer()), replace(USUAL, n=2)) is End.FAILED, "one of two"
    assert end(crowd, says(answer(), answer()), replace(USUAL, n=2)) is End.ANSWERED
    assert end(crowd, says({"text": "?"})) is End.FAILED


def test_a_stream_is_whole_only_with_its_last_word(crowd: Crowd) -> None:
    plan = replace(USUAL, stream=True)
    part, last = json.dumps(answer(tokens=1, ids=1)), json.dumps(answer())
    assert end(crowd, streams(part, last, "[DONE]"), plan) is End.ANSWERED
    assert end(crowd, streams(part, last), plan) is End.FAILED
    assert end(crowd, streams(part, "[DONE]"), plan) is End.FAILED
    assert end(crowd, streams('{"error": {"message": "no"}}', "[DONE]"), plan) is End.FAILED
    two = [json.dumps({**answer(), "index": index}) for index in (1, 0)]
    assert end(crowd, streams(*two, "[DONE]"), replace(plan, n=2)) is End.ANSWERED


def test_no_answer_in_time_is_a_hang(crowd: Crowd) -> None:
    assert end(crowd, nothing, patience=0.5) is End.HUNG
    leaves = replace(USUAL, fate=Fate.LEAVES_IN_ANSWER, point=5.0)
    assert end(crowd, nothing, leaves, patience=0.5) is End.HUNG


def test_an_abort_is_as_it_should_be_only_where_one_was_asked_for(crowd: Crowd) -> None:
    aborted, refused = says(answer(kind="abort", tokens=1, ids=1)), says({"error": "gone"}, status=400)
    for handle in (aborted, refused):
        assert end(crowd, handle) is End.FAILED
        assert end(crowd, handle, aborted_all=True) is End.ABORTED
        assert end(crowd, handle, replace(USUAL, fate=Fate.ABORTS, point=9.0)) is End.ABORTED
    assert end(crowd, says(answer()), replace(USUAL, fate=Fate.ABORTS, point=9.0)) is End.ANSWERED


def test_everybody_who_was_sent_before_all_were_aborted_may_be(crowd: Crowd) -> None:
    tally = Tally()
    before = tally.begins("single", "stays")
    assert tally.aborted_all < before
    with tally.aborting():
        assert tally.aborted_all > tally.begins("single", "stays"), "its answer may come before that of the abort"
    assert before < tally.aborted_all < tally.begins("single", "stays")


def test_who_aborts_says_so(crowd: Crowd) -> None:
    async def once_asked(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await request.app[ABORTED].wait()
        return web.json_response(answer(kind="abort", tokens=1, ids=1))

    tally, paths = asked(crowd, once_asked, replace(USUAL, fate=Fate.ABORTS, point=0.01))
    assert sorted(paths) == ["/abort_request", "/generate"] and tally.ends[End.ABORTED] == 1


@pytest.mark.parametrize(
    "fate, point", [(Fate.LEAVES_IN_REQUEST, 0.4), (Fate.LEAVES_BEFORE, 0.01), (Fate.LEAVES_IN_ANSWER, 20.0)]
)
def test_who_leaves_is_disconnected(crowd: Crowd, fate: Fate, point: float) -> None:
    assert end(crowd, says(answer()), replace(USUAL, fate=fate, point=point)) is End.DISCONNECTED


def test_who_would_read_more_than_comes_is_answered_or_was_refused(crowd: Crowd) -> None:
    reads = replace(USUAL, fate=Fate.LEAVES_IN_ANSWER, point=1e6)
    assert end(crowd, says(answer()), reads) is End.ANSWERED
    assert end(crowd, says(answer(), status=500), reads) is End.FAILED


def test_another_s_entry_in_an_answer_is_seen_and_a_right_one_counted(crowd: Crowd) -> None:
    def plan_of(user: User) -> tuple[Plan, str]:
        names = tuple(list(user.document.entries)[-2:])
        return replace(USUAL, names=names, exact=False), crowd.language.answer(user.document, names)

    plan, right = plan_of(crowd.users[0])
    tally, _ = asked(crowd, says(answer(right)), plan)
    assert (tally.right, tally.asked, tally.foreign) == (2, 2, [])
    _, others = plan_of(crowd.users[1])
    tally, _ = asked(crowd, says(answer(others)), plan)
    assert len(tally.foreign) == 2 and tally.ends[End.ANSWERED] == 1
