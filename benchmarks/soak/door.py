"""The server as its clients reach it: to be answered, or to leave at any byte."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from benchmarks.soak.plan import Fate
from benchmarks.soak.reply import Reply

_SOON = aiohttp.ClientTimeout(total=60)  # for all but answers, whose clients have a patience of their own


class Door:
    """One server. Every request has a connection of its own: a kept one may close as the next request goes out."""

    def __init__(self, url: str) -> None:
        self.url, parts = url, urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))

    async def __aenter__(self) -> Door:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self, body: dict[str, Any]) -> Reply:
        """The whole reply to POST /generate."""
        async with self.session.post(f"{self.url}/generate", json=body) as response:
            data = await response.read()
            return (Reply.streamed if body["stream"] else Reply.whole)(response.status, data)

    async def leave(self, body: dict[str, Any], fate: Fate, point: float, rudely: bool) -> bytes | None:
        """Ask, and hang up when it is time, `rudely` by a reset. None, or all bytes of a reply that ended before."""
        payload = json.dumps(body).encode()
        head = (
            f"POST /generate HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        )
        data = head.encode() + payload
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            if fate is Fate.LEAVES_IN_REQUEST:
                writer.write(data[: int(point * len(data))])
                await writer.drain()
                return None
            writer.write(data)
            await writer.drain()
            if fate is Fate.LEAVES_BEFORE:
                await asyncio.sleep(point)
                return None
            try:
                await reader.readexactly(int(point))
            except asyncio.IncompleteReadError as error:
                return error.partial
            return None
        finally:
            if rudely:
                writer.transport.abort()
            writer.close()

    async def post(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status and text of anything else."""
        async with self.session.post(self.url + path, json=body or {}, timeout=_SOON) as response:
            return response.status, await response.text()

    async def stats(self) -> dict[str, Any]:
        """The first rank's /hetero/stats."""
        async with self.session.get(f"{self.url}/hetero/stats", timeout=_SOON) as response:
            return (await response.json())[0]
