"""Holding a script's conversations with a server."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.recall import SPARE_TOKENS, Reply, Score

from .client import Client
from .script import Script, Step
from .trace import Trace, ask_traced


@dataclass(frozen=True)
class Exchange:
    """One step, what the server said and how much of it is right."""

    step: Step
    reply: Reply
    score: Score
    trace: Trace | None = None


def hold(client: Client, script: Script) -> list[Exchange]:
    """Hold all conversations; exchanges in the script's order. Raises HeteroError as `Client` does."""
    alone = 1 if script.together else len(script.conversations)
    held = [_converse(client, steps, script.stop) for steps in script.conversations[:alone]]
    rest = script.conversations[alone:]
    if rest:
        with ThreadPoolExecutor(len(rest)) as pool:
            held += pool.map(lambda steps: _converse(client, steps, script.stop), rest)
    return [exchange for exchanges in held for exchange in exchanges]


def _converse(client: Client, steps: Sequence[Step], stop: int) -> list[Exchange]:
    ids: list[int] = []
    exchanges: list[Exchange] = []
    for step in steps:
        ids += [*step.context, *step.question]
        room = step.answer_tokens + SPARE_TOKENS
        reply, trace = ask_traced(client, ids, room) if step.traced else (client.ask(ids, room), None)
        exchanges.append(Exchange(step, reply, step.grade(reply.text), trace))
        ids += reply.ids
        if ids[-1] != stop:  # the server cut it off, or never wrote it
            ids.append(stop)
    return exchanges
