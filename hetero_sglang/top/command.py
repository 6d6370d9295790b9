"""`hetero-sglang top [URL]`: what a server does, once a second."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console, RenderableType
from rich.live import Live

from hetero_sglang.config.parser import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.top.stream import events
from hetero_sglang.top.view import lost, view

URL = "http://127.0.0.1:30000"
_AGAIN = 2.0  # seconds


def run(argv: list[str]) -> int:
    """Shows frames until it is interrupted, or one."""
    parser = Parser("hetero-sglang top", "Show what a server with a KV policy does, once a second.")
    add = parser.add_argument
    add("url", nargs="?", default=URL, help="the server's address (default %(default)s)")
    add("--api-key", metavar="KEY", help="the server's --api-key, where it has one")
    add("--once", action="store_true", help="print one frame and end")
    given = parser.parse_args(argv)
    url = address(given.url)
    if given.once:
        return _once(url, given.api_key)
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        met = False
        try:
            while True:
                try:
                    for event in events(url, given.api_key):
                        live.update(shown(url, event), refresh=True)
                        met = True
                except HeteroError:
                    if not met:  # it never was what we look for
                        raise
                live.update(lost(url), refresh=True)
                time.sleep(_AGAIN)
        except KeyboardInterrupt:
            return 0


def _once(url: str, key: str | None) -> int:
    for number, event in enumerate(events(url, key)):
        if number or event["rates"]["decoded_tokens"] is not None:  # the first may know no rates yet
            Console().print(shown(url, event))
            return 0
    raise HeteroError(f"{url} went away before it had said what it does; try again.")


def shown(url: str, event: dict[str, Any]) -> RenderableType:
    """As `view`. Raises HeteroError where the event has not what it reads."""
    try:
        return view(url, event)
    except (LookupError, TypeError, ValueError) as error:
        raise HeteroError(
            f"{url} says something else than this version reads ({type(error).__name__}: {error}); use the "
            f"`hetero-sglang` that the server was installed with."
        ) from None


def address(given: str) -> str:
    """With a scheme, and without what follows the path. Raises HeteroError where it is no address."""
    url = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        right = False
    if not right:
        raise HeteroError(f"{given!r} is no address of a server; give one like {URL}.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/hetero')}"
