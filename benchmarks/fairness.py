"""Whether everybody moves on where demand is several times the memory: small chats beside a client of long documents.

A request's wait is told in other requests' ends between its sending and its own: unlike seconds, that says who was let
in before whom, on a machine of any speed. With C clients of one request each at a time and a queue that is served in
order, about C others are ahead of a request, and while it runs those beside it end once or twice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import results
from benchmarks.launch import Server
from benchmarks.run import named
from benchmarks.soak.door import Door

VOCABULARY = 10, 2900  # ids of prompts
STOPS = list(range(0, 2900, 2))  # an answer ends at the first of these: after two tokens, on the mean


@dataclass(frozen=True)
class Pressure:
    """The load; lengths in tokens. A request reserves more than its short answer takes, so that memory is what is short
    and not time. `rounds`: requests of a chat; the long client asks until all chats are over."""

    chats: int = 50
    rounds: int = 8
    chat_tokens: int = 60
    chat_reserve: int = 380
    long_tokens: int = 2100
    long_reserve: int = 4096  # SGLang reserves no more
    seed: int = 0
    patience: float = 300.0  # seconds for an answer

    def demand(self) -> int:
        """Tokens that all clients at once want room for."""
        return self.chats * (self.chat_tokens + self.chat_reserve) + self.long_tokens + self.long_reserve


@dataclass(frozen=True)
class Done:
    """One request that was answered: how many others ended meanwhile, and seconds."""

    long: bool
    passed: int
    seconds: float


async def press(url: str, load: Pressure) -> list[Done]:
    """Everybody at once; in the order of their ends. RuntimeError for a request that was not answered."""
    done: list[Done] = []
    left = load.chats

    async def ask(door: Door, ids: list[int], long: bool) -> list[int]:
        reserve = load.long_reserve if long else load.chat_reserve
        sampling = {"temperature": 0, "max_new_tokens": reserve, "stop_token_ids": STOPS}
        before, began = len(done), time.monotonic()
        async with asyncio.timeout(load.patience):
            reply = await door.ask({"input_ids": ids, "sampling_params": sampling, "stream": False})
        if wrong := reply.error or reply.lacks(1, None):
            raise RuntimeError(f"a request of {len(ids)} tokens was not answered: {wrong}")
        done.append(Done(long, len(done) - before, time.monotonic() - began))
        return reply.parts[0].ids

    async def chat(door: Door, number: int) -> None:
        nonlocal left
        rng = random.Random(f"{load.seed} {number}")
        ids = rng.choices(range(*VOCABULARY), k=load.chat_tokens)
        for _ in range(load.rounds):
            ids += await ask(door, ids, long=False)
        left -= 1

    async def reads(door: Door) -> None:
        rng = random.Random(f"{load.seed} long")
        while left:
            await ask(door, rng.choices(range(*VOCABULARY), k=load.long_tokens), long=True)

    async with Door(url) as door:
        await asyncio.gather(reads(door), *(chat(door, number) for number in range(load.chats)))
    return done


def summary(done: list[Done]) -> dict[str, Any]:
    """Of chats and of the long client: requests, others that ended meanwhile, seconds."""
    told: dict[str, Any] = {}
    for name, of in (("chats", [d for d in done if not d.long]), ("long", [d for d in done if d.long])):
        passed, seconds = sorted(d.passed for d in of), sorted(d.seconds for d in of)
        middle = len(of) // 2
        told[name] = {
            "requests": len(of),
            "passed_p50": passed[middle],
            "passed_most": passed[-1],
            "seconds_p50": round(seconds[middle], 2),
            "seconds_most": round(seconds[-1], 2),
        }
    return told


def main() -> None:
    """The same load on plain SGLang and on heterocache, with as many token slots each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    add, usual = parser.add_argument, Pressure()
    add("--policies", nargs="+", default=["full", "heterocache"])
    add("--chats", type=int, default=usual.chats)
    add("--rounds", type=int, default=usual.rounds)
    add("--chat-tokens", type=int, default=usual.chat_tokens)
    add("--chat-reserve", type=int, default=usual.chat_reserve)
    add("--long-tokens", type=int, default=usual.long_tokens)
    add("--slots", type=int, default=7200, help="token slots of every server (7200)")
    add("--hetero-flags", nargs="*", default=["hetero_keep_ratio=0.75", "hetero_dense_below=8192"])
    add("--name", default="fairness", help="of the JSON in results/")
    given = parser.parse_args()
    load = Pressure(given.chats, given.rounds, given.chat_tokens, given.chat_reserve, given.long_tokens)
    rows = []
    for policy in given.policies:
        ours: dict[str, Any] = {} if policy == "full" else dict(named(given.hetero_flags))
        with Server(kv_policy=policy, max_total_tokens=given.slots, page_size=16, **ours) as server:
            begun = time.monotonic()
            told = summary(asyncio.run(press(server.url, load)))
            row = {"policy": policy, "demand": load.demand(), "slots": given.slots, **told}
            row["seconds"] = round(time.monotonic() - begun, 1)
            row["waiting_for_hot_pages"] = None if policy == "full" else server.stats()["waiting_for_hot_pages"]
        rows.append(row)
        print(row, flush=True)
    print("saved", results.save(given.name, {"load": vars(load), "rows": rows}))


if __name__ == "__main__":
    main()
