"""The retrieval worker: `python -m hetero_sglang.transfer.worker`, whose standard input is its end of the channel.

It imports neither torch nor sglang, so that a worker that died is back within a second."""

import ctypes
import signal
import socket

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def main() -> None:
    # First of all, and before any slow import, so that no crash of the parent leaves a worker behind.
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NAME, b"hetero-retrieve")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends its worker

    from hetero_sglang.transfer import channel

    end = socket.socket(fileno=0)
    if not channel.from_parent(end):  # or the parent died before the signal was arranged
        return

    import msgspec

    from hetero_sglang.transfer.protocol import WorkerSpec
    from hetero_sglang.transfer.service import Service

    told = end.recv(channel.MOST_BYTES)
    if told:  # nothing comes from a scheduler that is gone
        Service(msgspec.json.decode(told, type=WorkerSpec), end).run()


if __name__ == "__main__":
    main()
