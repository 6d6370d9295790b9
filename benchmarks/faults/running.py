"""Faults that a running server survives: all of them on one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.load import Answer, Load
from benchmarks.faults.tally import Tally
from benchmarks.launch import RECALL, Server
from benchmarks.soak.footprint import SHM, Watch
from benchmarks.soak.verdict import ALLOWED
from hetero_sglang.profile.files import PROFILE_NAME

# Fault of HETERO_FAULT -> whether the worker is replaced, or stays as it gives signs of life.
MISBEHAVIOUR = {
    "worker-dies": True, "worker-stalled": True, "worker-slow": False, "worker-late": False, "worker-lies": True,
}  # fmt: skip
DEEDS = (
    "nothing", "worker-killed", "worker-out-of-memory", "shared-memory-removed", "profile-changes", "clock-jumps",
)  # fmt: skip
RUNNING = (*DEEDS, *MISBEHAVIOUR, "host-bit")
LATE_S = 13.0  # by then a late worker has answered for requests that are gone
CLOCK = Path(__file__).with_name("clock.c")
# What is held is enough for the right tokens, whether or not the worker's rankings come: others are wrong.
FLAGS: dict[str, Any] = {
    "kv_policy": "heterocache", "hetero_index": "none", "hetero_roles": "ratio", "hetero_monitor_interval": 1,
    "hetero_window": 16, "hetero_keep_ratio": 0.7, "max_total_tokens": 20000,
}  # fmt: skip


class Running:
    """A server to which one fault after another is done; a context manager."""

    def __init__(self, load: Load, folder: Path, log: Path | None = None) -> None:
        self.load = load
        self.fault, self.clock, self.profile = folder / "fault", folder / "clock", folder / PROFILE_NAME
        self.fault.write_text("")
        self.clock.write_bytes(bytes(8))
        shutil.copy(RECALL / PROFILE_NAME, self.profile)
        library = folder / "clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, CLOCK, "-ldl"], check=True)
        env = {"HETERO_DEVELOPMENT": "1", "HETERO_CHECKSUMS": "1", "HETERO_FAULT": str(self.fault)}
        env |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self.clock)}
        self.server = Server(env=env, log=log, hetero_profile=self.profile, **FLAGS)
        ways = (lambda: None, self._kill, self._exhaust, self._remove, self._change_profile, self._jump)
        self.deeds: dict[str, Callable[[], None]] = dict(zip(DEEDS, ways, strict=True))

    def __enter__(self) -> Running:
        self.server.start()
        assert self.server.process is not None
        self.watch = Watch(self.server.process.pid)
        self.load.learn(self.server)
        self.served = json.dumps(self.server.get("/hetero/profile"))
        self._settle()
        self.before = self.watch.look()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()

    def do(self, name: str, times: int) -> Tally:
        """One fault, so many times."""
        tally = Tally()
        for number in range(times):
            before = self.server.stats()
            if name in self.deeds:
                answers = self.load.ask(self.server, self.deeds[name])
            else:
                self.fault.write_text(name)
                answers = self.load.ask(self.server)
            begun = time.monotonic()
            if name == "worker-late" and number == times - 1:  # the others' answers come while later ones are asked
                time.sleep(LATE_S)
            broken = self._worker(name, before)
            self.fault.write_text("")
            broken += self._verdict(name, answers)
            broken += self._settle()
            tally.add(answers, self.load.expected, broken, self._leaked(), time.monotonic() - begun)
        return tally

    def _worker(self, name: str, before: dict[str, Any]) -> list[str]:
        """Whether the worker was asked at all, and was replaced where it had to be, and nowhere else."""

        def more(what: str) -> bool:
            return bool(self.server.stats()[what] > before[what])

        found = []
        if name in MISBEHAVIOUR and not more("anchor_refreshes") and not more("refused_rankings"):
            found.append("the worker was never asked")
        replaced = MISBEHAVIOUR.get(name, name in ("worker-killed", "worker-out-of-memory"))
        if replaced and not within(15, lambda: more("worker_restarts")):
            found.append("the worker was not replaced")
        if not replaced and more("worker_restarts"):
            found.append("the worker was replaced")
        return found

    def _verdict(self, name: str, answers: list[Answer]) -> list[str]:
        """What else was promised of the answers and of the server."""
        failed = [answer.reason for answer in answers if answer.reason]
        if name != "host-bit":
            found = [f"a request failed: {failed[0]}"] if failed else []
        elif len(failed) < len(answers) or not all("host memory has changed" in reason for reason in failed):
            found = [f"a flipped bit ended {len(failed)} of {len(answers)} requests: {set(failed)}"]
        else:
            found = []
        if json.dumps(self.server.get("/hetero/profile")) != self.served:
            found.append("another profile is served")
        return found

    def _settle(self) -> list[str]:
        """Wait until all is as before; what is not."""
        found = [] if within(30, lambda: self.server.stats()["worker_up"]) else ["no worker came back"]
        self.server.flush()
        whole = within(10, lambda: self.server.stats()["integrity_current"])
        integrity = self.server.stats()["integrity"]
        return found if whole and integrity == "ok" else [*found, f"integrity: {integrity}"]

    def _leaked(self) -> list[str]:
        """What the server holds beyond what it held at first."""
        now, found = self.watch.look(), []
        for what, more in (("processes", 0), ("fds", ALLOWED["fds"][0]), ("shared", 0)):
            held, had = getattr(now, what), getattr(self.before, what)
            if held > had + more:
                found.append(f"{what}: {held}, {had} before")
        return found + [f"{name} in {SHM}" for name in os.listdir(SHM) if "hetero" in name]

    def _kill(self) -> None:
        os.kill(self.server.stats()["worker_pid"], signal.SIGKILL)

    def _exhaust(self) -> None:
        """A memory group (cgroup v1) without memory ends the worker as soon as it wants any."""
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
        group = Path("/sys/fs/cgroup/memory") / own.split(":")[2].lstrip("/") / f"fault-{os.getpid()}"
        group.mkdir(exist_ok=True)
        try:
            pid = self.server.stats()["worker_pid"]
            (group / "memory.limit_in_bytes").write_text("4096")
            (group / "cgroup.procs").write_text(str(pid))
            within(10, lambda: not (group / "cgroup.procs").read_text())
            if (group / "cgroup.procs").read_text():
                raise RuntimeError("the worker wanted no memory in ten seconds")
        finally:
            within(10, lambda: not (group / "cgroup.procs").read_text())
            group.rmdir()

    def _remove(self) -> None:
        """Every name that shared memory of the server's has."""
        self.watch.look()
        for name in self.watch.names:
            (SHM / name).unlink(missing_ok=True)

    def _change_profile(self) -> None:
        """To rubbish and back."""
        good = (RECALL / PROFILE_NAME).read_text()
        self.profile.write_text("{" if self.profile.read_text() == good else good)

    def _jump(self) -> None:
        """Some hundred days on, or back."""
        offset = int.from_bytes(self.clock.read_bytes(), "little", signed=True)
        with self.clock.open("r+b") as file:
            file.write((-offset or 10**7).to_bytes(8, "little", signed=True))


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it holds at some moment of the next so many seconds."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return held
