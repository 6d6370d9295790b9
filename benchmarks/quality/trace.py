"""The server's counters while one answer is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.recall import Reply

from .client import Client
from .counters import deltas

EVERY = 8  # tokens between two looks; each costs the scheduler a message between steps
TRACED = ("drift_triggers", "fetched_rows", "late_rows")

Trace = list[dict[str, int | None]]


def ask_traced(client: Client, ids: Sequence[int], max_new_tokens: int) -> tuple[Reply, Trace | None]:
    """The answer, and what TRACED had grown by after each `EVERY` tokens; None without counters."""
    start = client.stats()
    if start is None:
        return client.ask(ids, max_new_tokens), None
    trace: Trace = []
    reply = Reply("", [], {})
    looked = -EVERY
    for reply in client.stream(ids, max_new_tokens):
        tokens = reply.meta["completion_tokens"]
        if tokens - looked >= EVERY:
            trace.append(_point(tokens, start, client.stats()))
            looked = tokens
    trace.append(_point(reply.meta.get("completion_tokens", 0), start, client.stats()))
    return reply, trace


def _point(tokens: int, start: dict[str, Any], now: dict[str, Any] | None) -> dict[str, int | None]:
    grown = deltas(start, now)
    return {"tokens": tokens, **{name: grown[name] for name in TRACED}}
