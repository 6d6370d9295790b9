"""Whether a server that nobody asks has everything back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.soak.door import Door

_SETTLES = 60.0  # seconds, on a busy machine


async def settle(door: Door, ours: bool = True) -> list[str]:
    """Wait until nothing runs, look, flush, and look again: what is lost, a sentence each.

    `ours`: the server has statistics; else the flush is all that can be seen."""
    found: list[str] = []
    if ours:
        stats = await _idle(door)
        found += before_flush(stats)
    deadline = time.monotonic() + _SETTLES
    while True:
        status, text = await door.post("/flush_cache")
        if status == 200 or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    if status != 200:
        return [*found, f"the server refuses to flush its cache although nobody asks it anything: {text.strip()}"]
    return found + (after_flush(await _idle(door)) if ours else [])


async def _idle(door: Door) -> dict[str, Any]:
    """The statistics once the integrity check has seen the server idle, or the latest."""
    deadline = time.monotonic() + _SETTLES
    while True:
        stats = await door.stats()
        if (stats["integrity_current"] and not stats["rankings_under_way"]) or time.monotonic() > deadline:
            return stats
        await asyncio.sleep(0.05)


def before_flush(stats: dict[str, Any]) -> list[str]:
    """Of a server that has answered everybody: what is not as it should be."""
    found = []
    if not stats["integrity_current"]:
        found.append("the server never became idle, so that nobody could check its pools")
    if stats["integrity"] != "ok":
        found.append(f"the integrity check says: {stats['integrity']}")
    if stats["live_requests"]:
        found.append(f"{stats['live_requests']} requests still hold hot pages although all have ended")
    if (lost := stats["hot_pages"] - stats["hot_pages_free"]) != 0:
        found.append(f"{lost} of {stats['hot_pages']} hot pages are neither free nor cached")
    cached, used = stats["token_slots_cached"], stats["token_slots"] - stats["token_slots_free"]
    if used != cached:
        found.append(f"{used} token slots are not free, but {cached} are cached")
    return found


def after_flush(stats: dict[str, Any]) -> list[str]:
    """The same once its cache is flushed, when nothing may be left."""
    found = before_flush(stats)
    for name, what in (
        ("hot_pages_cached", "hot pages still count as cached"),
        ("parked_requests", "working sets are still parked"),
        ("token_slots_cached", "token slots are still cached"),
        ("token_slots_written", "token slots still count as holding a token"),
    ):
        if stats[name]:
            found.append(f"after a flush {stats[name]} {what}")
    return found
