"""What all processes of a server hold of the machine."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SHM = Path("/dev/shm")
SGLANGS = "sglang_loads_"  # files with such names plain SGLang leaves there as well


@dataclass(frozen=True)
class Footprint:
    """At one moment; bytes of memory that several processes map count for each in `rss`, and once in `shared_bytes`."""

    seconds: float  # since the watch began
    processes: int
    rss: int
    fds: int
    threads: int
    shared: int  # mappings of shared memory, each once
    shared_bytes: int


@dataclass
class Watch:
    """Footprints of a server and of everything it has started, and the names its shared memory has in /dev/shm."""

    process: int
    samples: list[Footprint] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    begun: float = field(default_factory=time.monotonic)

    async def run(self, every: float) -> None:
        """Until it is cancelled, or the server has ended."""
        while psutil.pid_exists(self.process):
            await asyncio.to_thread(self.look)
            await asyncio.sleep(every)

    def look(self) -> Footprint:
        """One more sample. A process that ends meanwhile is left out."""
        rss = fds = threads = processes = 0
        shared: dict[tuple[str, str], int] = {}
        for each in self._family():
            with suppress(psutil.Error, OSError):
                held, files, running = each.memory_info().rss, each.num_fds(), each.num_threads()
                shared |= self._mapped(each.pid)
                rss, fds, threads, processes = rss + held, fds + files, threads + running, processes + 1
        now = time.monotonic() - self.begun
        sample = Footprint(round(now, 1), processes, rss, fds, threads, len(shared), sum(shared.values()))
        self.samples.append(sample)
        return sample

    def left_over(self) -> list[str]:
        """Names of its shared memory that are still there, but for SGLang's own; to be asked once it has ended."""
        return sorted(name for name in self.names if not name.startswith(SGLANGS) and os.path.exists(SHM / name))

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            server = psutil.Process(self.process)
            return [server, *server.children(recursive=True)]
        return []

    def _mapped(self, pid: int) -> dict[tuple[str, str], int]:
        """Bytes of each shared mapping of memory, by device and inode."""
        found: dict[tuple[str, str], int] = {}
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, _, device, inode, *path = line.split(maxsplit=5)
            file = path[0] if path else ""
            if rights[3] != "s" or not file.startswith((f"{SHM}/", "/memfd:", "/dev/zero", "/SYSV")):
                continue
            begin, end = (int(word, 16) for word in span.split("-"))
            found[device, inode] = found.get((device, inode), 0) + end - begin
            if file.startswith(f"{SHM}/"):
                self.names.add(file.removeprefix(f"{SHM}/").removesuffix(" (deleted)"))
        return found
