"""A status page without a model behind it: our routes on a real HTTP server, and a made-up scheduler."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.launch import free_port
from hetero_sglang.sglang import present
from hetero_sglang.sglang.page.routes import add_page

TIER = {"used": 100, "total": 1000, "nbytes": 4_000_000, "token_bytes": 4000}
PROFILE = {
    "policy": "heterocache", "source": "folder/made-up.json", "model": "none", "kv_heads": 2, "layers": 2,
    "letters": {"P": "pivot", "s": "satellite", "a": "anchor", "V": "volatile"},
    "matrix": ["Ps", "aV"], "index": None, "shares": [[1.0, 0.25], [0.25, 1.0]],
}  # fmt: skip


class Scheduler:
    """Stands in for SGLang's tokenizer manager: counts how often it is asked. `replicas`: data-parallel ones.

    By its clock a second passes from question to question, however long the machine takes: rates are exact."""

    def __init__(self, replicas: int = 1) -> None:
        self.asked, self.replicas = 0, replicas
        self.gracefully_exit = False

    async def get_internal_state(self) -> list[dict[str, Any]]:
        self.asked += 1
        return [self._state(number) for number in range(self.replicas)]

    def _state(self, number: int) -> dict[str, Any]:
        stats = {
            "decoded_tokens": 40 * self.asked, "prefilled_tokens": 0, "fetched_rows": 3 * self.asked,
            "integrity": "ok", "integrity_age_s": 1.0, "profile_warning": None, "keep_ratio": 0.5, "floor": 0.4375,
            "dense_below": 512, "token_slots": 1000, "token_slots_free": 900, "token_slots_cached": 50,
        }  # fmt: skip
        request = {
            "number": 7 + number, "tokens": 100 + self.asked, "prompt": 60, "kept_rows": 50, "all_rows": 200,
            "exact": False, "resumed": True, "appended_tokens": 5, "refills": 1, "fetched_rows": 1234, "late_rows": 0,
        }  # fmt: skip
        now = {
            "policy": "heterocache, by pivots", "clock": float(self.asked), "running": 1, "waiting": number,
            "running_requests": [request], "head_shares": [[1.0, 0.5], [0.2, 1.0]],
            "head_fetches": [[0.0, 12.5], [3.0, 0.0]],
            "tiers": {name: TIER for name in ("resident", "hot", "host")} | {"index": dict.fromkeys(TIER, 0)},
            "hot_page_states": {"used": 5, "free": 4, "parked": 1, "prefix": 0},
        }  # fmt: skip
        return {"hetero": stats, present.KEY: now}


@contextmanager
def serving(scheduler: Scheduler, port: int | None = None) -> Iterator[str]:
    """The address of a server with the page, which ends at once afterwards."""
    app, port = FastAPI(), port or free_port()

    async def profile() -> Any:
        return PROFILE

    app.add_api_route("/hetero/profile", profile)
    add_page(app, scheduler)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()  # who comes before the server is ready waits
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        scheduler.gracefully_exit = True
        server.should_exit = True
        thread.join()
        listener.close()
