"""What a server holds while it is asked, looked at every few seconds; plain SGLang says less."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from hetero_sglang.errors import HeteroError

_EVERY = 2.0
_LEVELS = (
    "token_slots", "token_slots_free", "token_slots_cached", "hot_pages", "hot_pages_free", "hot_pages_cached",
    "live_requests", "hot_bytes", "resident_bytes", "index_bytes", "host_bytes",
)  # fmt: skip


async def first_word(session: aiohttp.ClientSession, url: str, backend: str) -> str:
    """The server's model. Raises HeteroError for one that is not up, or does not answer as this backend does."""
    path = "/get_model_info" if backend == "sglang" else "/v1/models"
    try:
        async with session.get(url + path, timeout=aiohttp.ClientTimeout(total=10)) as response:
            told = await response.json(content_type=None)
            return told["model_path"] if backend == "sglang" else told["data"][0]["id"]
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise HeteroError(f"No server answers at {url} ({error!r}): start one, or pass its --base-url.") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise HeteroError(
            f"What answers at {url}{path} is no server of --backend {backend}: pass another --base-url or --backend."
        ) from error


async def watch(session: aiohttp.ClientSession, url: str, samples: list[dict[str, Any]]) -> None:
    """Until it is cancelled."""
    begun = time.perf_counter()
    while True:
        try:
            async with session.get(url + "/hetero/stats") as response:
                if response.status != 200:
                    return
                ranks = await response.json()
                first = ranks[0]
                samples.append(
                    {"seconds": round(time.perf_counter() - begun, 1), **{n: first[n] for n in _LEVELS if n in first}}
                )
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError):
            pass  # the answers themselves say what is wrong with a server
        await asyncio.sleep(_EVERY)
