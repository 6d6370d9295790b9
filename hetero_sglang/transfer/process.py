"""One incarnation of the retrieval worker, seen from the scheduler: its process and its end of the channel."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from hetero_sglang.transfer import channel, protocol
from hetero_sglang.transfer.protocol import ProtocolError
from hetero_sglang.transfer.spec import WorkerSpec

COMMAND = (sys.executable, "-m", "hetero_sglang.transfer.worker")
_ROOT = str(Path(__file__).resolve().parents[2])
_MOST_MESSAGES = 1000  # read in one go


class WorkerProcess:
    """Starts a worker and talks to it; nothing here blocks.

    The other end of the channel is the worker's standard input and nobody else's, and a new incarnation has a new
    channel: no reply outlives it.
    """

    def __init__(self, spec: WorkerSpec, command: Sequence[str]) -> None:
        """OSError when the process cannot be started."""
        self._spec = spec
        self._up = False
        self._buffer = bytearray(channel.MOST_BYTES + 1)  # one more tells a message that is too long
        self._socket, theirs = channel.pair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    pass_fds=(spec.host_fd, spec.staging_fd, spec.score_fd),
                    env=_environment(),
                )
        except OSError:
            self._socket.close()
            raise
        self.send(msgspec.json.encode(spec))  # it may have died already: `gone` will say so

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def incarnation(self) -> int:
        return self._spec.incarnation

    @property
    def up(self) -> bool:
        """It said hello."""
        return self._up

    def send(self, message: bytes) -> bool:
        """False when it is too long, or cannot be taken now."""
        if len(message) > channel.MOST_BYTES:
            return False
        try:
            self._socket.send(message, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self) -> Iterator[bytes]:
        """The messages that have come from the worker, hello excepted. ProtocolError for what is none."""
        for _ in range(_MOST_MESSAGES):
            try:
                size = self._socket.recv_into(self._buffer)
            except OSError:  # nothing is there, or the worker went: `gone` will say so
                return
            if size > channel.MOST_BYTES:
                raise ProtocolError(f"a message of more than {channel.MOST_BYTES} bytes")
            if not size and channel.ended(self._socket):
                return
            message = bytes(self._buffer[:size])
            if self._up:
                yield message
            elif protocol.read_reply(message) == protocol.Hello(self._spec.incarnation):
                self._up = True
            else:
                raise ProtocolError("its first words were no hello")

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
