"""One client: asks what its planner says, until there is nothing more to ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import aiohttp

from benchmarks.recall import score
from benchmarks.soak.crowd import Crowd
from benchmarks.soak.door import Door
from benchmarks.soak.plan import Fate, Plan, Planner
from benchmarks.soak.reply import Reply
from benchmarks.soak.tally import End, Tally

LEAVERS = (Fate.LEAVES_IN_REQUEST, Fate.LEAVES_BEFORE, Fate.LEAVES_IN_ANSWER)


class Client:
    """`patience`: seconds for an answer, after which it counts as one that never comes."""

    def __init__(self, planner: Planner, crowd: Crowd, door: Door, tally: Tally, patience: float) -> None:
        self.planner, self.crowd, self.door, self.tally, self.patience = planner, crowd, door, tally, patience
        self.user, self._count = planner.user, 0

    async def run(self, more: Callable[[], bool], gate: asyncio.Event) -> None:
        """Ask while there is `more`, and while the gate is open."""
        while True:
            plan = self.planner.next()
            await asyncio.sleep(plan.think)
            await gate.wait()
            if not more():
                return
            began = self.tally.begins(plan.kind, plan.fate)
            end, said = await self._ask(plan, began)
            self.tally.ended(end, began, f"user {self.user.number}, {plan.kind}, {plan.fate}: {said}")

    async def _ask(self, plan: Plan, began: float) -> tuple[End, str]:
        self._count += 1
        rid = f"u{self.user.number:03d}-{self._count:06d}."  # none is another's beginning: SGLang aborts by that
        try:
            async with asyncio.timeout(self.patience):
                if plan.fate in LEAVERS:
                    return await self._leave(plan, rid, began)
                return await self._stay(plan, rid, began)
        except TimeoutError:
            return End.HUNG, f"{rid} got no answer"
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            return End.FAILED, f"{rid} {error!r}"

    async def _leave(self, plan: Plan, rid: str, began: float) -> tuple[End, str]:
        data = await self.door.leave(plan.body(rid), plan.fate, plan.point, rudely=self._count % 2 == 0)
        if data is None:
            return End.DISCONNECTED, ""
        if data.startswith(b"HTTP/1.1 200"):
            return End.ANSWERED, ""  # there were fewer bytes than it would have read
        return self._excused(plan, began), f"{rid} {data[:200]!r}"

    async def _stay(self, plan: Plan, rid: str, began: float) -> tuple[End, str]:
        aborting = asyncio.create_task(self._abort(rid, plan.point)) if plan.fate is Fate.ABORTS else None
        try:
            reply = await self.door.ask(plan.body(rid))
        finally:
            if aborting:
                aborting.cancel()
                await asyncio.wait((aborting,))
        if reply.error or reply.aborted:
            return self._excused(plan, began), f"{rid} {reply.error or 'an abort'}"
        if lacks := reply.lacks(plan.n, plan.new if plan.exact else None):
            return End.FAILED, f"{rid} {lacks}"
        self._read(plan, reply)
        return End.ANSWERED, ""

    async def _abort(self, rid: str, after: float) -> None:
        await asyncio.sleep(after)
        with contextlib.suppress(aiohttp.ClientError):
            await self.door.post("/abort_request", {"rid": rid})

    def _excused(self, plan: Plan, began: float) -> End:
        """An answer that is none is as it should be where it was asked for."""
        return End.ABORTED if plan.fate is Fate.ABORTS or self.tally.aborted_all >= began else End.FAILED

    def _read(self, plan: Plan, reply: Reply) -> None:
        tally = self.tally
        for part in reply.parts.values():
            tally.tokens += part.tokens
            tally.foreign += self.crowd.foreign(self.user, part.text, bool(plan.names))
            if plan.names and not plan.exact:
                got = score(part.text, self.user.document, plan.names)
                tally.right, tally.asked = tally.right + got.right, tally.asked + got.total
        self.planner.answered(plan, reply.parts[0].ids)
