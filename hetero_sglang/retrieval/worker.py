"""The retrieval worker: `python -m hetero_sglang.retrieval.worker`, told what to do on standard input.

It imports neither torch nor sglang, so that a worker that died is back within a second.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def main() -> None:
    # First of all, and before any slow import, so that no crash of the parent leaves a worker behind.
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NAME, b"hetero-retrieve")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends its worker

    import msgspec
    import uvloop

    from hetero_sglang.retrieval.service import Service
    from hetero_sglang.retrieval.spec import WorkerSpec

    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerSpec)
    if os.getppid() != spec.parent:  # it died before the signal was arranged
        return
    uvloop.run(Service(spec).run())


if __name__ == "__main__":
    main()
