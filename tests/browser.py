"""A headless Chromium, where there is one, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
from waiting import PATIENCE_S, wait_for

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip


class Tab:
    """One page; what it writes to its console as an error is in `errors`."""

    def __init__(self, runner: asyncio.Runner, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._runner, self._socket, self._numbers = runner, socket, itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What a JavaScript expression is. RuntimeError where it throws."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{script}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def until(self, script: str) -> Any:
        """The expression's value once it is true. AssertionError with what the page shows when it never is."""

        def value() -> Any:
            with contextlib.suppress(RuntimeError):  # between two pages there is none
                return self.value(script)

        return wait_for(value, lambda: f"{script} is not true: {self.text()[:2000]} {self.errors}", 0.1)

    def text(self) -> str:
        """All that a person can read."""
        return self.value("document.body.innerText")

    def picture(self, path: Path, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._runner.run(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            told = json.loads((await self._socket.receive(timeout=PATIENCE_S)).data)
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            if told.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(told["params"]["exceptionDetails"]))
            if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.errors.append(told["params"]["entry"]["text"])


@contextlib.contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, whose files lie in `folder`."""
    assert PROGRAM
    with (
        subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
        asyncio.Runner() as runner,
    ):
        try:
            session = runner.run(_session())
            address = runner.run(_address(session, folder / "DevToolsActivePort"))
            socket = runner.run(session.ws_connect(address, max_msg_size=1 << 26))
            yield Tab(runner, socket)
            runner.run(session.close())
        finally:
            process.kill()


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _address(session: aiohttp.ClientSession, port: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if port.exists() and len(lines := port.read_text().splitlines()) == 2:
            async with session.get(f"http://127.0.0.1:{lines[0]}/json/list") as reply:
                for page in await reply.json():
                    if page["type"] == "page":
                        return str(page["webSocketDebuggerUrl"])
        await asyncio.sleep(0.05)
    raise TimeoutError("the browser does not start")
