"""One retrieval worker, seen from the scheduler: its process and its end of the channel."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from hetero_sglang.transfer import channel, protocol
from hetero_sglang.transfer.protocol import ProtocolError, WorkerSpec

COMMAND = (sys.executable, "-m", "hetero_sglang.transfer.worker")
_ROOT = str(Path(__file__).resolve().parents[2])
_MOST_MESSAGES = 1000  # read in one go
# Shares of the timeout. What is left of it is for the next worker's start, so that a stalled one is replaced in time.
_QUIET = 0.2  # a worker that has been silent for so long is asked for a sign of life
_GRACE = 0.6  # and has so long to give it


class WorkerProcess:
    """Starts a worker and talks to it; nothing here blocks.

    The other end of the channel is the worker's standard input and nobody else's, and the next worker has another
    channel: no reply outlives its worker."""

    def __init__(
        self,
        spec: WorkerSpec,
        command: Sequence[str],
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """OSError when the process cannot be started."""
        self._timeout, self._clock = timeout_s, clock
        self.up = False  # it said hello
        self._heard_at = clock()
        self._asked_at: float | None = None  # for a sign of life, and nothing was heard since
        self._pings = self._pongs = 0
        self._buffer = bytearray(channel.MOST_BYTES + 1)  # one more tells a message that is too long
        self._socket, theirs = channel.pair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command, stdin=theirs.fileno(), pass_fds=(spec.host_fd, spec.scratch_fd), env=_environment()
                )
        except OSError:
            self._socket.close()
            raise
        self.send(msgspec.json.encode(spec))  # it may have died already: `gone` will say so

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: bytes) -> bool:
        """False when it is too long, or cannot be taken now."""
        if len(message) > channel.MOST_BYTES:
            return False
        try:
            self._socket.send(message, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self) -> Iterator[protocol.Scored | protocol.Error]:
        """What has come from the worker, signs of life excepted. ProtocolError for what is no reply of it."""
        for _ in range(_MOST_MESSAGES):
            try:
                size = self._socket.recv_into(self._buffer)
            except OSError:  # nothing is there, or the worker went: `gone` will say so
                return
            if size > channel.MOST_BYTES:
                raise ProtocolError(f"a message of more than {channel.MOST_BYTES} bytes")
            if not size and channel.ended(self._socket):
                return
            self._heard_at, self._asked_at = self._clock(), None
            reply = self._read(bytes(self._buffer[:size]))
            if reply is not None:
                yield reply

    def _read(self, message: bytes) -> protocol.Scored | protocol.Error | None:
        """None for signs of life."""
        reply = protocol.read_reply(message)
        if isinstance(reply, protocol.Hello) == self.up:
            raise ProtocolError("a second hello" if self.up else "its first words were no hello")
        if isinstance(reply, protocol.Hello):
            self.up = True
            return None
        if isinstance(reply, protocol.Pong):
            if self._pongs == self._pings or reply.number != self._pings:
                raise ProtocolError("a pong nobody asked for")
            self._pongs = self._pings
            return None
        return reply

    def stalled(self, now: float) -> str | None:
        """Why the worker, which is up, counts as stalled: silent although it was asked.

        Asks for a sign of life in time: the worker's loop answers that, whatever its threads are busy with. A scheduler
        that was busy for long asks first, too."""
        if self._asked_at is None and now - self._heard_at > _QUIET * self._timeout:
            self._asked_at = now
        if self._asked_at is not None and self._pongs == self._pings:
            self._pings += self.send(protocol.pack(protocol.Ping(self._pings + 1)))  # else it has enough to answer
        if self._asked_at is not None and now - self._asked_at > _GRACE * self._timeout:
            return f"did not answer for {now - self._asked_at:.1f} s"
        return None

    def kill(self) -> None:
        """Ask the kernel to end it, also when it is stopped."""
        self._process.kill()

    def gone(self) -> bool:
        """It ended and was reaped: no thread of it can write anywhere any more."""
        return self._process.poll() is not None

    def ending(self) -> str:
        """How it ended, in words; only after `gone`."""
        code = self._process.returncode
        return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"

    def wait(self, timeout_s: float) -> None:
        """Block until it is gone, or the time is over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def close(self) -> None:
        """Close the channel; replies on their way are lost."""
        self._socket.close()


def _environment() -> dict[str, str]:
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([_ROOT, inherited] if inherited else [_ROOT]),
        "OPENBLAS_NUM_THREADS": "1",  # its threads are its own; the cores belong to the server
        "OMP_NUM_THREADS": "1",
    }
