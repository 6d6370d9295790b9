"""The channel between scheduler and worker: a pair of connected sockets, of which each holds one end.

It has no name in any namespace, so nobody else can reach it, and it ends with its holders. Packets keep their bounds: a
message arrives whole or not at all, and none is read beyond MOST_BYTES. Arrays travel in shared memory."""

import os
import select
import socket
import struct

MOST_BYTES = 64 << 10  # of a message, either way
_BUFFER_BYTES = 1 << 20  # messages on their way, as far as the kernel's limit allows
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def pair() -> tuple[socket.socket, socket.socket]:
    """The scheduler's end, which never blocks, and the worker's. OSError when there are too many open files."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ours, theirs


def from_parent(end: socket.socket) -> bool:
    """Whether this process's parent made the channel, and still lives. Told by the kernel; nothing is read."""
    if end.family != socket.AF_UNIX or end.type != socket.SOCK_SEQPACKET:
        return False
    pid, uid, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return (pid, uid) == (os.getppid(), os.getuid())


def ended(end: socket.socket) -> bool:
    """Whether the other end is closed: an empty message alone does not say so."""
    poller = select.poll()
    poller.register(end, select.POLLRDHUP)
    return bool(poller.poll(0))
