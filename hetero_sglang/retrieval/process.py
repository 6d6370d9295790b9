"""One incarnation of the retrieval worker, seen from the scheduler: its process and its socket."""

from __future__ import annotations

import contextlib
import functools
import hmac
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import zmq

from hetero_sglang.retrieval import protocol
from hetero_sglang.retrieval.spec import WorkerSpec

COMMAND = (sys.executable, "-m", "hetero_sglang.retrieval.worker")
_ROOT = str(Path(__file__).resolve().parents[2])
_MOST_MESSAGES = 1000  # read in one go


def new_address() -> str:
    """An abstract Unix socket: the kernel drops its name with its last holder, so none is ever left over."""
    return f"ipc://@hetero-{os.getpid()}-{secrets.token_hex(8)}"


class WorkerProcess:
    """Starts a worker and talks to it; nothing here blocks.

    Anybody on the machine can connect to an abstract socket, so only the peer whose hello knows the token
    (which went through a pipe) is listened to, and a new incarnation has a new address: no reply outlives it.
    """

    def __init__(self, spec: WorkerSpec, command: Sequence[str]) -> None:
        """OSError when the process cannot be started."""
        self._spec = spec
        self._peer = b""
        self._socket = _listen(spec.address)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=(spec.host_fd, spec.staging_fd), env=_environment()
            )
        except OSError:
            self._socket.close()
            raise
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: `gone` will say so
            self._process.stdin.write(msgspec.json.encode(spec) + b"\n")  # a few KB: fits the pipe, no wait
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def incarnation(self) -> int:
        return self._spec.incarnation

    @property
    def up(self) -> bool:
        """It said hello."""
        return bool(self._peer)

    def send(self, frames: Sequence[bytes]) -> bool:
        """False when the message could not be queued."""
        try:
            self._socket.send_multipart([self._peer, *frames], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def receive(self) -> Iterator[list[bytes]]:
        """Frames of the messages that have come from the worker, hello excepted."""
        for _ in range(_MOST_MESSAGES):
            try:
                sender, *frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            if self._peer:
                if sender == self._peer:
                    yield frames
            elif self._is_hello(frames):
                self._peer = sender

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
        """Close socket and pipe; replies on their way are lost."""
        self._socket.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _is_hello(self, frames: Sequence[bytes]) -> bool:
        try:
            hello = protocol.read_reply(frames)
        except protocol.ProtocolError:
            return False
        return (
            isinstance(hello, protocol.Hello)
            and hello.incarnation == self._spec.incarnation
            and hello.pid == self._process.pid
            and hmac.compare_digest(hello.token.encode(), self._spec.token.encode())
        )


@functools.cache
def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One for the whole process, never ended: the end of a context waits for sockets somebody left open."""
    return zmq.Context()


def _listen(address: str) -> zmq.Socket[bytes]:
    try:
        socket = _context().socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # say so when the worker is not there
        socket.bind(address)
    except zmq.ZMQError as error:  # too many open files, for one
        raise OSError(error.errno, error.strerror) from error
    return socket


def _environment() -> dict[str, str]:
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([_ROOT, inherited] if inherited else [_ROOT]),
        "OPENBLAS_NUM_THREADS": "1",  # its threads are its own; the cores belong to the server
        "OMP_NUM_THREADS": "1",
    }
