"""Faults that take a start each: rough places to start in, and ways to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.load import CUT_OFF, Answer, Load
from benchmarks.faults.tally import Tally
from benchmarks.launch import RECALL, Server
from benchmarks.soak.footprint import SHM, Watch
from hetero_sglang.calibration.calibrate_command import calibrate
from hetero_sglang.profile.files import PROFILE_NAME

FLAGS = {"kv_policy": "heterocache", "hetero_window": 16, "max_total_tokens": 20000}
BY_PIVOTS = {**FLAGS, "hetero_index": "none"}
# In a mount namespace of its own. The process that ends the shell's line is the server.
SMALL = "mount -t tmpfs -o size=64m none /dev/shm && ulimit -n 256 && ulimit -l 64"
READ_ONLY = "mount -t tmpfs -o size=1m,ro none {home}"
FULL = "mount -t tmpfs -o size=128k none {home}"  # a third of the profile
TOO_LITTLE_KB = 10_000_000  # all but the host tier fits


@dataclass(frozen=True)
class Start:
    """`place`: shell commands before the server's; `victim`: the command line of the process that is killed, "" the
    first; None: SIGTERM. `seconds`: within them all have left. `made`: the model has no head profile."""

    place: str = ""
    victim: str | None = None
    seconds: float = 30.0
    made: bool = False
    flags: dict[str, Any] = field(default_factory=lambda: dict(BY_PIVOTS))


STARTS = {
    "sigterm": Start(SMALL),
    "scheduler-killed": Start(victim="sglang::scheduler"),
    "tokenizer-killed": Start(victim=""),
    "detokenizer-killed": Start(victim="sglang::detokenizer", seconds=120),  # of which SGLang takes 60 for diagnostics
    "cache-read-only": Start(READ_ONLY, victim="", made=True, flags=FLAGS),
    "disk-full": Start(FULL, victim="", made=True, flags=FLAGS),
    "memory-unmapped": Start(
        f"ulimit -v {TOO_LITTLE_KB}", flags=FLAGS | {"max_total_tokens": 700_000, "hetero_keep_ratio": 0.3}
    ),
}


class Starts:
    """Does them. `folder`: for the profile-less model and what it needs."""

    def __init__(self, load: Load, folder: Path, log: Path | None = None) -> None:
        self.load, self.folder, self.log = load, folder, log
        self._expected: dict[bool, list[Answer]] = {}

    def once(self, name: str, tally: Tally) -> None:
        """One fault, once."""
        (self._refused if name == "memory-unmapped" else self._serve)(STARTS[name], tally)

    def server(self, start: Start) -> Server:
        """Of that place, not started."""
        home, env = self.folder / "home", {"FLASHINFER_WORKSPACE_BASE": str(self.folder)}
        home.mkdir(exist_ok=True)
        if start.made:
            env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
        server = Server(self._model() if start.made else RECALL, self.log, env, **start.flags)
        if start.place:
            line = f'{start.place.format(home=home)} && exec "$0" "$@"'
            server.command = ["unshare", "-m", "sh", "-c", line, *server.command]
        return server

    def _serve(self, start: Start, tally: Tally) -> None:
        expected = self._answers(start)
        server, broken = self.server(start), []
        with server:
            assert server.process is not None
            pid = server.process.pid
            watch = Watch(pid)
            watch.look()
            answers: list[Answer] = []
            if start.made:
                broken += self._kept(server)
                answers = self.load.ask(server)
            main = psutil.Process(pid)
            family = [main, *main.children(recursive=True)]
            answers += self.load.ask(server, lambda: end(family, start.victim))
            begun = time.monotonic()
            if not _ended(main, start.seconds):
                broken.append(f"the server is there after {start.seconds:g} s")
            alive = psutil.wait_procs(family, 10)[1]
            seconds = time.monotonic() - begun
            leaked = [f"process {each.pid} outlives its server" for each in alive]
            leaked += [f"{name} in {SHM}" for name in {*watch.left_over(), *_ours()}]
        broken += self._verdict(start, answers)
        tally.add(answers, expected * (len(answers) // len(expected)), broken, leaked, seconds)

    def _verdict(self, start: Start, answers: list[Answer]) -> list[str]:
        """What else was promised of the answers."""
        failed = {answer.reason for answer in answers if answer.reason}
        if start.victim is None and failed:
            return [f"a request failed while the server drained: {failed}"]
        return [f"a request failed otherwise than by its server's end: {failed}"] if failed - {CUT_OFF} else []

    def _refused(self, start: Start, tally: Tally) -> None:
        server = self.server(start)
        server.launch()
        assert server.process is not None
        main, broken = psutil.Process(server.process.pid), []
        family: dict[int, psutil.Process] = {}
        begun = time.monotonic()
        while server.alive and time.monotonic() - begun < 120:
            family |= {each.pid: each for each in main.children(recursive=True)}
            time.sleep(0.2)
        if server.alive or not server.process.returncode:
            broken.append("it was not refused")
        log = server.log.read_text(errors="replace")
        if "cannot be mapped" not in log or "raise that limit (ulimit -v)" not in log:
            broken.append(f"its log does not say why: {log[-200:]}")
        alive = psutil.wait_procs(list(family.values()), 10)[1]
        tally.add([], [], broken, [*(f"process {each.pid}" for each in alive), *_ours()], time.monotonic() - begun)
        server.stop(at_once=True)

    def _kept(self, server: Server) -> list[str]:
        """Whether the start has said that it keeps no profile, and has left none nor a part of one."""
        assert server.process is not None
        log = server.log.read_text(errors="replace")
        found = [] if "The head profile is used and not kept" in log else ["its log does not say that none is kept"]
        home = Path(f"/proc/{server.process.pid}/root") / str(self.folder / "home").lstrip("/")
        left = [path.name for path in (home / "cache").rglob("*") if path.is_file() and path.stat().st_size]
        return found + ([f"it has left {left}"] if left else [])

    def _answers(self, start: Start) -> list[Answer]:
        """Those of a server in no such place."""
        if start.made not in self._expected:
            flags = dict(start.flags)
            if start.made:  # whose profile is the same
                flags["hetero_profile"] = self._profile()
            with Server(self._model() if start.made else RECALL, self.log, **flags) as server:
                self.load.learn(server)
            self._expected[start.made] = self.load.expected
        return self._expected[start.made]

    def _model(self) -> Path:
        """The recall model with another fingerprint, so that no profile is found for it."""
        folder = self.folder / "model"
        if not folder.exists():
            shutil.copytree(RECALL, folder, ignore=shutil.ignore_patterns(PROFILE_NAME))
            config = json.loads((folder / "config.json").read_text())
            config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 1000001.0
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    def _profile(self) -> Path:
        """The one that a start makes for it."""
        path = self.folder / PROFILE_NAME
        if not path.exists():
            calibrate([str(self._model()), "--out", str(path), "--device", "cpu"], "")
        return path


def end(family: list[psutil.Process], victim: str | None) -> None:
    """SIGTERM to the first of a server's processes, or SIGKILL to the victim."""
    if not victim:
        family[0].send_signal(signal.SIGTERM if victim is None else signal.SIGKILL)
        return
    (found,) = [each for each in family if " ".join(each.cmdline()).strip() == victim]
    found.kill()


def _ended(main: psutil.Process, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not main.is_running() or main.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def _ours() -> list[str]:
    return [name for name in os.listdir(SHM) if "hetero" in name]
