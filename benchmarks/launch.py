"""Start and stop a real server as a child process; used by benchmarks, the demo and the tests."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECALL = ROOT / "assets" / "recall-8m"
_FLUSH_S = 120.0  # in which a server on a busy machine has wound down its last step

_drawn: set[int] = set()  # ports that this process was given: who got one may listen on it seconds later


def free_port() -> int:
    """A TCP port that nobody has now, and that no outgoing connection is given in the half minute a server starts in.

    No two calls in a process get the same. Raises RuntimeError where a hundred ports tried are all taken.
    """
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    draw = random.SystemRandom()  # a seeded test would draw the port that another one has drawn
    for _ in range(100):
        port = draw.randrange(10_000, max(lowest_given, 11_000))
        if port in _drawn:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            _drawn.add(port)
            return port
    raise RuntimeError("100 ports from 10000 on are all taken: end the servers that hold them")


class Server:
    """`python -m sglang.launch_server` with the given flags; a context manager that leaves no process behind.

    Flags are keyword arguments: `kv_policy="heterocache"` is `--kv-policy heterocache`, True is a bare flag; a list's
    words follow each other.
    """

    def __init__(
        self,
        model: Path | str = RECALL,
        log: Path | str | None = None,
        env: dict[str, str] | None = None,
        **flags: Any,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(log or f"/tmp/hetero-server-{self.port}.log")
        # Tests on a machine without a GPU interpret kernels; a server there has none to run.
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        self.env = {**inherited, **(env or {})}
        self.command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)]
        # An idle scheduler of SGLang's polls; beside others on two cores it had better sleep. SGLang 0.5.17 draws the
        # ranks' port where connections get theirs.
        usual = {"sleep_on_idle": True, "nccl_port": free_port()}
        self.command += ["--port", str(self.port), *flag_list({**usual, **flags})]
        self.process: subprocess.Popen[bytes] | None = None
        self.launched = self.started_in = 0.0

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 300) -> None:
        """Launch and wait until the server answers; RuntimeError with the log's end when it does not."""
        self.launch()
        self.wait(timeout)

    def launch(self) -> None:
        """Start the process and come back at once."""
        self.launched = time.monotonic()
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                self.command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.env,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def wait(self, timeout: float = 300) -> None:
        """Wait until a launched server answers, `timeout` s from its launch; RuntimeError as `start`."""
        while True:
            if not self.alive:
                code = self.process.returncode if self.process else "nothing launched"
                raise RuntimeError(f"the server ended with {code}:\n{self.tail()}")
            try:
                self.get("/health_generate")
                self.started_in = time.monotonic() - self.launched
                return
            except (urllib.error.URLError, OSError):
                if time.monotonic() - self.launched > timeout:  # asked once at least, however long ago that was
                    break
                time.sleep(0.25)
        self.stop()
        raise RuntimeError(f"the server did not answer within {timeout} s:\n{self.tail()}")

    @property
    def alive(self) -> bool:
        """It was launched and has not ended."""
        return self.process is not None and self.process.poll() is None

    def stop(self, at_once: bool = False) -> None:
        """End the server and everything it started; SGLang takes 8 s to wind down unless it is killed at once."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def tail(self, count: int = 4000) -> str:
        """The end of the server's log."""
        return self.log.read_text(errors="replace")[-count:] if self.log.exists() else ""

    def get(self, path: str, timeout: float = 60) -> Any:
        """GET a path; parsed JSON, or text where it is none."""
        with urllib.request.urlopen(self.url + path, timeout=timeout) as reply:
            return _parse(reply.read())

    def post(self, path: str, body: Any = None, timeout: float = 600) -> Any:
        """POST JSON; raises urllib.error.HTTPError on a refusal."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return _parse(reply.read())

    def generate(
        self, input_ids: list[int], max_new_tokens: int = 32, request: dict[str, Any] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        """Greedy generation from token ids, with the reply's `output_ids` and `meta_info`; `request`: more of it."""
        params = {"temperature": 0, "max_new_tokens": max_new_tokens, **sampling}
        return self.post("/generate", {"input_ids": input_ids, "sampling_params": params, **(request or {})})

    def stats(self) -> dict[str, Any]:
        """The first rank's /hetero/stats."""
        return self.get("/hetero/stats")[0]

    def flush(self) -> None:
        """Empty the radix cache; retries while the server winds down its last step."""
        deadline = time.monotonic() + _FLUSH_S
        while True:
            try:
                self.post("/flush_cache")
                return
            except urllib.error.HTTPError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the server refused to flush its cache for {_FLUSH_S:g} s") from error
                time.sleep(0.1)


def flag_list(flags: dict[str, Any]) -> list[str]:
    """Command-line words of keyword flags."""
    words: list[str] = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def _end_with_parent() -> None:
    """In the child: a benchmark that is killed takes its server along (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
